"""Run the frozen blocks before a tower's first adapted block once, instead of at every step.

Frozen blocks return the same activations whenever they get the same input. So the inputs of the
first adapted block are cached. A step then runs the tower with a cached input in the block's
place, and the modules before the block return only zeros of the right shape. This is exact for
every tower whose later parts read nothing else from the earlier ones. Each tower is compared with
its direct pass before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from clip_randlora.adapters import Adapter
from clip_randlora.adapters.config import Tower
from clip_randlora.adapters.parametrization import AdaptedWeight
from clip_randlora.adapters.targets import block_name
from clip_randlora.data import AugmentedViews
from clip_randlora.forward.replace import Replacement, replaced_forwards
from clip_randlora.utils.devices import send
from clip_randlora.utils.progress import OnProgress, report_progress

DEFAULT_VIEWS = 3
"""Augmented views of each image that are cached if blocks of the vision tower are frozen."""

CACHE_BYTES = 2 * 1024**3
"""Upper bound on the cached activations of the training images."""

_CHUNK = 32  # images encoded together; fixed, so that a resumed run caches the same bits
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2  # relative error; a tower that cannot be cached has ~1


class CannotCache(Exception):
    """A tower's frozen blocks cannot be cached; the message says why."""


def has_frozen_blocks(adapter: Adapter, tower: Tower) -> bool:
    """Return whether the first block of a tower, or the whole tower, is frozen."""
    blocks = [weight.block for weight in adapter.weights.values() if weight.tower == tower]
    return not blocks or min(blocks) > 0


class CachedImages:
    """Features of augmented views of images, with the output of the frozen blocks cached.

    Attributes:
        views: number of cached views of each image, at most what was asked for.
    """

    def __init__(
        self,
        adapter: Adapter,
        encode: Callable[[Tensor], Tensor],
        views: AugmentedViews,
        on_progress: OnProgress | None = None,
    ):
        """Fill the cache.

        Args:
            adapter: leaves the first blocks of the vision tower frozen, or the whole tower.
            encode: float images (B, 3, S, S) -> features (B, E), at the training's precision.
            views: the views to cache, as many as fit into `CACHE_BYTES`.
            on_progress: told how many images are encoded.

        Raises:
            CannotCache: not even one view fits, or the tower is not a sequence of blocks.
        """
        self._encode, self._images = encode, views.images
        with torch.no_grad():
            first_and_last = views.crops(torch.tensor([0, views.images - 1]), torch.tensor([0, 0]))
            self._blank = torch.zeros_like(first_and_last[:1])  # its pixels are never used
            self._prefix = None
            if any(weight.tower == "vision" for weight in adapter.weights.values()):
                self._prefix = _Prefix(adapter, "vision", encode, self._blank, first_and_last)
            example = self._run_frozen(self._blank)
            self.views = _count_that_fit(example, views)
            self._cache = [_empty_rows(tensor, self.views * views.images) for tensor in example]
            chunks = [
                (view, rows)
                for view in range(self.views)
                for rows in torch.arange(views.images).split(_CHUNK)
            ]
            for view, rows in report_progress(
                chunks,
                "encoding images",
                self.views * views.images,
                on_progress,
                lambda chunk: len(chunk[1]),
            ):
                outputs = self._run_frozen(views.crops(rows, torch.full_like(rows, view)))
                start = view * views.images + int(rows[0])
                for cached, output in zip(self._cache, outputs, strict=True):
                    cached[start : start + len(output)] = output

    def select(self, rows: Tensor, views: Tensor) -> list[Tensor]:
        """Return the cached tensors of images ``rows`` in ``views``, both CPU int64 (B,)."""
        places = send(views * self._images + rows, self._blank.device)
        return [cached[places] for cached in self._cache]

    def features(self, cached: Sequence[Tensor]) -> Tensor:
        """Return the features (B, E) of what `select` returned."""
        if self._prefix is None:
            return cached[0]
        with self._prefix.replayed(cached):
            return self._encode(self._blank)

    def _run_frozen(self, images: Tensor) -> list[Tensor]:
        return self._prefix.run(images) if self._prefix else [self._encode(images)]


