"""Which images to label first: one for each group of images, the largest groups first."""

import math

import pytest
import torch

import clip_randlora as cr

SIZES = (12, 9, 8)
"""Images of three groups around three directions: rows 0 to 11, 12 to 20 and 21 to 28."""


def groups(sizes=SIZES, spread=0.05) -> torch.Tensor:
    noise = spread * torch.randn(sum(sizes), 8, generator=torch.Generator().manual_seed(0))
    middles = torch.eye(8)[torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)])]
    return torch.nn.functional.normalize(middles + noise, dim=1)


def group_of(row: int) -> int:
    return 0 if row < 12 else 1 if row < 21 else 2


def test_each_group_gets_an_image_the_largest_first():
    chosen = cr.suggest_next(groups(), None, 3)
    assert [group_of(row) for row in chosen] == [0, 1, 2]


def test_a_shorter_list_is_the_beginning_of_a_longer_one():
    features = groups(spread=0.3)
    every = cr.suggest_next(features, None, 100)
    assert sorted(every) == list(range(29))
    assert cr.suggest_next(features, None, 5) == every[:5]


def test_what_is_labelled_already_is_not_chosen_again():
    features = groups()
    chosen = cr.suggest_next(features, None, 2, features[:1])
    assert [group_of(row) for row in chosen] == [1, 2]


def test_the_first_choice_is_the_one_that_covers_most():
    # by hand: of points at 0, 20 and 40 degrees, the middle one is nearest to the others
    angles = torch.tensor([0, 20, 40]) * math.pi / 180
    assert cr.suggest_next(torch.stack([angles.cos(), angles.sin()], dim=1), None, 1) == [1]


def test_images_that_the_model_is_unsure_of_count_more():
    sure, unsure = torch.tensor([0.98, 0.01, 0.01]), torch.tensor([0.4, 0.3, 0.3])
    probabilities = torch.stack([sure if group_of(row) == 0 else unsure for row in range(29)])
    chosen = cr.suggest_next(groups(), probabilities, 2)
    assert [group_of(row) for row in chosen] == [1, 2]


def test_an_image_stands_less_for_those_with_another_answer():
    features = groups((20, 2))
    probabilities = torch.tensor([0.8, 0.2]).repeat(22, 1)
    probabilities[10:] = torch.tensor([0.2, 0.8])  # of the first group, a half; and the second
    first, second = cr.suggest_next(features, probabilities, 2)
    assert {first < 10, second < 10} == {True, False} and max(first, second) < 20
    # with a label of the first answer there, the other answer comes first
    labelled = features[:1], torch.tensor([0])
    assert 10 <= cr.suggest_next(features, probabilities, 1, *labelled)[0] < 20
    in_full = features[:1], torch.tensor([[1.0, 0.0]])
    assert cr.suggest_next(features, probabilities, 9, *in_full) == cr.suggest_next(
        features, probabilities, 9, *labelled
    )


def test_of_very_many_images_a_draw_is_chosen_from():
    features = groups((3000, 2500, 500))
    chosen = cr.suggest_next(features, None, 3)
    assert [(row >= 3000) + (row >= 5500) for row in chosen] == [0, 1, 2]
    more = cr.suggest_next(features, None, 50)
    assert more[:3] == chosen and more != cr.suggest_next(features, None, 50, seed=1)


def test_no_images_or_copies_of_one():
    assert cr.suggest_next(torch.empty(0, 4), None, 3) == []
    copies = groups()[:1].repeat(300, 1)
    assert sorted(cr.suggest_next(copies, None, 999)) == list(range(300))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((groups(), None, -1), "count: -1"),
        ((groups()[0], None, 1), "features: of shape"),
        ((groups(), torch.ones(3, 2), 1), "probabilities: of 3 images"),
        ((groups(), None, 1, torch.ones(2, 5)), "labelled: of shape"),
        ((groups(), None, 1, None, torch.ones(2)), "labels: give one"),
        ((groups(), torch.ones(29, 2), 1, groups()[:1], torch.tensor([2])), "not from 0 to 1"),
        ((groups(), torch.ones(29, 2), 1, groups()[:1], torch.ones(1, 3)), "of 3 classes"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(cr.UserError, match=message):
        cr.suggest_next(*arguments)
