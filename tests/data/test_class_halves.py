"""The base and the novel classes of a data set."""

from pathlib import Path

import pytest
from helpers.images import write_classes

from clip_randlora.data import draw_shots, load_data, select_classes
from clip_randlora.errors import UserError

NAMES = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture(scope="module")
def beasts(tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp("halves") / "beasts", NAMES, images=5, side=32)


def test_the_first_half_rounded_up_is_base_and_the_others_are_novel(beasts):
    data = load_data(beasts)
    base, novel = select_classes(data, "base"), select_classes(data, "novel")
    assert (base.classes, novel.classes) == (("ant", "bee", "cat"), ("dog", "elk"))
    for half in (base, novel):
        for split in (half.train, half.test):
            assert split.classes == half.classes
            assert {item.name.split("/")[0] for item in split} == set(half.classes)
            assert all(half.classes[item.label] == item.name.split("/")[0] for item in split)
    assert len(base.test) + len(novel.test) == len(data.test)
    assert "The novel classes: 2 of 5, dog to elk." in novel.notes


def test_a_class_has_the_draw_of_the_whole_set(beasts):
    data = load_data(beasts)
    whole, base = draw_shots(data.train, 2, 1), draw_shots(select_classes(data, "base").train, 2, 1)
    assert [[item.name for item in base[label]] for label in range(3)] == [
        [item.name for item in whole[label]] for label in range(3)
    ]


def test_too_few_classes_are_an_error(tmp_path):
    data = load_data(write_classes(tmp_path / "few", NAMES[:3], side=32))
    with pytest.raises(UserError, match="few: 3 classes; base and novel classes need two each"):
        select_classes(data, "base")
