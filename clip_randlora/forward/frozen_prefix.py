"""What comes before the first adapted block of a tower, computed once instead of at every step.

Frozen weights give the same activations whenever they see the same input. So the input of the
first adapted block is kept, and from then on the tower is run with it put in that block's place;
the modules before the block only return zeros of the right shape. That fits every tower whose
later parts see nothing of the earlier ones but that input; each is compared with its direct pass
before it is trusted.
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
"""Augmented views of each image that are kept, where blocks of the vision tower are frozen."""

KEPT_BYTES = 2 * 1024**3
"""Most bytes of the training images' activations that are kept."""

_CHUNK = 32  # images encoded together: fixed, so that a resumed run keeps the same bits
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2  # of the largest feature; a tower that does not fit: ~1


class DoesNotFit(Exception):
    """The frozen part of a tower cannot be kept; the message says why."""


def has_frozen_blocks(adapter: Adapter, tower: Tower) -> bool:
    """Tell whether a tower's first block, or the whole tower, keeps its weights."""
    blocks = [weight.block for weight in adapter.weights.values() if weight.tower == tower]
    return not blocks or min(blocks) > 0


class FrozenImages:
    """The features of augmented views of images, whose frozen part is computed here, once.

    Attributes:
        views: how many of each image are kept, at most those that were asked for.
    """

    def __init__(
        self,
        adapter: Adapter,
        encode: Callable[[Tensor], Tensor],
        views: AugmentedViews,
        on_progress: OnProgress | None = None,
    ):
        """Compute what is kept, in fixed chunks.

        Args:
            adapter: leaves the first blocks of the vision tower frozen, or all of them.
            encode: float images (B, 3, S, S) -> features (B, E), at the training's precision.
            views: as many as fit into `KEPT_BYTES` are kept.
            on_progress: told how many images are encoded.

        Raises:
            DoesNotFit: not even one view does, or the tower is not a sequence of blocks.
        """
        self._encode, self._count = encode, views.images
        with torch.no_grad(), adapter.cached_weights():
            first_and_last = views.crops(torch.tensor([0, views.images - 1]), torch.tensor([0, 0]))
            self._blank = torch.zeros_like(first_and_last[:1])  # any image: it is not seen
            self._prefix = None
            if any(weight.tower == "vision" for weight in adapter.weights.values()):
                self._prefix = Prefix(adapter, "vision", encode, self._blank, first_and_last)
            example = self._frozen_part(self._blank)
            self.views = _views_that_fit(example, views)
            self._kept = [_room(tensor, self.views * views.images) for tensor in example]
            chunks = [
                (view, rows)
                for view in range(self.views)
                for rows in torch.arange(views.images).split(_CHUNK)
            ]
            total = self.views * views.images
            chunks = report_progress(
                chunks, "encoding images", total, on_progress, lambda it: len(it[1])
            )
            for view, rows in chunks:
                images = views.crops(rows, torch.full_like(rows, view))
                self._keep(view * views.images + int(rows[0]), self._frozen_part(images))

    def kept(self, rows: Tensor, views: Tensor) -> list[Tensor]:
        """Return what is kept of images ``rows`` in ``views``, both CPU int64 (B,)."""
        places = send(views * self._count + rows, self._blank.device)
        return [tensor[places] for tensor in self._kept]

    def features(self, kept: Sequence[Tensor]) -> Tensor:
        """Return the features (B, E) of images of which `kept` returned this."""
        if self._prefix is None:
            return kept[0]
        with self._prefix.replayed(kept):
            return self._encode(self._blank)

    def _frozen_part(self, images: Tensor) -> list[Tensor]:
        return self._prefix.inputs(images) if self._prefix else [self._encode(images)]

    def _keep(self, start: int, computed: list[Tensor]) -> None:
        for kept, tensor in zip(self._kept, computed, strict=True):
            kept[start : start + len(tensor)] = tensor


