"""KRAdapter's update, by hand and by the numbers of its paper."""

import pytest
import torch

import clip_randlora as cr

# rows of u (4, 2) and v (4, 5) of a weight 4 x 9: r = floor(sqrt(4)), k = ceil(9 / 2)
U = [[1, 2], [0, 1], [-1, 0], [0.5, 3]]
V = [[1, 0, 2, 0, 3], [1, 2, 3, 4, 5], [1, 1, 0, 0, 2], [2, 0, 0, 4, -1]]
# row i is 2 v_i u_i^T, row by row, without the tenth entry
DELTA = [
    [2, 4, 0, 0, 4, 8, 0, 0, 6],
    [0, 2, 0, 4, 0, 6, 0, 8, 0],
    [-2, 0, -2, 0, 0, 0, 0, 0, -4],
    [2, 12, 0, 0, 0, 0, 4, 24, -1],
]


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=["wide", "tall"])
def test_by_hand(shape):
    (delta,) = cr.KRAdapter().make_deltas([shape])
    assert delta.u.shape == (4, 2) and delta.v.shape == (4, 5)
    with torch.no_grad():
        delta.u.copy_(torch.tensor(U))
        delta.v.copy_(torch.tensor(V))
    expected = torch.tensor(DELTA)
    assert torch.equal(delta(), expected if shape == (4, 9) else expected.T)


def test_alpha_is_a_factor():
    twice, once = (cr.KRAdapter(alpha=a, seed=3).make_deltas([(6, 5)])[0] for a in (2.0, 1.0))
    with torch.no_grad():
        twice.u.fill_(0.5)
        once.u.fill_(0.5)
        assert once().any() and torch.equal(twice(), 2 * once())


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((768, 3072), [(768, 27), (768, 114)]),  # 108,288 trainable parameters
        ((768, 768), [(768, 27), (768, 29)]),
        ((1, 5), [(1, 1), (1, 5)]),
        ((16, 16), [(16, 4), (16, 4)]),
    ],
)
def test_sizes(shape, sizes):
    (delta,) = cr.KRAdapter().make_deltas([shape])
    assert [tuple(parameter.shape) for parameter in delta.parameters()] == sizes
    assert delta().shape == shape


def test_the_update_has_full_rank():
    (delta,) = cr.KRAdapter().make_deltas([(20, 30)])
    with torch.no_grad():
        delta.u.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(delta()) == 20


def test_the_start_follows_the_seed():
    """Uniform within sqrt(6 / 26 / k), Kaiming's bound with a = 5."""
    first, same, other = (
        cr.KRAdapter(seed=seed).make_deltas([(400, 400)])[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first.v, same.v) and not torch.equal(first.v, other.v)
    bound = (6 / 26 / 20) ** 0.5
    assert 0.99 * bound < first.v.detach().abs().max() <= bound
    assert not first.u.any()
