"""Data set specs: the YAML files, and loading of small sets in the sources' own formats."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import struct
import sys
from pathlib import Path

import datasets
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from clip_randlora import cli
from clip_randlora.classifier import Classifier
from clip_randlora.clip.models import load_model
from clip_randlora.data import decode_shots, find_dataset_spec, load_data, packaged_specs
from clip_randlora.data.dataset_spec import read_dataset_spec
from clip_randlora.errors import UserError
from clip_randlora.few_shot import Interrupted, TrainConfig, fit
from clip_randlora.runs.held_out import find_test_images
from clip_randlora.utils import paths

ROOT = Path(__file__).parents[2]
COOP = {
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101",
    "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
}  # fmt: skip
PAPER = COOP | {
    "cifar10", "cifar100", "mnist", "svhn", "gtsrb", "resisc45", "stl10", "voc2007", "cub200",
    "country211", "caltech256",
}  # fmt: skip

SHIFTED = {"imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"}


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process, without importing everything again."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip-randlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, *capsys.readouterr()

    monkeypatch.setattr(cli.results, "_width", 300)
    return run


def draw(path: Path, number: int) -> Path:
    """Write a different small picture for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (number * 37 % 256, number // 7 % 256, number * 91 % 256)
    Image.new("RGB", (12, 10), colour).save(path)
    return path


def classes_of(name: str) -> list[str]:
    """Return the class names in the source of a packaged set, as its spec states them."""
    return list(find_dataset_spec(name).classes)


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(str, lines)) + "\n")


def test_the_columns_of_a_table_stay_with_the_run(command, tiny_folder, tmp_path, monkeypatch):
    for number in range(12):
        draw(tmp_path / f"photos/{number}.png", number)
    kinds = [("red", "big"), ("red", "small"), ("blue", "big"), ("blue", "small")]
    rows = [f"{n},{colour},{size}" for n, (colour, size) in enumerate(kinds * 3)]
    write_lines(tmp_path / "photos/labels.csv", ["id,colour,size", *rows])
    monkeypatch.chdir(tmp_path)
    options = ("--model", tiny_folder, "--shots", 1, "--steps", 1, "--out", "run")
    status, _, errors = command("train", "photos/labels.csv", *options)
    assert status == 2 and "2 columns may be the label (colour, size)" in errors
    options += ("--columns", "label=size")
    status, _, errors = command("train", "photos/labels.csv", *options)
    assert status == 0, errors
    assert "columns path=id,label=size" in " ".join(errors.split())
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["data"]["columns"] == "label=size"
    assert config["classes"] == ["big", "small"]
    status, answers, errors = command("eval", "run", "photos/labels.csv", "--json")
    assert status == 0, errors
    assert {row["label"] for row in json.loads(answers)["predictions"]} == {"big", "small"}
    status, _, errors = command("eval", "run", "photos", "--columns", "label=colour")
    assert status == 2 and "the run does not know the class 'blue'" in errors


# --- the YAML files ---------------------------------------------------------------------------


def test_the_papers_22_sets_are_described():
    assert set(packaged_specs()) == PAPER | SHIFTED
    assert len(PAPER) == 22


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_packaged_description_is_whole(name):
    entry = find_dataset_spec(name)
    assert entry.name == name
    assert entry.description and entry.licence and entry.homepage and entry.citation
    assert entry.templates and all(template.count("{}") == 1 for template in entry.templates)
    assert entry.images["train"] >= entry.number_of_classes
    assert ("test" in entry.images) == bool(entry.test or entry.test_files)
    if entry.classes == "open_clip:imagenet":
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as names
    else:
        names = entry.classes.values() if isinstance(entry.classes, dict) else entry.classes
        assert len(set(names)) == len(names)
    assert len(names) == entry.number_of_classes
    # a name that ends with a full stop would be taken as a whole prompt
    assert not [name for name in names if name.endswith(".") or name != name.strip()]
    if entry.torchvision:
        constructor = inspect.signature(getattr(torchvision.datasets, entry.torchvision))
        for split in (entry.train, entry.test):
            arguments = {"split": split} if isinstance(split, str) else split or {}
            constructor.bind("root", download=False, **arguments)
    if entry.hub:
        assert re.fullmatch(r"[\w-]+/[\w-]+", entry.hub)
        assert entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision)


