"""WebDataset shards: labels, splits, patterns, broken archives, and the metrics of folders."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from helpers.commands import command
from helpers.images import encoded, picture, write_colors
from helpers.shards import sample, shard_folder, tabulate_folder, write_shard

import clip_randlora as cr
from clip_randlora.data import UnreadableImage, list_images, load_data
from clip_randlora.data.inputs import each_input
from clip_randlora.data.loading import load_labelled
from clip_randlora.sweep.config import read_sweep
from clip_randlora.utils.parallel import parallel_map

UserError = cr.UserError


FORMS = ("folders", "shards", "tables")


def image(number: int) -> bytes:
    return encoded(picture(number, 12))


def cats_and_dogs(count: int = 3, labels=("cat", "dog")) -> list[tuple[str, bytes]]:
    files = []
    for number in range(2 * count):
        files += sample(f"{number:04d}", image(number), labels[number % 2])
    return files


def by_class(split) -> dict[str, list[str]]:
    return {split.classes[n]: [i.name for i in items] for n, items in split.by_class().items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.getbasetemp() / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("colors")
    folder = write_colors(root / "folders", {"train": 10, "test": 4})
    for split, files in (("train", 10), ("test", 2)):
        shard_folder(folder / split, root / "shards", split, files)
        tabulate_folder(folder / split, root / "tables" / "data", split, files=3)
    return root


# --- the metrics of folders -------------------------------------------------------------------


@pytest.mark.slow
def test_shards_and_tables_give_the_metrics_and_the_weights_of_folders(
    tiny_folder, colors, tmp_path
):
    settings = cr.TrainConfig(method=cr.RandLoRA(rank=4), steps=3, batch_size=6, shots=4)
    weights, metrics, answers = [], [], []
    for form in FORMS:
        model = cr.load_model(str(tiny_folder))
        out = tmp_path / form if form == FORMS[0] else None
        run = cr.fit(model, load_data(colors / form), settings, out=out)
        weights.append(dict(run.adapter.named_parameters()))
        kept = ("zero_shot", "tuned", "per_class", "images")
        metrics.append({key: run.metrics[key] for key in kept})
        done = command("eval", tmp_path / FORMS[0], colors / form, "--json")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
        for prediction in answers[-1]["predictions"]:
            del prediction["image"]
    assert metrics[0]["images"] == {"train": 12, "test": 12}
    assert answers[0]["tuned"]["top1"] == metrics[0]["tuned"]["top1"]
    for other in range(1, len(FORMS)):
        assert metrics[other] == metrics[0]
        assert answers[other] == answers[0]
        for name, tensor in weights[0].items():
            assert torch.equal(weights[other][name], tensor), name


# --- labels -----------------------------------------------------------------------------------


def test_labels_are_names_in_cls_or_json(tmp_path):
    files = [*cats_and_dogs(2), *sample("9", image(9), {"label": "cat", "url": "x"})]
    files += [*sample("deep/10", image(10), {"class": "dog"}), ("10.txt", b"a caption")]
    data = load_data(write_shard(tmp_path / "pets.tar", files), held_out=0.01)
    assert data.name == "pets" and data.classes == ("cat", "dog")
    found = [*data.train, *data.test]
    assert {data.classes[i.label] for i in found if i.name in ("9.png", "0000.png")} == {"cat"}
    assert {data.classes[i.label] for i in found if i.name == "deep/10.png"} == {"dog"}
    assert [entry.name for entry in data.skipped] == ["10.txt"]


def test_numbers_are_named_by_the_file_beside_the_shards_or_around_the_splits(tmp_path):
    for split, start in (("train", 0), ("test", 40)):
        files = []
        for number in range(6):
            files += sample(f"{number}", image(start + number), {"label": number % 3})
        write_shard(tmp_path / split / "0.tar", files)
    (tmp_path / "classnames.txt").write_text("crane\nheron\ncrane\nstork\n")
    data = load_data(tmp_path)
    assert data.classes == ("crane (0)", "heron", "crane (2)")  # ImageNet has such names, too
    assert data.prompts == {"crane (0)": ("crane",), "crane (2)": ("crane",)}
    assert by_class(data.train)["heron"] == ["train/0.tar/1.png", "train/0.tar/4.png"]
    assert by_class(data.test)["crane (2)"] == ["test/0.tar/2.png", "test/0.tar/5.png"]
    assert data.notes == ("No images of stork: left out.",)
    alone = load_data(str(tmp_path / "train" / "*.tar"), str(tmp_path / "test" / "{0..0}.tar"))
    assert alone.classes == data.classes
    assert by_class(alone.test)["heron"] == ["0.tar/1.png", "0.tar/4.png"]


def test_folders_in_shards_are_classes_if_there_are_no_labels(tmp_path):
    for number in range(2):
        files = [
            (f"{name}/{shot}.png", image(10 * number + 5 * kind + shot))
            for kind, name in enumerate(("cat", "dog"))
            for shot in range(3)
        ]
        write_shard(tmp_path / f"pets-{number}.tar", files)
    data = load_data(tmp_path, held_out=0.01)
    assert data.classes == ("cat", "dog")
    assert "pets-0.tar/cat/1.png" in [item.name for item in [*data.train, *data.test]]
    assert len(data.train) == 10
    files = [*sample("cat/1", image(1), "a"), *sample("dog/1", image(2), "b")]
    for name in ("cat/2", "dog/2"):
        files += sample(name, image(len(files)), "b")
    labelled = write_shard(tmp_path / "labelled.tar", files)
    assert load_data(labelled, held_out=0.5).classes == ("a", "b")
    assert load_data(labelled, held_out=0.5, class_folders="leaves").classes == ("cat", "dog")


def test_how_a_set_is_cut_into_shards_makes_no_difference(tmp_path):
    pairs = [sample(f"{n}", image(n), "ab"[n % 2]) for n in range(12)]
    for name, order in (("one", range(12)), ("two", (11, 3, 5, 0, 1, 2, 4, 7, 6, 8, 10, 9))):
        for shard in range(3):
            files = [file for n in list(order)[shard::3] for file in pairs[n]]
            write_shard(tmp_path / name / f"{shard}.tar", files)
    one, two = (load_data(tmp_path / name) for name in ("one", "two"))
    for first, second in ((one.train, two.train), (one.test, two.test)):
        assert [i.digest() for i in first] == [i.digest() for i in second]


def test_a_spec_names_shards_fields_and_classes(tmp_path):
    for split in ("train", "dev"):
        files = []
        for number in range(6):
            record = {"species": number % 2, "label": "not this", "file": "x"}
            files += sample(f"{number}", image(number + 9 * len(split)), record, "photo.png")
            files += [(f"{number}.depth.png", image(99))]
        write_shard(tmp_path / "birds" / f"{split}-000.tar", files)
    fields = {
        "name": "birds",
        "shards": "birds",
        "train": "train-{000..000}.tar",
        "test": "dev-*.tar",
        "columns": {"label": "species", "image": "photo.png"},
        "classes": ["crow", "swan"],
        "templates": ["a {}, a bird."],
    }
    spec = tmp_path / "birds.yaml"
    spec.write_text(yaml.safe_dump(fields))
    data = load_data(spec)
    assert data.name == "birds" and data.classes == ("crow", "swan")
    assert [item.name for item in data.train][:2] == [
        "train-000.tar/0.photo.png",
        "train-000.tar/2.photo.png",
    ]
    assert (len(data.train), len(data.test)) == (6, 6)
    assert data.templates == ("a {}, a bird.",) and data.prompts["crow"] == ("crow",)
    assert not data.skipped
    del fields["columns"], fields["train"], fields["test"]
    fields |= {"shards": "birds/train-000.tar", "classes": {"not this": "bird"}}
    spec.write_text(yaml.safe_dump(fields))
    with pytest.raises(UserError, match="no images found"):
        load_data(spec)  # two images in each sample, and both have two dots
    spec.write_text(yaml.safe_dump(fields | {"columns": {"image": "depth.png"}}))
    with pytest.raises(UserError, match=r'only one class .*"bird"'):
        load_data(spec)
    spec.write_text(yaml.safe_dump({"name": "x", "shards": "nowhere"}))
    with pytest.raises(UserError, match=r"x: not on this machine; correct `shards` in .*nowhere"):
        load_data(spec)


# --- splits and patterns ----------------------------------------------------------------------


def test_shards_are_split_by_their_names(tmp_path):
    for split in ("train", "val", "test"):
        write_shard(tmp_path / f"in1k-{split}-000.tar", cats_and_dogs())
    data = load_data(tmp_path)
    assert {item.name[:14] for item in data.train} == {"in1k-train-000"}
    assert {item.name[:13] for item in data.test} == {"in1k-test-000"}
    assert data.notes[0] == "The validation files are left out (in1k-val-000.tar)."
    (tmp_path / "in1k-test-000.tar").unlink()
    assert "No test files: val is the test split." in load_data(tmp_path).notes
    (tmp_path / "in1k-val-000.tar").rename(tmp_path / "more.tar")
    says = "in1k-train-000.tar tells a split by its name, more.tar tells none; give"
    with pytest.raises(UserError, match=says):
        load_data(tmp_path)


def test_one_shard_may_hold_both_splits(tmp_path):
    files = [(f"train/{name}", content) for name, content in cats_and_dogs(3)]
    files += [*sample("test/1", image(50), "cat"), *sample("test/2", image(51), "dog")]
    files += sample("val/1", image(52), "dog")
    data = load_data(write_shard(tmp_path / "all.tar", files))
    assert (len(data.train), len(data.test), data.held_out) == (6, 2, False)
    assert "val/ in the shards is left out (1 images)." in data.notes


def test_patterns_name_shards_and_missing_ones_are_an_error(tmp_path, monkeypatch):
    for number in (8, 9, 10, 11):
        files = sample(f"{number}", image(number), "ab"[number % 2])
        write_shard(tmp_path / f"x-{number:03d}.tar", files)
    data = load_data(str(tmp_path / "x-{008..011}.tar"), held_out=0.5)
    assert sorted(item.name for item in [*data.train, *data.test]) == [
        "x-008.tar/8.png", "x-009.tar/9.png", "x-010.tar/10.png", "x-011.tar/11.png",
    ]  # fmt: skip
    assert data.name == tmp_path.name
    assert len(load_data(str(tmp_path / "x-{008,009,01*}.tar"), held_out=0.5).train) == 2
    with pytest.raises(UserError, match=r"2 of 6 files are there \(.*x-012\.tar"):
        load_data(str(tmp_path / "x-{008..013}.tar"))
    with pytest.raises(UserError, match="no file is there"):
        load_data(str(tmp_path / "y-*.tar"))
    with pytest.raises(UserError, match="more than 100000 files"):
        load_data(str(tmp_path / "x-{0..999999999999}.tar"))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({"datasets": ["x-{008..011}.tar"], "methods": ["zero_shot"]}))
    assert read_sweep(sweep).datasets == (str(tmp_path / "x-{008..011}.tar"),)


def test_compressed_shards_are_refused_with_advice(tmp_path):
    path = tmp_path / "shards" / "a.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz"):
        pass
    for source in (path, path.parent):
        with pytest.raises(UserError, match=r"a\.tar\.gz: a compressed archive.*decompress it"):
            load_data(source)


def test_an_archive_beside_class_folders_is_not_read(tmp_path):
    write_colors(tmp_path, {"": 2})
    write_shard(tmp_path / "backup.tar", cats_and_dogs())
    data = load_data(tmp_path)
    assert data.classes == ("blue", "green", "red")
    assert [entry.name for entry in data.skipped] == ["backup.tar"]


# --- what can be wrong ------------------------------------------------------------------------


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def append(path: Path, *blocks: bytes) -> Path:
    """Put blocks before the end mark of an archive."""
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    path.write_bytes(path.read_bytes()[:end] + b"".join(blocks) + bytes(1024))
    return path


@pytest.mark.parametrize(
    ("more", "skipped"),
    [
        (sample("7", b"no image", "cat"), {"7.png": "not an image that can be read"}),
        (sample("7", image(7)), {"7.png": "no label, neither a .cls nor one in a .json"}),
        (sample("7", image(7), {"url": 1}), {"7.png": "no label, "}),
        (sample("7", image(7), -1), {"7.png": "no label, "}),
        (sample("7", image(7), "not a name " * 99), {"7.png": "no label, "}),
        ([("7.cls", b"cat")], {"7.cls": "no image in its sample"}),
        (sample("7", image(7), "cat") * 2, {"7.png": "twice in the arch", "7.cls": "twice in the"}),
        (
            [*sample("7", image(7), "cat"), ("7.jpg", image(8))],
            {"7.png": "one of 2 images of its sample (jpg and png)", "7.jpg": "one of 2 images"},
        ),
        (sample("../7", image(7), "cat"), {"../7.png": "unsafe path", "../7.cls": "unsafe path"}),
        (sample("/etc/7", image(7), "cat"), {"/etc/7.png": "unsafe", "/etc/7.cls": "unsafe"}),
        (sample(".7", image(7), "cat"), {".7.png": "hidden", ".7.cls": "hidden"}),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_left_out_and_named(tmp_path, more, skipped):
    data = load_data(write_shard(tmp_path / "a.tar", cats_and_dogs() + more))
    found = {entry.name: entry.reason for entry in data.skipped}
    assert found.keys() == skipped.keys()
    assert all(found[name].startswith(reason) for name, reason in skipped.items())
    is_repeated = "twice" in next(iter(skipped.values()))
    assert len(data.train) + len(data.test) == 6 + is_repeated


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (header("7.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link, not followed"),
        (header("7.png", tarfile.LNKTYPE, linkname="0000.png"), "a link, not followed"),
        (header("7.png", tarfile.CHRTYPE), "not a regular file"),
        (header("7.png", tarfile.FIFOTYPE), "not a regular file"),
        (header("7.png", tarfile.GNUTYPE_SPARSE), "stored with its holes left out"),
    ],
)
def test_links_and_devices_are_left_out(tmp_path, block, reason):
    path = append(write_shard(tmp_path / "a.tar", cats_and_dogs()), block)
    (entry,) = load_data(path).skipped
    assert entry.name == "7.png" and entry.reason.startswith(reason)


def damage(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


LONG_NAME = header("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**40)


def negative_size() -> bytes:
    block = bytearray(header("7.png"))
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda whole: whole[:2000], "unexpected end of data"),  # in the third file
        (lambda whole: whole[:1100], "damaged or cut off at byte 1024"),  # in the second's header
        (lambda whole: damage(whole, 1024, b"xxxx"), "damaged or cut off at byte 1024"),
        (lambda whole: b"no tar at all" * 100, "invalid header"),
        (lambda whole: b"", "empty file"),
        (lambda whole: LONG_NAME + whole, "a header of 10995116"),
        (lambda whole: negative_size() + whole, "a file of -1 bytes"),
    ],
)  # fmt: skip
def test_a_broken_shard_is_one_line(tmp_path, spoil, says):
    for name in ("a", "b"):
        path = write_shard(tmp_path / f"{name}.tar", cats_and_dogs())
    assert len(image(0)) <= 512  # so that the second header begins at byte 1024
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError) as error:
        load_data(tmp_path)
    assert "broken tar archive: " in str(error.value) and "b.tar (" in str(error.value)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_shard_without_an_end_mark_is_noted(tmp_path):
    path = write_shard(tmp_path / "a.tar", cats_and_dogs())
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    path.write_bytes(path.read_bytes()[:end])
    data = load_data(path)
    assert len(data.train) + len(data.test) == 6
    assert any("a.tar has no end mark" in note for note in data.notes)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (sample("1", image(1), 0) + sample("2", image(2), 5), "2 names, but a.tar/2.png has"),
        (sample("1", image(1), 0) + sample("2", image(2), "cat"), "a.tar/2.png is 'cat'"),
        (sample("1", image(1)), "1 images without labels; put a .cls"),
        (sample("1", image(1), {"url": 1, "text": 2}), "the .json has text and url"),
        ([("1.txt", b"x")], "no images found"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_one_line(tmp_path, files, says):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    write_shard(tmp_path / "a.tar", files)
    with pytest.raises(UserError) as error:
        load_data(tmp_path)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_eval_names_a_class_that_the_run_does_not_know(tmp_path):
    path = write_shard(tmp_path / "a.tar", cats_and_dogs(labels=("cat", "wolf")))
    with pytest.raises(UserError, match="the run does not know the class 'wolf'"):
        load_labelled(path, ("cat", "dog"))


def test_a_shard_that_changes_after_it_was_listed_is_no_crash(tmp_path):
    path = write_shard(tmp_path / "a.tar", cats_and_dogs())
    item = load_data(path).train.items[-1]
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UnreadableImage, match=r"png: .*a\.tar has become shorter"):
        item.open()
    path.unlink()
    with pytest.raises(UnreadableImage, match=r"png: .*a\.tar cannot be read"):
        item.open()


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["shards", "tables"])
def test_items_are_read_from_threads_and_after_being_pickled(colors, form):
    items = load_data(colors / form).train.items
    sent = pickle.dumps(items[0])
    assert len(sent) < 2500  # a path, not the content
    assert pickle.loads(sent).digest() == items[0].digest()
    again = list(parallel_map(lambda item: item.digest(), [*items] * 4))
    assert again == [item.digest() for item in items] * 4
    assert all(item.content.size == len(item.content.read()) for item in items)


def test_an_image_whose_header_is_long_is_no_broken_one(tmp_path):
    long_header = encoded(picture(1), "JPEG", icc_profile=bytes(200_000))
    files = [*sample("1", long_header, "cat", "jpg"), *cats_and_dogs(1)]
    data = load_data(write_shard(tmp_path / "a.tar", files))
    assert not data.skipped and len(data.train) + len(data.test) == 3


def test_images_of_shards_are_listed_and_predicted(colors, tmp_path):
    shard = colors / "shards" / "colors-test-000000.tar"
    assert next(each_input(shard, print)).name == f"{shard}/1000000.png"
    for source in (colors / "shards", str(colors / "shards" / "colors-{train,test}-*.tar")):
        inputs = list(each_input(source, print))
        assert len(inputs) == 42
        assert inputs[0].name == f"{shard}/1000000.png"
        assert inputs[0].open().size == (48, 40)
    tables = list(each_input(colors / "tables", print))
    assert len(tables) == 42
    assert tables[0].name == f"{colors}/tables/data/test-00000-of-00003.parquet/0"
    assert tables[0].open().size == (48, 40)
    (broken,) = each_input(write_shard(tmp_path / "a.tar", [("a.txt", b"")]), print)
    with pytest.raises(UnreadableImage, match="has no images"):
        broken.open()
    items, skipped = list_images(colors / "shards")
    assert (len(items), skipped) == (42, [])


def test_progress_counts_the_shards(tmp_path):
    calls = []
    load_data(
        write_shard(tmp_path / "a.tar", cats_and_dogs()), on_progress=lambda *c: calls.append(c)
    )
    listing = [call for call in calls if call[0] == "listing shards"]
    assert listing == [("listing shards", 0, 1), ("listing shards", 1, 1)]


# --- tables -----------------------------------------------------------------------------------


def make_table(features: dict, **columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def pixels(count: int) -> list[dict]:
    return [{"bytes": image(number), "path": None} for number in range(count)]


def test_a_set_that_datasets_saved_to_disk_loads(tmp_path):
    kinds = datasets.ClassLabel(names=["zebra", "ant"])
    made = make_table(
        {"image": datasets.Image(), "label": kinds}, image=pixels(9), label=[0, 1, 1] * 3
    )
    made.train_test_split(3, seed=1).save_to_disk(tmp_path / "saved")
    data = load_data(tmp_path / "saved")
    assert data.classes == ("zebra", "ant")
    assert (len(data.train), len(data.test), data.held_out) == (6, 3, False)
    assert data.train.items[0].open().size == (12, 12)


def test_columns_are_found_by_their_types_and_names(tmp_path):
    words = datasets.Value("string")
    made = make_table(
        {"id": words, "photo": datasets.Value("binary"), "species": words},
        id=list("abcdef"), photo=[image(n) for n in range(6)], species=["crow", "swan"] * 3,
    )  # fmt: skip
    made.to_parquet(tmp_path / "birds.parquet")
    data = load_data(tmp_path / "birds.parquet")
    assert data.classes == ("crow", "swan") and data.held_out
    assert {item.open().size for item in data.train} == {(12, 12)}
    assert load_data(str(tmp_path / "b*.parquet")).classes == data.classes


def test_tables_of_numbers_take_the_names_beside_them(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    made = make_table(features, image=pixels(6), label=[0, 2] * 3)
    made.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"only numbers; write the names .* into classes\.txt"):
        load_data(tmp_path)
    (tmp_path / "classes.txt").write_text("crow\nswan\nheron\n")
    data = load_data(tmp_path)
    assert data.classes == ("crow", "heron")
    assert "No images of swan: left out." in data.notes


def test_tables_that_do_not_fit_are_one_line(tmp_path):
    words, path = datasets.Value("string"), tmp_path / "a.parquet"
    for features, says in (
        ({"a": words, "b": words}, r"none of its columns \(a, b\) holds images"),
        ({"image": datasets.Image(), "a": words}, "columns image, a, none may be the label"),
        (
            {"image": datasets.Image(), "class": words, "category": words},
            "class and category may be",
        ),
    ):
        values = {name: pixels(2) if name == "image" else ["x", "y"] for name in features}
        make_table(features, **values).to_parquet(path)
        with pytest.raises(UserError, match=says):
            load_data(path)
    for name in ("b.parquet", "b.arrow"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match=f"{name}: the tables cannot be read"):
            load_data(tmp_path / name)
