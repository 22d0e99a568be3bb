"""Random resized crop and flip of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms.v2 import functional

from clip_randlora.data import augment
from clip_randlora.data.augmentation import crop_and_resize, random_boxes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator())


@pytest.mark.parametrize("size", [48, 64, 100])
def test_agrees_with_torchvision_on_the_same_boxes(size):
    images = noise(32, 64)
    boxes = random_boxes(32, 64, generator(), (0.2, 1.0), (3 / 4, 4 / 3))
    flips = torch.arange(32) % 2 == 1
    result = crop_and_resize(images, boxes, flips, size)
    for image, box, flip, ours in zip(images, boxes, flips, result, strict=True):
        theirs = functional.resized_crop(image.float(), *box.tolist(), [size, size]) / 255
        theirs = theirs.flip(-1) if flip else theirs
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_crop_of_everything_changes_nothing():
    images = noise(4, 32)
    result = augment(images, 32, generator(), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    torch.testing.assert_close(result, images / 255, atol=1e-6, rtol=0)


def test_flips_half_of_the_images():
    ramp = torch.arange(16, dtype=torch.uint8).mul(16).expand(1000, 3, 16, 16)
    result = augment(ramp, 16, generator())
    flipped = (result[:, 0, 8, 0] > result[:, 0, 8, -1]).float().mean()
    assert 0.45 < flipped < 0.55
    assert (augment(ramp, 16, generator(), flip=False).diff(dim=-1) >= -1e-6).all()


def test_boxes_have_the_asked_area_and_ratio_and_lie_inside():
    scale, ratio = (0.5, 1.0), (3 / 4, 4 / 3)
    top, left, height, width = random_boxes(20_000, 1000, generator(), scale, ratio).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1000
    area = height * width / 1e6
    assert area.min() > scale[0] - 0.002
    assert (width / height).min() > ratio[0] - 0.01
    assert (width / height).max() < ratio[1] + 0.01
    # torchvision's own distribution: areas uniform among those that fit, shapes log-symmetric
    assert abs(torch.log(width / height).mean()) < 0.01
    assert 0.69 < area.mean() < 0.75
    assert abs((top.double() - (1000 - height - top)).mean()) < 5  # centred on average


def test_boxes_for_shapes_that_never_fit_are_whole():
    boxes = random_boxes(8, 50, generator(), (1.0, 1.0), (math.sqrt(2), 2.0))
    assert boxes.tolist() == [[0, 0, 50, 50]] * 8


def test_the_same_generator_gives_the_same_crops():
    images = noise(8, 40)
    first, second = generator(3), generator(3)
    for _ in range(2):
        assert torch.equal(augment(images, 32, first), augment(images, 32, second))
    assert not torch.equal(augment(images, 32, first), augment(images, 32, generator(3)))
    state = first.get_state()
    expected = augment(images, 32, first)
    first.set_state(state)  # as a resumed run does
    assert torch.equal(augment(images, 32, first), expected)


def test_result_type_and_range():
    result = augment(noise(5, 40), 36, generator())
    assert result.shape == (5, 3, 36, 36)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