def test_coop_sets_have_coops_one_template():
    assert all(len(find_dataset_spec(name).templates) == 1 for name in COOP)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"folder": None}, "give one of hub, torchvision, folder and shards, not none of them"),
        ({"hub": "org/name"}, "not hub and folder"),
        ({"templates": ["a photo"]}, "template 'a photo': write {} once"),
        ({"templates": "a {}"}, "templates: "),
        ({"classes": ["cat", "cat"]}, "classes: 'cat' is there twice"),
        ({"classes": {"a": "cat", "b": "cat"}}, "classes: 'cat' is there twice"),
        ({"classes": [0, 1]}, "classes: 0 is not a text; put it into quotation marks"),
        ({"classes": {"norway": False, "sweden": "se"}}, "classes: False is not a text"),
        ({"classes": 3}, "classes: give a list of names"),
        ({"number_of_classes": 3}, "classes: 2 names, number_of_classes is 3"),
        ({"train": {"split": "train"}}, "train: give one name"),
        ({"revision": "abc"}, "revision: only for a hub"),
        ({"folder": None, "torchvision": "DTD"}, "on_disk: needed with torchvision"),
        ({"test": "x", "test_files": "*"}, "test_files: not together with test"),
        ({"test": "x", "test_only": True}, "test_only: not together with train, test or test_fi"),
        ({"coop_split": {"file": "a", "images": ["b"], "split": 1}}, "split: no such setting"),
        ({"colums": {}}, "colums: no such setting; did you mean columns?"),
        ({"file": "x"}, "file: no such field"),
        ({"name": None}, "name: "),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, changed, says):
    fields = {"name": "pets", "folder": "photos", "classes": ["cat", "dog"]} | changed
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in fields.items() if v is not None}))
    with pytest.raises(UserError) as error:
        read_dataset_spec(path)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "just words"])
def test_a_file_that_is_no_description_is_named(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml: "):
        load_data(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        load_data(tmp_path / "none.yaml")


def test_configs_are_found_in_a_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "clip_randlora").mkdir()
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "clip_randlora")
    assert paths.configs_folder() == tmp_path / "configs"
    (tmp_path / "clip_randlora" / "configs").mkdir()
    assert paths.configs_folder() == tmp_path / "clip_randlora" / "configs"


# --- torchvision's layouts --------------------------------------------------------------------


def dtd(root: Path) -> None:
    for split, start in (("train", 0), ("test", 100)):
        names = [f"{name}/{name}_{split}.jpg" for name in classes_of("dtd")]
        write_lines(root / f"dtd/dtd/labels/{split}1.txt", names)
        for number, name in enumerate(names, start):
            draw(root / "dtd/dtd/images" / name, number)


def eurosat(root: Path) -> None:
    for kind, name in enumerate(classes_of("eurosat")):
        for number in range(4):
            draw(root / f"eurosat/2750/{name}/{name}_{number}.jpg", 4 * kind + number)


def food101(root: Path) -> None:
    folders = [name.replace(" ", "_") for name in classes_of("food101")]
    for split, start in (("train", 0), ("test", 200)):
        images = {name: [f"{name}/{start + kind}"] for kind, name in enumerate(folders)}
        write_lines(root / f"food-101/meta/{split}.json", [str(images).replace("'", '"')])
        for kind, name in enumerate(folders):
            draw(root / f"food-101/images/{name}/{start + kind}.jpg", start + kind)


def fgvc_aircraft(root: Path) -> None:
    data, names = root / "fgvc-aircraft-2013b/data", classes_of("fgvc_aircraft")
    write_lines(data / "variants.txt", names)
    for split, start in (("train", 0), ("test", 100)):
        lines = [f"{start + kind:07d} {name}" for kind, name in enumerate(names)]
        write_lines(data / f"images_variant_{split}.txt", lines)
        for kind in range(len(names)):
            draw(data / f"images/{start + kind:07d}.jpg", start + kind)


