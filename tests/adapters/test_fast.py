"""The fast forms give what the formula on the method's page gives: values and gradients."""

import pytest
import torch

import clip_randlora as cr
from clip_randlora.adapters.fast import add_updates

STRENGTH = 0.7


def by_the_formula(weight: torch.Tensor, deltas, strength: float) -> torch.Tensor:
    """Add each part's update as `randlora_delta` defines it, in the weight's dtype."""
    updates = []
    for delta in deltas:
        bases = delta.bases.pair(weight.dtype, weight.device).sliced(delta.rows, delta.columns)
        update = cr.randlora_delta(*bases, delta.lam, delta.gamma, delta.scale)
        updates.append(update.T if delta.is_transposed else update)
    return weight + strength * torch.cat(updates)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bases", ["uniform", "sparse", "very_sparse"])
@pytest.mark.parametrize(
    ("shape", "parts"), [((48, 20), 1), ((20, 48), 1), ((32, 32), 3), ((600, 20), 1)]
)
def test_the_fast_forms_are_the_formula(shape, parts, bases, dtype):
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    deltas = cr.RandLoRA(rank=6, bases=bases).make_deltas([shape] * parts)
    for delta in deltas:
        delta.to(exact)
        for parameter in delta.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
    weight = torch.randn(parts * shape[0], shape[1], generator=generator, dtype=exact)
    gradient = torch.randn(weight.shape, generator=generator, dtype=exact)
    rows = [slice(part * shape[0], (part + 1) * shape[0]) for part in range(parts)]
    parameters = [parameter for delta in deltas for parameter in delta.parameters()]

    expected = by_the_formula(weight, deltas, STRENGTH)
    wanted = torch.autograd.grad(expected, parameters, gradient)
    updated = add_updates(weight, rows, deltas, STRENGTH, dtype)
    found = torch.autograd.grad(updated, parameters, gradient.to(dtype))

    assert updated.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for ours, theirs in zip((updated, *found), (expected, *wanted), strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_rows_that_no_part_adapts_stay_as_they_are():
    """Of a packed q, k, v, only q and v say."""
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    q, v = cr.RandLoRA(rank=2).make_deltas([(2, 4)] * 2)
    with torch.no_grad():
        q.lam.fill_(1.0)
        v.lam.fill_(-2.0)
        updated = add_updates(weight, [slice(0, 2), slice(4, 6)], [q, v], 1.0, torch.float32)
    assert torch.equal(updated[2:4], weight[2:4])
    torch.testing.assert_close(updated[:2], weight[:2] + q())
    torch.testing.assert_close(updated[4:], weight[4:] + v())
