"""RandLoRA's update: full rank from frozen random bases, of which only diagonals are trained."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain

import torch
from torch import Tensor, nn

from clip_randlora.adapters.bases import Bases, SeededBases, Source, StoredBases, number_of_bases
from clip_randlora.adapters.config import RandLoRA
from clip_randlora.adapters.delta import Delta, largest_sides
from clip_randlora.adapters.fast.basis_matmul import Products, SparseProducts, products_with

_STEPWISE_ON = ("cpu",)  # there, what fits the cache is faster; elsewhere, few launches
_ROWS_IN_CACHE = 256  # of a weight; three runs of rows fit a core's cache


class _RandLoRAUpdate(torch.autograd.Function):
    """``W + scale * sum_i B_i diag(lambda_i) A diag(gamma_i)``, with all B_i as one matrix.

    Column ``k n + i`` of the matrix is the k-th of B_i, so it meets row k of A, scaled by i's
    diagonals: one product does the whole sum.

    Backward needs only ``M = B^T G``, so nothing but the inputs is kept between the passes, and
    nothing in either pass has a size that depends on the batch or the number of tokens.
    """

    @staticmethod
    def forward(ctx, weight, products, a, scale, transposed, dtype, *diagonals: Tensor) -> Tensor:
        """Update a weight of P equal parts, each with a lambda and a gamma in ``diagonals``."""
        ctx.save_for_backward(a, *diagonals)
        ctx.products, ctx.scale, ctx.transposed = products, scale, transposed
        updated = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        for w, out, lam, gamma in _parts(weight, updated, diagonals):
            update = products.update(_scale_a(a, lam, gamma, products.dtype), transposed)
            _add(w, update, scale, out)
        return updated

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        a, *diagonals = ctx.saved_tensors
        grads = []
        for part, _, lam, gamma in _parts(grad, grad, diagonals):
            g = part.to(ctx.products.dtype)
            m = ctx.products.contract(g.mT if ctx.transposed else g)
            of_lam, of_gamma = contract(m.to(lam.dtype), a, lam, gamma, ctx.scale)
            grads += [of_lam, of_gamma] if lam.dim() == 2 else _alternate(of_lam, of_gamma)
        return None, None, None, None, None, None, *grads


def _parts(
    weight: Tensor, other: Tensor, diagonals: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of both (D, d), lambda (n, r) and gamma (n, d), or all of them with P in front.

    On a CPU one part after the other fits the cache; elsewhere each launch costs more.
    """
    lams, gammas = diagonals[::2], diagonals[1::2]
    count = len(lams)
    if _goes_stepwise(weight) or count == 1:
        yield from zip(weight.chunk(count), other.chunk(count), lams, gammas, strict=True)
    else:
        parts = (tensor.unflatten(0, (count, -1)) for tensor in (weight, other))
        yield *parts, torch.stack(tuple(lams)), torch.stack(tuple(gammas))


def _alternate(lams: Tensor, gammas: Tensor) -> Iterator[Tensor]:
    return chain.from_iterable(zip(lams, gammas, strict=True))


def _goes_stepwise(tensor: Tensor) -> bool:
    return tensor.device.type in _STEPWISE_ON


def _add(weight: Tensor, update: Tensor, scale: float, out: Tensor) -> None:
    """Write ``weight + scale * update`` to ``out``, rounded once if that is of another dtype."""
    rows = len(weight)
    if _goes_stepwise(weight) and update.dtype != weight.dtype:
        rows = _ROWS_IN_CACHE  # torch converts a whole operand before it adds
    for w, u, o in zip(weight.split(rows), update.split(rows), out.split(rows), strict=True):
        torch.add(w, u, alpha=scale, out=o)