def oxford_pets(root: Path) -> None:
    folder, names = root / "oxford-iiit-pet", classes_of("oxford_pets")
    for split, first in (("trainval", 1), ("test", 2)):
        ids = [f"{name.replace(' ', '_')}_{first}" for name in names]
        lines = [f"{image} {kind} 1 1" for kind, image in enumerate(ids, 1)]
        write_lines(folder / f"annotations/{split}.txt", lines)
        for kind, image in enumerate(ids):
            draw(folder / f"images/{image}.jpg", 50 * first + kind)


def gtsrb(root: Path) -> None:
    kinds = len(classes_of("gtsrb"))
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for kind in range(kinds):
        draw(root / f"gtsrb/GTSRB/Training/{kind:05d}/00000_00000.ppm", kind)
        name = f"{kinds - kind:05d}.ppm"
        draw(root / "gtsrb/GTSRB/Final_Test/Images" / name, 100 + kind)
        lines.append(f"{name};12;10;0;0;12;10;{kind}")
    write_lines(root / "gtsrb/GT-final_test.csv", lines)


def country211(root: Path) -> None:
    for split, start in (("train", 0), ("test", 211)):
        for kind in range(211):  # as ISO codes sort: torchvision numbers the folders in that order
            code = chr(65 + kind // 26) + chr(65 + kind % 26)
            draw(root / f"country211/{split}/{code}/0.jpg", start + kind)


def caltech101(root: Path) -> None:
    folder = root / "caltech101/101_ObjectCategories"
    for kind, name in enumerate(["BACKGROUND_Google", *classes_of("caltech101")]):
        for number in (1, 2, 3):
            draw(folder / f"{name}/image_{number:04d}.jpg", 3 * kind + number)


def caltech256(root: Path) -> None:
    folder = root / "caltech256/256_ObjectCategories"
    for kind, name in enumerate(classes_of("caltech256"), 1):
        for number in (1, 2):
            path = f"{kind:03d}.{name.replace(' ', '-')}/{kind:03d}_{number:04d}.jpg"
            draw(folder / path, 2 * kind + number)


def mnist(root: Path) -> None:
    for split in ("train", "t10k"):
        folder = root / "MNIST/raw"
        folder.mkdir(parents=True, exist_ok=True)
        labels = bytes(reversed(range(10)))
        images = bytes(value for label in labels for value in [20 * label] * 784)
        header = struct.pack(">4B3i", 0, 0, 8, 3, 10, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images)
        header = struct.pack(">4Bi", 0, 0, 8, 1, 10)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels)


def voc2007(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2007"
    for split, start in (("trainval", 0), ("test", 2)):
        write_lines(folder / f"ImageSets/Main/{split}.txt", [f"{start:06d}", f"{start + 1:06d}"])
        names = classes_of("voc2007")
        for image, inside in ((start, names[:12]), (start + 1, names[12:])):
            boxes = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{n + 1}</xmin><ymin>1</ymin>"
                f"<xmax>{n + 1}</xmax><ymax>10</ymax></bndbox></object>"
                for n, name in enumerate(inside)
            )
            text = f"<annotation>{boxes}</annotation>"
            write_lines(folder / f"Annotations/{image:06d}.xml", [text])
            draw(folder / f"JPEGImages/{image:06d}.jpg", image)


