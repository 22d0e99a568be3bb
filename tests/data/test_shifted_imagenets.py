"""ImageNet-V2, -Sketch, -A and -R: which folder is which class, of how many."""

from pathlib import Path

import pytest
import yaml
from helpers.images import encoded, picture
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from timm.data.imagenet_info import ImageNetInfo

from clip_randlora.data import find_dataset_spec, load_data
from clip_randlora.errors import UserError

WORDNET_IDS = ImageNetInfo("imagenet-1k").label_names()
TINY = encoded(picture(0, 8))


def write_folders(root: Path, names) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(TINY)


def write_set(tmp_path: Path, names, **fields) -> Path:
    write_folders(tmp_path / "images", names)
    spec = {"name": "shifted", "folder": "images", "test_only": True, "class_folders": "top"}
    path = tmp_path / "shifted.yaml"
    path.write_text(yaml.safe_dump(spec | {"classes": "open_clip:imagenet"} | fields))
    return path


def test_numbered_folders_count_as_numbers(tmp_path):
    data = load_data(write_set(tmp_path, ["0", "1", "2", "10", "100", "999"]))
    numbers = {item.name.split("/")[0]: data.classes[item.label] for item in data.test}
    assert numbers == {name: IMAGENET_CLASSNAMES[int(name)] for name in numbers}
    assert numbers["10"] == "brambling"  # sorted as texts, 10 would be the third and a shark
    assert list(data.classes) == [IMAGENET_CLASSNAMES[n] for n in (0, 1, 2, 10, 100, 999)]


def test_all_of_imagenet_v2_is_in_the_order_of_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    write_folders(
        tmp_path / find_dataset_spec("imagenet_v2").folder, map(str, reversed(range(1000)))
    )
    data = load_data("imagenet_v2")
    assert [item.label for item in data.test] == list(range(1000))
    assert all(item.name == f"{item.label}/0.png" for item in data.test)
    assert data.classes[2] == "great white shark" and data.classes[10] == "brambling"
    # the list has "missile" and "sunglasses" twice
    assert (data.classes[744], data.prompts[data.classes[744]]) == (
        "missile (744)",
        ("projectile",),
    )
    assert len(data.train) == 0 and not data.held_out


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_a_subset_answers_among_its_own_classes(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    chosen = WORDNET_IDS[3::5]
    root = tmp_path / find_dataset_spec(name).folder
    write_folders(root, chosen)
    (root / "README.txt").write_text("about")
    data = load_data(name)
    assert len(data.classes) == 200
    assert data.classes[:2] == (IMAGENET_CLASSNAMES[3], IMAGENET_CLASSNAMES[8])
    assert [item.name.split("/")[0] for item in data.test] == chosen
    assert [item.label for item in data.test] == list(range(200))
    assert data.prompts[data.classes[0]] == (IMAGENET_CLASSNAMES[3],)


def test_a_folder_that_is_no_class_is_an_error(tmp_path):
    path = write_set(tmp_path, ["n01440764", "n01443537", "n00000001"])
    with pytest.raises(UserError, match=r"classes: n00000001 is no class of ImageNet; remove"):
        load_data(path)


@pytest.mark.parametrize("name", ["imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"])
def test_a_missing_one_says_where_from_and_where_to(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    spec = find_dataset_spec(name)
    assert spec.name == name and spec.test_only and spec.images["test"] and spec.citation
    with pytest.raises(UserError, match=rf"not on this machine; .*{spec.folder.split('/')[0]}/"):
        load_data(name)