def _count_that_fit(example: list[Tensor], views: AugmentedViews) -> int:
    """Return how many views fit into `CACHE_BYTES`, by the cached tensors of one image."""
    size = views.images * sum(tensor.nbytes for tensor in example)
    count = min(views.count, CACHE_BYTES // max(size, 1))
    if not count:
        raise CannotCache(
            f"one view of each image would take {size / 1e9:.1f} GB, and the limit is "
            f"{CACHE_BYTES / 1e9:.1f} GB"
        )
    return count


def _empty_rows(example: Tensor, count: int) -> Tensor:
    """Return an uninitialised (count, ...) in the memory format of the example (1, ...)."""
    return torch.empty(
        (count, *example.shape[1:]),
        dtype=example.dtype,
        device=example.device,
        memory_format=_memory_format(example),
    )


class CachedText:
    """Class features of fixed prompts, with the output of the frozen blocks cached."""

    def __init__(self, adapter: Adapter, encode: Callable[[], Tensor]):
        """Fill the cache.

        Args:
            adapter: leaves the first blocks of the text tower frozen.
            encode: returns the features (C, E) of the prompts, at the training's precision.

        Raises:
            CannotCache: the tower is not a sequence of blocks.
        """
        self._encode = encode
        with torch.no_grad(), _errors_as_cannot_cache():
            self._recording = _record(adapter, "text", encode)
            _check_equal(self.features(), self._recording.output)

    def features(self) -> Tensor:
        """Return the features (C, E)."""
        # a block may work in place, so it gets copies
        inputs = tree_map_only(Tensor, torch.clone, self._recording.inputs)
        with self._recording.replayed(inputs):
            return self._encode()


class _Prefix:
    """The part of a tower before its first adapted block, for batches of independent rows.

    ``run`` runs this part alone, ``replayed`` leaves it out.
    """

    def __init__(
        self,
        adapter: Adapter,
        tower: Tower,
        encode: Callable[[Tensor], Tensor],
        one: Tensor,
        two: Tensor,
    ):
        """Find out how the tower is called, and compare a replay with a direct pass.

        Args:
            adapter: leaves the first blocks of the tower frozen.
            tower: its name.
            encode: (B, ...) -> features (B, E).
            one: an input of one row, different from those in ``two``.
            two: an input of two rows.

        Raises:
            CannotCache: a replay fails or gives other features.
        """
        self._encode = encode
        with torch.no_grad(), _errors_as_cannot_cache():
            self._recording = _record(adapter, tower, lambda: encode(one))
            direct = _record(adapter, tower, lambda: encode(two))
            if len(direct.inputs) != 1:
                raise CannotCache("a block is called more than once")
            of_one, self._spec = tree_flatten(self._recording.inputs[0])
            of_two, _ = tree_flatten(direct.inputs[0])
            self._leaves = [_Leaf.of(a, b) for a, b in zip(of_one, of_two, strict=True)]
            with self.replayed(self.run(two)):
                _check_equal(encode(one), direct.output)

    def run(self, batch: Tensor) -> list[Tensor]:
        """Return the tensors (B, ...) that the first adapted block gets for a batch (B, ...)."""
        with self._recording.stopping():
            try:
                self._encode(batch)
            except _Reached as reached:
                values, _ = tree_flatten(reached.inputs)
        pairs = zip(values, self._leaves, strict=True)
        return [value.movedim(leaf.dim, 0) for value, leaf in pairs if leaf.dim is not None]

    def replayed(self, rows: Sequence[Tensor]) -> Any:
        """Let the tower, called with one row, go on from tensors that `run` returned."""
        tensors = iter(rows)
        values = [
            leaf.constant if leaf.dim is None else leaf.restore(next(tensors), leaf.dim)
            for leaf in self._leaves
        ]
        return self._recording.replayed([tree_unflatten(values, self._spec)])


@dataclass(frozen=True)
class _Leaf:
    """One input of a block: a tensor with the batch along ``dim``, or a constant (dim None)."""

    dim: int | None
    constant: Any = None
    layout: torch.memory_format = torch.contiguous_format

    @classmethod
    def of(cls, of_one: Any, of_two: Any) -> _Leaf:
        """Find the batch dimension by the inputs for a batch of one row and a batch of two."""
        if not isinstance(of_one, Tensor) or of_one.shape == of_two.shape:
            return cls(None, of_one)
        sizes = list(zip(of_one.shape, of_two.shape, strict=True))
        dims = [dim for dim, (a, b) in enumerate(sizes) if a != b]
        if len(dims) != 1 or sizes[dims[0]] != (1, 2):
            raise CannotCache("a block's input does not hold one row for each image")
        return cls(dims[0], layout=_memory_format(of_one))

    def restore(self, rows: Tensor, dim: int) -> Tensor:
        return rows.movedim(0, dim).contiguous(memory_format=self.layout)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _check_equal(replayed: Tensor, direct: Tensor) -> None:
    if replayed.shape != direct.shape:
        raise CannotCache("a replay of its blocks gives features of another shape")
    tolerance = _TOLERANCE if direct.dtype == torch.float32 else _HALF_TOLERANCE
    error = (replayed - direct).abs().max() / direct.abs().max()
    if not error <= tolerance:  # also if the error is NaN
        raise CannotCache("a replay of its blocks gives other features")


@dataclass(frozen=True)
class _Recording:
    """What a forward pass of a tower did before its first adapted block.

    Attributes:
        block: the first adapted block.
        inputs: (args, kwargs) of each of its calls.
        finished: ``{module: outputs}`` of every module that ran once before each of these calls;
            the outputs have the right shapes, not the values.
        output: of the whole pass.
    """

    block: nn.Module
    inputs: list[tuple[tuple, dict]]
    finished: dict[nn.Module, list[Any]]
    output: Any

    @contextmanager
    def replayed(self, inputs: Sequence[tuple[tuple, dict]]) -> Iterator[None]:
        """Give the block these inputs instead, and leave out the modules before it.

        This holds for one forward pass, on a batch of the recorded shape.
        """
        queue = iter(inputs)
        hook = self.block.register_forward_pre_hook(lambda *_: next(queue), with_kwargs=True)
        try:
            with replaced_forwards({m: _return_zeros(o) for m, o in self.finished.items()}):
                yield
        finally:
            hook.remove()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Raise `_Reached` when the block is called."""

        def stop(_: nn.Module, *inputs: Any) -> None:
            raise _Reached(inputs)

        hook = self.block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class _Reached(Exception):
    def __init__(self, inputs: Any):
        super().__init__()
        self.inputs = inputs


def _record(adapter: Adapter, tower: Tower, run: Callable[[], Any]) -> _Recording:
    """Run a forward pass of a tower, and record the inputs of its first adapted block.

    Raises:
        CannotCache: there is no such block, it is not called, or weights before it are adapted.
    """
    block = _first_adapted_block(adapter, tower)
    inputs: list[tuple[tuple, dict]] = []
    started: list[int] = []
    calls: dict[nn.Module, list[tuple[int, int, Any]]] = {}

    def before(module: nn.Module, *call: Any) -> None:
        started.append(len(inputs))
        if module is block:
            inputs.append(call)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        calls.setdefault(module, []).append((started.pop(), len(inputs), _without_values(output)))

    with ExitStack() as undo:
        for module in adapter.net.modules():
            hook = module.register_forward_pre_hook(before, with_kwargs=True)
            undo.callback(hook.remove)
            undo.callback(module.register_forward_hook(after).remove)
        output = run()
    if not inputs:
        raise CannotCache("its blocks are not called as modules")
    # the n-th call of a module must fall between the n-th call of the block and the one before
    between = [(number, number) for number in range(len(inputs))]
    finished = {
        module: [shapes for _, _, shapes in of_module]
        for module, of_module in calls.items()
        if [(start, end) for start, end, _ in of_module] == between
    }
    for module in finished:
        if any(isinstance(part, AdaptedWeight) for part in module.modules()):
            raise CannotCache("weights before its first adapted block are adapted")
    return _Recording(block, inputs, finished, output)


def _first_adapted_block(adapter: Adapter, tower: Tower) -> nn.Module:
    weights = [weight for weight in adapter.weights.values() if weight.tower == tower]
    first = min(weight.block for weight in weights)
    blocks = {block_name(weight.name) for weight in weights if weight.block == first}
    names = [name for name in blocks if name is not None]
    if len(names) != 1:
        raise CannotCache("its first adapted weight lies in no block")
    return adapter.net.get_submodule(names[0])


def _without_values(output: Any) -> Any:
    """Replace each tensor by one of the same shape that takes no memory."""
    return tree_map_only(Tensor, lambda tensor: tensor.new_zeros(()).expand(tensor.shape), output)


def _return_zeros(outputs: Sequence[Any]) -> Replacement:
    """Return a forward pass whose calls return zeros like these outputs, one after another."""
    queue = iter(outputs)
    return lambda *_, **__: tree_map_only(Tensor, torch.zeros_like, next(queue))


@contextmanager
def _errors_as_cannot_cache() -> Iterator[None]:
    """Turn any error of a tower that is not called as usual into `CannotCache`."""
    try:
        yield
    except CannotCache:
        raise
    except Exception as error:
        raise CannotCache(f"a replay of its blocks fails ({type(error).__name__})") from error