LAYOUTS = {
    layout.__name__: layout
    for layout in (
        dtd, eurosat, food101, fgvc_aircraft, oxford_pets, gtsrb, country211, caltech101,
        caltech256, mnist, voc2007,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_torchvisions_own_layout_loads(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    LAYOUTS[name](tmp_path)
    data, entry = load_data(name), find_dataset_spec(name)
    assert len(data.classes) == entry.number_of_classes
    assert set(data.train.counts()) == set(data.test.counts()) == set(range(len(data.classes)))
    assert data.held_out == (entry.test is None)
    assert data.templates == entry.templates
    assert data.prompts == {name: (name,) for name in data.classes}
    assert len({item.name for item in data.train}) == len(data.train)
    for item in (data.train.items[0], data.test.items[-1]):
        assert item.open().mode == "RGB"
        assert item.content.size > 0
    names = [folded(name) for name in data.classes]
    for item in [*data.train, *data.test]:  # where the path tells the class, it is that class
        told = folded(item.name.split("/")[0].split(".")[-1])
        assert told not in names or names.index(told) == item.label


def folded(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def test_labels_follow_the_source_not_the_order_of_the_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    mnist(tmp_path)
    for item in load_data("mnist").test:
        assert item.open().getpixel((0, 0)) == (20 * item.label,) * 3
    gtsrb(tmp_path)
    by_name = {item.name: item.label for item in load_data("gtsrb").test}
    assert by_name["Images/00043.ppm"] == 0 and by_name["Images/00001.ppm"] == 42


def test_every_object_of_voc_is_cut_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    voc2007(tmp_path)
    data = load_data("voc2007")
    assert len(data.train) == len(data.test) == 20
    assert data.train.items[3].open().size == (1, 10)
    assert "dining table" in data.classes
    assert "cut out by its box" in " ".join(data.notes)


def test_a_missing_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"datasets eurosat --download` fetches it \(94 MB\)"):
        load_data("eurosat")
    with pytest.raises(UserError, match=r"ucf101: not on this machine; .*UCF-101-midframes\.zip"):
        load_data("ucf101")


def test_a_class_more_or_less_on_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    eurosat(tmp_path)
    draw(tmp_path / "eurosat/2750/Glacier/1.jpg", 99)
    with pytest.raises(UserError, match=r"eurosat\.yaml: number_of_classes: 10, .* 11 .*Glacier"):
        load_data("eurosat")
    shutil.rmtree(tmp_path / "eurosat/2750/Glacier")
    shutil.rmtree(tmp_path / "eurosat/2750/Forest")
    with pytest.raises(UserError, match=r"eurosat\.yaml: number_of_classes: 10, the source has 9"):
        load_data("eurosat")


def test_ucf101_takes_the_official_groups_as_test_images(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    for kind, name in enumerate(classes_of("ucf101")):
        folder = "Handstand_Pushups" if name == "Hand Stand Pushups" else name.replace(" ", "_")
        for number, group in enumerate(("01", "07", "08", "25")):
            file = f"UCF-101-midframes/{folder}/v_{folder.replace('_', '')}_g{group}_c01.jpg"
            draw(tmp_path / file, 4 * kind + number)
    data = load_data("ucf101")
    assert len(data.train) == len(data.test) == 202
    assert {item.name[-11:-8] for item in data.test} == {"g01", "g07"}
    for item in data.train:
        assert folded(data.classes[item.label]) == folded(item.name.split("/")[0])


# --- the hub's format -------------------------------------------------------------------------


def write_parquet(root: Path, labels: dict[str, list], label_type, **columns) -> Path:
    """Write splits as the hub has them: ``data/SPLIT-00000-of-00001.parquet``."""
    names = {"image": "image", "label": "label"} | columns
    features = {names["image"]: datasets.Image(), names["label"]: label_type}
    start = 0
    for split, values in labels.items():
        images = [
            Image.new("RGB", (12, 10), ((start + n) * 9 % 256, start, n))
            for n in range(len(values))
        ]
        rows = {names["image"]: images, names["label"]: values}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        made.to_parquet(path)
        start += len(values)
    return root


def describe(path: Path, **fields) -> Path:
    path.write_text(yaml.safe_dump({"name": path.stem} | fields, sort_keys=False))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


CATS = datasets.ClassLabel(names=["bengal_cat", "house_cat", "tabby"])


def test_parquet_with_the_hubs_types_loads(tmp_path):
    labels = {"train": [2, 0, 1, 1, 0, 2], "validation": [1, 0, 2]}
    write_parquet(tmp_path / "cats", labels, CATS)
    names = ["Bengal cat", "house cat", "tabby cat"]
    source = describe(
        tmp_path / "mine.yaml", hub="./cats", test="validation", classes=names,
        templates=["a photo of a {}, a type of cat."],
    )  # fmt: skip
    data = load_data(source)
    assert data.name == "mine"
    assert data.classes == tuple(names)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [item.name for item in data.train] == [f"train/{n}" for n in (1, 4, 2, 3, 0, 5)]
    assert [item.label for item in data.test] == [0, 1, 2]
    assert not data.held_out
    item = data.train.items[0]
    assert item.content.read()[1:4] == b"PNG"  # still encoded: nothing was decoded
    assert item.content.size == len(item.content.read())
    assert item.open().getpixel((0, 0)) == (9, 0, 1)
    assert data.templates == ("a photo of a {}, a type of cat.",)
    assert data.prompts["tabby cat"] == ("tabby cat",)


def test_other_columns_and_labels_that_are_words(tmp_path):
    labels = {"train": ["tabby", "bengal", "tabby", "bengal"], "test": ["tabby"]}
    write_parquet(
        tmp_path / "cats", labels, datasets.Value("string"), image="picture", label="kind"
    )
    columns = {"image": "picture", "label": "kind"}
    data = load_data(describe(tmp_path / "a.yaml", hub="./cats", test="test", columns=columns))
    assert data.classes == ("bengal", "tabby")
    assert data.prompts == {}
    assert [item.label for item in data.test] == [1]
    assert "No test images for bengal." in data.notes
    named = {"tabby": "tabby cat", "bengal": "Bengal cat"}
    data = load_data(
        describe(tmp_path / "b.yaml", hub="./cats", test="test", columns=columns, classes=named)
    )
    assert data.classes == ("Bengal cat", "tabby cat")
    assert [item.label for item in data.test] == [1]


def test_names_in_another_order_than_the_sources_are_sorted_out(tmp_path):
    write_parquet(tmp_path / "cats", {"train": [0, 1, 2] * 2, "test": [0, 1, 2]}, CATS)
    fields = {"hub": "./cats", "test": "test"}
    data = load_data(
        describe(tmp_path / "a.yaml", **fields, classes=["Tabby", "house cat", "Bengal cat"])
    )
    assert data.classes == ("Bengal cat", "house cat", "Tabby")
    with pytest.raises(UserError, match=r"b\.yaml: classes: number 1 is 'wild cat', in the"):
        load_data(describe(tmp_path / "b.yaml", **fields, classes=["house cat", "wild cat", "x"]))


def test_without_a_test_split_a_share_is_held_out(tmp_path):
    write_parquet(tmp_path / "cats", {"train": [0, 1, 2] * 10}, CATS)
    data = load_data(describe(tmp_path / "a.yaml", hub="./cats"))
    assert data.held_out and len(data.test) == 9
    assert any("held out 30 %" in note for note in data.notes)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"test": "nonsense"}, "split 'nonsense' of ./cats cannot be read"),
        ({"columns": {"image": "img"}}, "columns: the data set has no 'img', only image, label"),
        ({"columns": {"image": "label"}}, "columns: 'label' does not hold images"),
        ({"columns": {"label": "image"}}, "columns: 'image' holds neither numbers nor names"),
        ({"classes": ["a", "b"]}, "classes: 2 names, the source has 3 classes"),
        ({"classes": {"tabbi": "a"}}, "classes: the source has no 'tabbi', only bengal_cat, "),
        ({"classes": {"tabby": "house_cat"}}, "classes: 'house_cat' would be there twice"),
        ({"number_of_classes": 4}, "number_of_classes: 4, the source has 3 (bengal_cat, "),
        ({"hub": "./dogs"}, "dogs: not on this machine"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, fields, says):
    write_parquet(tmp_path / "cats", {"train": [0, 1, 2] * 3, "test": [0, 1, 2]}, CATS)
    with pytest.raises(UserError) as error:
        load_data(describe(tmp_path / "dogs.yaml", **({"hub": "./cats", "test": "test"} | fields)))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_labels_without_names_need_names(tmp_path):
    write_parquet(tmp_path / "n", {"train": [0, 1] * 3, "test": [2]}, datasets.Value("int64"))
    fields = {"hub": "./n", "test": "test"}
    with pytest.raises(UserError, match="the source has only numbers; list the names"):
        load_data(describe(tmp_path / "a.yaml", **fields))
    with pytest.raises(UserError, match=r"test/0 has the label 2, there are 2 classes"):
        load_data(describe(tmp_path / "b.yaml", **fields, classes=["zero", "one"]))
    data = load_data(describe(tmp_path / "c.yaml", hub="./n", classes=["zero", "one"]))
    assert data.classes == ("zero", "one")


def test_rows_without_an_image_or_a_label_are_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": CATS})
    rows = {"image": [None, Image.new("RGB", (4, 4))], "label": [0, 1]}
    (tmp_path / "cats").mkdir()
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "cats/train.parquet")
    made.to_parquet(tmp_path / "cats/test.parquet")
    source = describe(tmp_path / "a.yaml", hub="./cats", test="test", classes={"tabby": "cat"})
    with pytest.raises(UserError, match='class "cat": there is no training image'):
        load_data(source)
    rows = {"image": [None, *[Image.new("RGB", (4, 4))] * 3], "label": [0, 0, 1, 2]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "cats/train.parquet")
    drawn = decode_shots(load_data(source).train, 1, 3, lambda image: torch.zeros(3, 2, 2))
    assert len(drawn) == 3
    skipped = decode_shots(load_data(source).train, None, 1, lambda image: torch.zeros(3, 2, 2))
    assert [entry.name for entry in skipped.skipped] == ["train/0"]
    draw(tmp_path / "elsewhere.png", 1)
    paths_only = datasets.Features({"image": datasets.Image(decode=False), "label": CATS})
    rows["image"][0] = {"path": str(tmp_path / "elsewhere.png"), "bytes": None}
    made = datasets.Dataset.from_dict(rows, features=paths_only)
    made.to_parquet(tmp_path / "cats/train.parquet")
    rows["image"][0] = None
    (first, *_) = load_data(source).train
    with pytest.raises(UserError, match="train/0: the row holds a path, not an image"):
        first.open()
    rows["label"][2] = None
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "cats/train.parquet")
    with pytest.raises(UserError, match="train/2 has the label -1, there are 3 classes"):
        load_data(source)