def _views_that_fit(example: list[Tensor], views: AugmentedViews) -> int:
    size = views.images * sum(tensor.numel() * tensor.element_size() for tensor in example)
    fitting = min(views.count, KEPT_BYTES // max(size, 1))
    if not fitting:
        raise DoesNotFit(
            f"one view of each image would take {size / 1e9:.1f} GB, more than the "
            f"{KEPT_BYTES / 1e9:.1f} GB that may be kept"
        )
    return fitting


def _room(example: Tensor, count: int) -> Tensor:
    """Return uninitialised (count, ...) for rows like the example's (1, ...), in its layout."""
    return torch.empty(
        (count, *example.shape[1:]),
        dtype=example.dtype,
        device=example.device,
        memory_format=_layout(example),
    )


class FrozenText:
    """The class features, whose frozen part is computed here, once, for all prompts together."""

    def __init__(self, adapter: Adapter, encode: Callable[[], Tensor]):
        """Compute what is kept.

        Args:
            adapter: leaves the first blocks of the text tower frozen.
            encode: () -> features (C, E) of always the same prompts, at the training's precision.

        Raises:
            DoesNotFit: the tower is not a sequence of blocks.
        """
        self._encode = encode
        with torch.no_grad(), adapter.cached_weights(), _refusing_what_fails():
            self._recording = record(adapter, "text", encode)
            _check_equal(self.features(), self._recording.output)

    def features(self) -> Tensor:
        """Return the features (C, E)."""
        # a block may work in place, so it gets copies
        kept = tree_map_only(Tensor, torch.clone, self._recording.inputs)
        with self._recording.replayed(kept):
            return self._encode()


class Prefix:
    """The part of a tower before its first adapted block, for inputs of which each row is its own.

    ``inputs`` runs that part alone, ``replayed`` leaves it out.
    """

    def __init__(
        self,
        adapter: Adapter,
        tower: Tower,
        encode: Callable[[Tensor], Tensor],
        one: Tensor,
        two: Tensor,
    ):
        """Find how the tower is called, and compare a replay with a direct pass.

        Args:
            adapter: leaves the first blocks of the tower frozen.
            tower: its name.
            encode: (B, ...) -> features (B, E).
            one: input of one row, other than those in ``two``.
            two: input of two rows.

        Raises:
            DoesNotFit: a replay gives other features, or fails.
        """
        self._encode = encode
        with torch.no_grad(), _refusing_what_fails():
            self._recording = record(adapter, tower, lambda: encode(one))
            direct = record(adapter, tower, lambda: encode(two))
            if len(direct.inputs) != 1:
                raise DoesNotFit("a block is called more than once")
            of_one, self._spec = tree_flatten(self._recording.inputs[0])
            of_two, _ = tree_flatten(direct.inputs[0])
            self._leaves = [_leaf(a, b) for a, b in zip(of_one, of_two, strict=True)]
            with self.replayed(self.inputs(two)):
                _check_equal(encode(one), direct.output)

    def inputs(self, batch: Tensor) -> list[Tensor]:
        """Return what the first adapted block gets of a batch (B, ...): tensors (B, ...)."""
        with self._recording.stopping():
            try:
                self._encode(batch)
            except _Reached as reached:
                values, _ = tree_flatten(reached.inputs)
        pairs = zip(values, self._leaves, strict=True)
        return [value.movedim(leaf.dim, 0) for value, leaf in pairs if leaf.dim is not None]

    def replayed(self, inputs: Sequence[Tensor]) -> Any:
        """Let the tower, which is called with one row, go on from what ``inputs`` returned."""
        rows = iter(inputs)
        values = [
            leaf.constant if leaf.dim is None else leaf.restore(next(rows)) for leaf in self._leaves
        ]
        return self._recording.replayed([tree_unflatten(values, self._spec)])


@dataclass(frozen=True)
class _Leaf:
    """One of a block's inputs: rows along ``dim`` of a tensor, or the same for every batch."""

    dim: int | None
    constant: Any = None
    layout: torch.memory_format = torch.contiguous_format

    def restore(self, rows: Tensor) -> Tensor:
        return rows.movedim(0, self.dim).contiguous(memory_format=self.layout)


def _leaf(of_one: Any, of_two: Any) -> _Leaf:
    """Tell by two batches' inputs, of one row and of two, which dimension holds the rows."""
    if not isinstance(of_one, Tensor) or of_one.shape == of_two.shape:
        return _Leaf(None, of_one)
    sizes = list(zip(of_one.shape, of_two.shape, strict=True))
    dims = [dim for dim, (a, b) in enumerate(sizes) if a != b]
    if len(dims) != 1 or sizes[dims[0]] != (1, 2):
        raise DoesNotFit("a block's input does not hold one row for each image")
    return _Leaf(dims[0], layout=_layout(of_one))


def _layout(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _check_equal(replayed: Tensor, direct: Tensor) -> None:
    if replayed.shape != direct.shape:
        raise DoesNotFit("a replay of its blocks gives features of another shape")
    tolerance = _TOLERANCE if direct.dtype == torch.float32 else _HALF_TOLERANCE
    error = (replayed - direct).abs().max() / direct.abs().max()
    if not error <= tolerance:  # not a number, too
        raise DoesNotFit("a replay of its blocks gives other features")


@dataclass(frozen=True)
class Recording:
    """One forward pass, as far as it concerns the first adapted block.

    Attributes:
        block: the first adapted block.
        inputs: (args, kwargs) of each of its calls.
        finished: for every module that was done before each of them, the shapes that it returned.
        output: of the whole pass.
    """

    block: nn.Module
    inputs: list[tuple[tuple, dict]]
    finished: dict[nn.Module, list[Any]]
    output: Any

    @contextmanager
    def replayed(self, inputs: Sequence[tuple[tuple, dict]]) -> Iterator[None]:
        """Give the block these inputs instead, and leave out what is before it.

        For one forward pass on a batch of the recorded shape.
        """
        queue = iter(inputs)
        hook = self.block.register_forward_pre_hook(lambda *_: next(queue), with_kwargs=True)
        try:
            with replaced_forwards({m: _returning(shapes) for m, shapes in self.finished.items()}):
                yield
        finally:
            hook.remove()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Raise `_Reached` where the block is called."""

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


def record(adapter: Adapter, tower: Tower, run: Callable[[], Any]) -> Recording:
    """Run a forward pass of a tower, and note what its first adapted block gets.

    Raises:
        DoesNotFit: there is no such block, it is not called, or weights before it are adapted.
    """
    block = _first_adapted_block(adapter, tower)
    inputs: list[tuple[tuple, dict]] = []
    started: list[int] = []
    calls: dict[nn.Module, list[tuple[int, int, Any]]] = {}

    def before(module: nn.Module, *of_call: Any) -> None:
        started.append(len(inputs))
        if module is block:
            inputs.append(of_call)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        calls.setdefault(module, []).append((started.pop(), len(inputs), _shapes(output)))

    with ExitStack() as undo:
        for module in adapter.net.modules():
            hook = module.register_forward_pre_hook(before, with_kwargs=True)
            undo.callback(hook.remove)
            undo.callback(module.register_forward_hook(after).remove)
        output = run()
    if not inputs:
        raise DoesNotFit("its blocks are not called as modules")
    # the n-th call of a module came before the n-th of the block, and after the one before that
    between = [(number, number) for number in range(len(inputs))]
    finished = {
        module: [shapes for _, _, shapes in of_module]
        for module, of_module in calls.items()
        if [(start, end) for start, end, _ in of_module] == between
    }
    for module in finished:
        if any(isinstance(part, AdaptedWeight) for part in module.modules()):
            raise DoesNotFit("weights before its first adapted block are adapted")
    return Recording(block, inputs, finished, output)


def _first_adapted_block(adapter: Adapter, tower: Tower) -> nn.Module:
    weights = [weight for weight in adapter.weights.values() if weight.tower == tower]
    first = min(weight.block for weight in weights)
    names = {block_name(weight.name) for weight in weights if weight.block == first} - {None}
    if len(names) != 1:
        raise DoesNotFit("its first adapted weight lies in no block")
    return adapter.net.get_submodule(names.pop())


def _shapes(output: Any) -> Any:
    """Replace each tensor by one that takes no memory."""
    return tree_map_only(Tensor, lambda tensor: tensor.new_zeros(()).expand(tensor.shape), output)


def _returning(outputs: Sequence[Any]) -> Replacement:
    """Return what lets a module's calls return zeros like these outputs, one after the other."""
    queue = iter(outputs)
    return lambda *_, **__: tree_map_only(Tensor, torch.zeros_like, next(queue))


@contextmanager
def _refusing_what_fails() -> Iterator[None]:
    """Turn whatever a tower raises when it is not called as usual into `DoesNotFit`."""
    try:
        yield
    except DoesNotFit:
        raise
    except Exception as error:
        raise DoesNotFit(f"a replay of its blocks fails ({type(error).__name__})") from error