def _scale_a(a: Tensor, lam: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``lambda_ik a_kj gamma_ij`` as (..., r n, d), row ``k n + i``."""
    if not _goes_stepwise(a):
        return _scale_at_once(a, lam, gamma, dtype)
    scaled = a.new_empty(a.shape[0], *gamma.shape, dtype=dtype)
    for k, row in enumerate(a):  # one run of rows at a time stays in the cache
        torch.mul(gamma * row, lam[:, k : k + 1], out=scaled[k])
    return scaled.flatten(0, 1)


def _scale_at_once(a: Tensor, lam: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    scaled = (gamma[..., None, :, :] * a[:, None]).mul_(lam.mT[..., None])
    return scaled.flatten(-3, -2).to(dtype)


def contract(
    m: Tensor, a: Tensor, lam: Tensor, gamma: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of lambda (n, r) and gamma (n, d) from ``M = B^T G`` (r n, d).

    Each may have further dimensions in front, but not on a CPU; ``m`` may be written to.
    """
    if not _goes_stepwise(m):
        return _contract_at_once(m, a, lam, gamma, scale)
    grad_lam, grad_gamma = torch.empty_like(lam), torch.zeros_like(gamma)
    for k, (rows, row) in enumerate(zip(m.view(a.shape[0], *gamma.shape), a, strict=True)):
        rows.mul_(row)
        grad_gamma.addcmul_(rows, lam[:, k : k + 1], value=scale)
        grad_lam[:, k] = rows.mul_(gamma).sum(dim=1).mul_(scale)
    return grad_lam, grad_gamma


def _contract_at_once(
    m: Tensor, a: Tensor, lam: Tensor, gamma: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    m = m.unflatten(-2, (a.shape[0], -1)) * a[:, None].mul(scale)
    grad_gamma = (m * lam.mT[..., None]).sum(dim=-3)
    return m.mul_(gamma[..., None, :, :]).sum(dim=-1).mT, grad_gamma


def randlora_delta(
    basis_b: Tensor, basis_a: Tensor, lam: Tensor, gamma: Tensor, scale: float
) -> Tensor:
    """Form the full-rank update of a weight from frozen bases and trained diagonals.

    ``dW = scale * sum_{i=1..n} B_i diag(lambda_i) A diag(gamma_i)``
    (RandLoRA, arXiv 2502.00987, eq. 4; one ``A`` is shared by all i).

    Args:
        basis_b: (n, D, r), frozen.
        basis_a: (r, d), frozen.
        lam: (n, r), trained.
        gamma: (n, d), trained.
        scale: alpha / r.

    Returns:
        (D, d), of the inputs' dtype; differentiable once in ``lam`` and ``gamma``.

    Raises:
        ValueError: the shapes do not fit together, named.
    """
    n, _, rank = basis_b.shape
    columns = basis_a.shape[-1]
    expected = {"basis_a": (rank, columns), "lam": (n, rank), "gamma": (n, columns)}
    for name, tensor in (("basis_a", basis_a), ("lam", lam), ("gamma", gamma)):
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {expected[name]}")
    matrix = Bases(basis_b, basis_a).matrix()
    nothing = matrix.new_zeros(()).expand(len(matrix), columns)
    products = Products(matrix)
    return _RandLoRAUpdate.apply(nothing, products, basis_a, scale, False, matrix.dtype, lam, gamma)


class RandLoRADelta(Delta):
    """RandLoRA's update; trains lambda (n, r), zero at first, and gamma (n, d), 1 / max(n, d).

    A weight that is wider than tall is updated through its transpose, so that D >= d.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        config: RandLoRA,
        source: Source,
        products: Callable[..., Products],
    ):
        super().__init__(shape)
        self.rows, self.columns = max(shape), min(shape)
        self.scale = config.scale
        self.source, self.products = source, products
        count = number_of_bases(self.columns, config.rank)
        self.lam = nn.Parameter(torch.zeros(count, config.rank))
        self.gamma = nn.Parameter(torch.full((count, self.columns), 1 / max(count, self.columns)))

    def forward(self) -> Tensor:
        """Return dW, (out, in)."""
        # asked for at each use, not held: one pair a device serves all layers, wherever they move
        bases = self.source.pair(self.lam.dtype, self.lam.device).sliced(self.rows, self.columns)
        update = randlora_delta(*bases, self.lam, self.gamma, self.scale)
        return update if update.shape == self.shape else update.T

    def basis_a(self) -> Tensor:
        """Return A, (r, d), as this weight uses it."""
        return self.source.basis_a(self.lam.dtype, self.lam.device)[:, : self.columns]

    def is_cheap(self, dtype: torch.dtype) -> bool:
        """Tell whether to form it again is worth the memory: if very sparse, and tall."""
        return self.rows > self.columns and isinstance(self.products_for(dtype), SparseProducts)

    def products_for(self, dtype: torch.dtype) -> Products:
        """Return what multiplies with the bases where the updated weight is to be of ``dtype``."""
        in_products = dtype if dtype == torch.bfloat16 else self.lam.dtype
        return self.products(self.rows, self.columns, in_products, self.lam.device)

    @staticmethod
    def all_added_to(
        weight: Tensor, deltas: "list[RandLoRADelta]", strength: float, dtype: torch.dtype
    ) -> Tensor:
        """Return, in ``dtype``, a weight whose equal parts each get their own update.

        For bfloat16 the products are bfloat16's, with sums in float32; the update is added to
        the weight before that is rounded.
        """
        first = deltas[0]
        diagonals = [tensor for delta in deltas for tensor in (delta.lam, delta.gamma)]
        products = first.products_for(dtype)
        scale, transposed = strength * first.scale, first.shape[0] < first.shape[1]
        return _RandLoRAUpdate.apply(
            weight, products, first.basis_a(), scale, transposed, dtype, *diagonals
        )


def make_randlora_deltas(
    shapes: list[tuple[int, int]], config: RandLoRA, bases: Bases | None = None
) -> list[Delta]:
    """Make one fresh update for each weight shape (out, in), all from one pair of bases.

    ``bases`` are the frozen bases, if given, instead of those that the seed makes.
    """
    rows, columns = largest_sides(shapes)
    seeded = SeededBases(config.rank, rows, columns, config.bases, config.seed)
    source = StoredBases(bases) if bases else seeded
    products = lru_cache(maxsize=None)(partial(products_with, source))  # one for each shape
    return [RandLoRADelta(shape, config, source, products) for shape in shapes]