def test_a_downloaded_set_is_read_from_the_cache_alone(tmp_path, monkeypatch):
    """The cache's layout, NAMESPACE___NAME/CONFIG/VERSION/COMMIT, is the library's own."""
    write_parquet(tmp_path / "big_cats", {"train": [0, 1, 2] * 2, "test": [0, 1, 2]}, CATS)
    made = datasets.load_dataset(str(tmp_path / "big_cats"), split="train")
    prepared = Path(made.cache_files[0]["filename"]).parent
    commit = "0123456789" * 4
    shutil.copytree(prepared, tmp_path / "cache/org___big_cats/default/0.0.0" / commit)
    fields = {"hub": "org/BigCats", "test": "test"}
    for file in (tmp_path / "cache/org___big_cats").rglob("*.arrow"):
        assert file.name.startswith("big_cats-")

    def no_network(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    data = load_data(describe(tmp_path / "a.yaml", **fields, revision=commit))
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.train.items[0].open().size == (12, 10)
    with pytest.raises(UserError, match=r"b: not on this machine; .*datasets .*b\.yaml --download"):
        load_data(describe(tmp_path / "b.yaml", **fields, revision="f" * 40))


def test_imagenets_names_are_open_clips_and_all_different(tmp_path):
    kinds = datasets.ClassLabel(names=[f"n{number:08d}" for number in range(1000)])
    write_parquet(tmp_path / "in", {"train": list(range(1000)), "test": [0]}, kinds)
    packaged = yaml.safe_load(packaged_specs()["imagenet"].read_text())
    data = load_data(
        describe(
            tmp_path / "in.yaml", hub="./in", test="test", classes=packaged["classes"],
            number_of_classes=1000,
        )
    )  # fmt: skip
    assert len(set(data.classes)) == 1000
    assert data.classes[0] == "tench"
    assert data.prompts["missile (657)"] == ("missile",)
    assert data.prompts["missile (744)"] == ("projectile",)
    assert len(set(data.prompts.values())) == 1000


# --- a folder of one's own --------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> Path:
    for kind, name in enumerate(("golden_retriever", "tabby_cat")):
        for number in range(6):
            split = "seen" if number < 4 else "unseen"
            draw(tmp_path / f"photos/{split}/{name}/{number}.png", 40 * kind + number)
    return tmp_path / "photos"


def test_a_folder_with_splits_and_names_of_its_own(photos, tmp_path):
    source = describe(
        tmp_path / "pets.yaml", folder="photos", train="seen", test="unseen",
        classes={"tabby_cat": "a grey cat"},
    )  # fmt: skip
    data = load_data(source)
    assert data.classes == ("golden_retriever", "a grey cat")  # in the order of the folders
    assert data.prompts == {"a grey cat": ("a grey cat",)}
    assert (len(data.train), len(data.test)) == (8, 4)
    (photos / "unseen/tabby_cat/x.png").write_text("no image")
    assert [entry.name for entry in load_data(source).skipped] == ["tabby_cat/x.png"]
    shutil.copytree(photos / "unseen/tabby_cat", photos / "unseen/lion")
    with pytest.raises(UserError, match=r"pets\.yaml: test classes that training has not: lion"):
        load_data(source)


def test_a_description_says_which_folders_are_the_classes(photos, tmp_path):
    (photos / "seen/pets").mkdir()
    (photos / "seen/tabby_cat").rename(photos / "seen/pets/tabby_cat")
    (photos / "seen/golden_retriever").rename(photos / "seen/pets/golden_retriever")
    draw(photos / "seen/wild/lion/1.png", 90)
    fields = {"folder": "photos/seen", "class_folders": "leaves"}
    source = describe(tmp_path / "animals.yaml", **fields, classes={"lion": "big cat"})
    assert set(load_data(source).classes) == {"golden_retriever", "tabby_cat", "big cat"}
    assert load_data(photos / "seen").classes == ("pets", "wild")
    with pytest.raises(UserError, match=r"top\.yaml: class_folders: Input should be 'to"):
        load_data(describe(tmp_path / "top.yaml", folder="photos/seen", class_folders="all"))


def test_a_pattern_tells_the_test_images(photos, tmp_path):
    source = describe(tmp_path / "pets.yaml", folder="photos/seen", test_files="[23].png")
    data = load_data(source)
    assert {item.name[-5:] for item in data.test} == {"2.png", "3.png"}
    with pytest.raises(UserError, match=r"test_files: no file in .* is named like x"):
        load_data(describe(tmp_path / "pets.yaml", folder="photos/seen", test_files="x"))


# --- training ---------------------------------------------------------------------------------


@pytest.fixture
def described(photos, tmp_path) -> Path:
    return describe(
        tmp_path / "pets.yaml", folder="photos", train="seen", test="unseen",
        classes={"tabby_cat": "iPod Cat", "golden_retriever": "golden retriever"},
        templates=["a {} outside.", "a {} at home."],
    )  # fmt: skip


def test_a_training_uses_the_sets_templates_and_names_and_records_them(tiny, described, tmp_path):
    run = fit(tiny, load_data(described), TrainConfig(steps=1), out=tmp_path / "run")
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert recorded["templates"] == ["a {} outside.", "a {} at home."]
    # only the name that differs from the cleaned one
    assert recorded["prompts"] == {"iPod Cat": ["iPod Cat"]}
    assert TrainConfig.parse(recorded) == run.config
    run.adapter.detach()
    assert Classifier.load(tmp_path / "run").text.tokens.equal(run.text.tokens)


def test_a_run_of_the_library_remembers_which_folders_were_the_classes(tiny, photos, tmp_path):
    nested, out = tmp_path / "nested", tmp_path / "run"
    shutil.copytree(photos / "seen/golden_retriever", nested / "dogs/golden_retriever")
    shutil.copytree(photos / "seen/tabby_cat", nested / "cats/tabby_cat")
    data = load_data(nested, class_folders="leaves")
    assert data.classes == ("golden_retriever", "tabby_cat")
    fit(tiny, data, TrainConfig(steps=1), out=out).adapter.detach()
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["class_folders"] == "leaves"
    counted = find_test_images(out, nested)
    assert {item.name for item in counted.split} == {item.name for item in data.test}


def test_what_the_user_says_wins_over_the_set(tiny, described):
    config = TrainConfig(steps=1, templates=("{}!",), prompts={"golden retriever": ("dog",)})
    run = fit(tiny, load_data(described), config)
    assert run.config.templates == ("{}!",)
    assert run.config.prompts == {"iPod Cat": ("iPod Cat",), "golden retriever": ("dog",)}


def test_without_a_description_the_default_is_as_before(tiny, photos):
    run = fit(tiny, load_data(photos / "seen"), TrainConfig(steps=1))
    assert run.config.templates == ("a photo of a {}.",)
    assert run.config.prompts == {}


def test_an_interrupted_training_resumes_with_the_same_templates(tiny_folder, described, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    config = TrainConfig(steps=3)
    with pytest.raises(Interrupted):
        fit(
            load_model(str(tiny_folder)), load_data(described), config, tmp_path / "r", on_step=stop
        )
    model = load_model(str(tiny_folder))
    run = fit(model, load_data(described), config, tmp_path / "r", resume=True)
    assert run.metrics["steps"] == 3
    assert run.config.templates == ("a {} outside.", "a {} at home.")


# --- the command ------------------------------------------------------------------------------


def test_the_command_lists_what_is_on_disk(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    eurosat(tmp_path)
    status, listed, _ = command("datasets")
    assert status == 0
    rows = {row.split("│")[1].strip(): row for row in listed.splitlines() if "│" in row}
    assert set(rows) == {*PAPER, *SHIFTED, "clipart", "digits"}
    assert "bundled" in rows["clipart"]
    assert "yes" in rows["eurosat"] and "94 MB" in rows["eurosat"] and "MIT" in rows["eurosat"]
    assert "yes" not in rows["dtd"]
    _, shown, _ = command("datasets", "eurosat")
    assert "HerbaceousVegetation" in shown and "a centered satellite photo of {}." in shown


@pytest.mark.parametrize("name", ["eurosat", "resisc45"])
def test_a_download_without_a_network_is_one_line(command, name, tmp_path, monkeypatch):
    for key in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")  # nobody listens there
        monkeypatch.setenv(key.upper(), "http://127.0.0.1:9")
    for key in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("CLIP_RANDLORA_DATA", str(tmp_path))
    status, _, errors = command("datasets", name, "--download")
    (line,) = errors.strip().splitlines()
    assert status == 2
    assert line.startswith("error: ") and name in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "nonsense: no such data set; there are caltech101"),
        (["--download"], "--download: name the data set"),
        (["ucf101", "--download"], "ucf101: it is a set of videos"),
    ],
)
def test_wrong_use_of_the_command_is_one_line(command, arguments, says):
    status, _, errors = command("datasets", *arguments)
    (line,) = errors.strip().splitlines()
    assert status == 2
    assert line.startswith("error: ") and says in line


@pytest.mark.slow
def test_the_readmes_six_lines_work_as_they_stand(command, tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```yaml\n# my_set\.yaml\n(.*?)```", readme, re.DOTALL)[1]
    (train,) = re.findall(r"^    clip-randlora (train my_set\.yaml .*)$", readme, re.MULTILINE)
    assert len(lines.strip().splitlines()) == 6
    (tmp_path / "my_set.yaml").write_text(lines, encoding="utf-8")
    pictures = Path("clip_randlora/bundled/clipart")
    for folder in (ROOT / pictures).glob("*/*"):  # the clone's own, but only two of each class
        for file in sorted(folder.iterdir())[:2]:
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    monkeypatch.chdir(tmp_path)
    status, _, errors = command(*shlex.split(train), "--steps", 1, "--device", "cpu")
    assert status == 0, errors
    run = tmp_path / shlex.split(train)[-1]
    recorded = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    described = yaml.safe_load(lines)
    assert recorded["train"]["templates"] == described["templates"]
    assert len(recorded["classes"]) == 11
    assert set(recorded["classes"]) > set(described["classes"].values())
    assert recorded["data"]["data"] == str(tmp_path / "my_set.yaml")
    assert yaml.safe_load((run / "metrics.json").read_text())["images"] == {"train": 22, "test": 22}
