"""Label files as people's tools write them, and which classes and splits are read from each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas
import pytest
from helpers.images import expand, write_images

from clip_randlora.data import Data, load_data
from clip_randlora.errors import UserError


@dataclass
class Case:
    """A label file, its images, and what is to be read.

    Attributes:
        images: patterns of the images, see `expand`.
        files: contents of the other files.
        train: ``class: images`` for training; without ``test`` some of them are held out.
        test: ``class: images`` for testing.
        source: what is given as DATA, below the folder; "" is the folder.
        notes: patterns, each of which a note matches.
        error: in place of ``train``; a pattern that the one line matches.
        options: of `load_data`.
    """

    images: str
    files: dict[str, str | bytes]
    train: dict[str, str] = field(default_factory=dict)
    test: dict[str, str] = field(default_factory=dict)
    source: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""
    options: dict[str, object] = field(default_factory=dict)


def as_csv(rows: Iterable[Iterable[object]], **options) -> str:
    text = io.StringIO()
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


KINDS = {"1": "cat", "2": "cat", "3": "cat", "4": "dog", "5": "dog", "6": "dog"}
ROWS = [("file", "label"), *((f"{n}.png", kind) for n, kind in KINDS.items())]
SIX = {"cat": "{1..3}.png", "dog": "{4..6}.png"}
IN_IMAGES = {"cat": "images/{1..3}.png", "dog": "images/{4..6}.png"}


def frame() -> pandas.DataFrame:
    return pandas.DataFrame(ROWS[1:], columns=ROWS[0])


# --- labelling tools, in the forms of their exporters


def label_studio_task(number: int, image: str, *choices: list[str], cancelled: bool = False):
    """A task as the JSON export has it: every list of choices is one annotator's."""
    return {
        "id": number,
        "annotations": [
            {
                "id": 100 * number + place,
                "completed_by": place,
                "result": [
                    {
                        "value": {"choices": names},
                        "id": f"r{number}{place}",
                        "from_name": "choice",
                        "to_name": "image",
                        "type": "choices",
                        "origin": "manual",
                    }
                ],
                "was_cancelled": cancelled,
                "ground_truth": False,
                "created_at": "2026-03-01T10:00:00.000000Z",
                "lead_time": 3.2,
            }
            for place, names in enumerate(choices)
        ],
        "file_upload": image.rpartition("/")[2],
        "predictions": [],
        "data": {"image": image},
        "meta": {},
        "project": 1,
    }


def label_studio_row(number: int, image: str, choice: object) -> dict[str, object]:
    """A record of JSON-MIN, and of the CSV."""
    return {
        "image": image,
        "id": number,
        "choice": choice,
        "annotator": 1 + number % 2,
        "annotation_id": 100 + number,
        "created_at": f"2026-03-01T10:00:{number:02}.000000Z",
        "updated_at": f"2026-03-01T10:00:{number:02}.000000Z",
        "lead_time": 1.5 + number,
    }


def label_studio_csv(records: list[dict[str, object]]) -> str:
    """Write the columns in alphabetical order, texts quoted, several choices as JSON."""
    names = sorted(records[0])
    cells = [
        [json.dumps(v) if isinstance(v := record[name], dict) else v for name in names]
        for record in records
    ]
    return as_csv([names, *cells], quoting=csv.QUOTE_NONNUMERIC)


def cvat_xml(images: Mapping[str, tuple[str | None, list[str]]], prolog: str = "") -> str:
    """Write ``CVAT for images 1.1``: for each image its subset, in projects, and its tags."""
    entries = []
    for number, (name, (subset, tags)) in enumerate(images.items()):
        where = f' subset="{subset}" task_id="7"' if subset else ""
        inner = "".join(f'\n    <tag label="{tag}" source="manual">\n    </tag>' for tag in tags)
        entries.append(
            f'  <image id="{number}" name="{name}"{where} width="1" height="1">{inner}\n  </image>'
        )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n{prolog}<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><id>7</id><name>animals</name><mode>annotation</mode><labels><label>"
        f"<name>cat</name><color>#ff0000</color><type>tag</type></label></labels></task>"
        f"<dumped>2026-03-01 10:00:00.000000+00:00</dumped></meta>\n"
        + "\n".join(entries)
        + "\n</annotations>\n"
    )


def roboflow(rows: Mapping[str, tuple[int, ...]]) -> str:
    """Write ``_classes.csv``, which has a space after each comma."""
    lines = [("filename", "cat", "dog"), *((name, *flags) for name, flags in rows.items())]
    return "\n".join(", ".join(map(str, line)) for line in lines) + "\n"


UPLOADED = {n: f"/data/upload/1/{'0a1b2c3d'}-{n}.png" for n in KINDS}
LOCAL = {n: f"/data/local-files/?d=animals/my%20images/{n}.png" for n in KINDS}

FILES = {
    "CSV": Case("{1..6}.png", {"labels.csv": as_csv(ROWS)}, SIX),
    "TSV, given itself": Case(
        "images/{1..6}.png",
        {"labels.tsv": as_csv([("path", "species"), *((f"images/{n}.png", k) for n, k in
                               KINDS.items())], delimiter="\t")},
        IN_IMAGES, source="labels.tsv", notes=(r"columns path=path,label=species",),
    ),
    "Excel, CSV UTF-8 with semicolons": Case(
        "{1..6}.png",
        {"labels.csv": b"\xef\xbb\xbf" + as_csv(ROWS, delimiter=";").encode()}, SIX,
    ),
    "Excel, CSV on a Western Windows": Case(
        "{1..6}.png",
        {"labels.csv": as_csv(ROWS, delimiter=";").replace("cat", "Kätzchen").encode("cp1252")},
        {"Kätzchen": "{1..3}.png", "dog": "{4..6}.png"},
    ),
    "Excel, Unicode text": Case(
        "{1..6}.png",
        {"labels.csv": as_csv(ROWS, delimiter="\t").replace("cat", "猫").encode("utf-16")},
        {"猫": "{1..3}.png", "dog": "{4..6}.png"},
    ),
    "Excel, with its line on the separator": Case(
        "{1..6}.png",
        {"labels.csv": "sep=;\r\n" + as_csv([*ROWS, ("", "")], delimiter=";").replace(
            "file;label", "file name;kind of animal")},
        SIX, notes=(r"columns path=file name,label=kind of animal",),
    ),
    "pandas, CSV with its index": Case(
        "{0..5}.png",
        {"labels.csv": pandas.DataFrame(
            {"image": ["5.png", "4.png", "3.png", "2.png", "1.png", "0.png"],
             "kind": ["cat", "cat", "cat", "dog", "dog", "dog"]}).to_csv()},
        {"cat": "{3..5}.png", "dog": "{0..2}.png"},
    ),
    "pandas, JSON by column": Case(
        "{1..6}.png", {"labels.json": frame().to_json()}, SIX, source="labels.json"
    ),
    "pandas, JSON by row": Case(
        "{1..6}.png", {"labels.json": frame().to_json(orient="index")}, SIX,
        source="labels.json",
    ),
    "pandas, JSON lines": Case(
        "{1..6}.png", {"labels.jsonl": frame().to_json(orient="records", lines=True)}, SIX
    ),
    "JSON, file to class": Case(
        "images/{1..6}.png", {"labels.json": json.dumps({f"{n}.png": k for n, k in KINDS.items()})},
        IN_IMAGES,
    ),
    "Kaggle, ids and a table to fill in": Case(
        "train/{1..6}.png + test/{7..8}.png",
        {"train.csv": as_csv([("id", "breed"), *KINDS.items()]),
         "sample_submission.csv": as_csv([("id", "cat", "dog"), (7, .5, .5), (8, .5, .5)])},
        {"cat": "train/{1..3}.png", "dog": "train/{4..6}.png"}, notes=(r"test/ is left out",),
    ),
    "Kaggle, the table itself": Case(
        "train/{1..6}.png + test/{1..3}.png", {"train.csv": as_csv([("id", "breed"),
                                                                    *KINDS.items()])},
        {"cat": "train/{1..3}.png", "dog": "train/{4..6}.png"}, source="train.csv",
    ),
    "Kaggle, paths and a column data set": Case(
        "train/cats/{1..2}.png + train/dogs/{4..5}.png + test/cats/3.png + valid/dogs/6.png",
        {"birds.csv": as_csv([
            ("class id", "filepaths", "labels", "data set", "scientific name"),
            *((int(kind == "dog"), f"{part}/{kind}s/{n}.png", kind.upper(), part, f"{kind}us")
              for (n, kind), part in zip(
                   KINDS.items(), ("train", "train", "test", "train", "train", "valid"),
                   strict=True))])},
        {"CAT": "train/cats/{1..2}.png", "DOG": "train/dogs/{4..5}.png"},
        {"CAT": "test/cats/3.png"}, source="birds.csv",
        notes=("validation rows are left out .1 images", "split=data set"),
    ),
    "FER, a column Usage": Case(
        "{1..6}.png",
        {"labels.csv": as_csv([("image", "emotion", "Usage"), *(
            (f"{n}.png", kind, part) for (n, kind), part in zip(
                KINDS.items(), ("Training", "Training", "PublicTest", "Training", "PrivateTest",
                                "Training"), strict=True))])},
        {"cat": "{1..2}.png", "dog": "4.png + 6.png"}, {"cat": "3.png", "dog": "5.png"},
    ),
    "a flag is_test": Case(
        "{1..6}.png",
        {"labels.csv": as_csv([("name", "is_test", "label"), *(
            (f"{n}.png", int(n in "36"), kind) for n, kind in KINDS.items())])},
        {"cat": "{1..2}.png", "dog": "{4..5}.png"}, {"cat": "3.png", "dog": "6.png"},
        notes=("split=is_test",),
    ),
    "fastai, is_valid": Case(
        "{1..6}.png",
        {"labels.csv": pandas.DataFrame({
            "name": [f"{n}.png" for n in KINDS], "label": list(KINDS.values()),
            "is_valid": [n in "36" for n in KINDS]}).to_csv(index=False)},
        {"cat": "{1..2}.png", "dog": "{4..5}.png"}, {"cat": "3.png", "dog": "6.png"},
        notes=("val is the test split",),
    ),
    "two tables of one folder": Case(
        "images/{1..7}.png",
        {"train.csv": as_csv([ROWS[0], *(row for row in ROWS[1:] if row[0][0] not in "36")]),
         "test.csv": as_csv([ROWS[0], *(row for row in ROWS[1:] if row[0][0] in "36")])},
        {"cat": "images/{1..2}.png", "dog": "images/{4..5}.png"},
        {"cat": "images/3.png", "dog": "images/6.png"},
        notes=(r"1 image has no row and is left out \(images/7.png\)",),
    ),
    "hub, metadata.csv in each split": Case(
        "train/{1..4}.png + test/{5..6}.png",
        {"train/metadata.csv": as_csv([("file_name", "label"), *(
            (f"{n}.png", KINDS[n]) for n in "1234")]),
         "test/metadata.csv": as_csv([("file_name", "label"), *(
             (f"{n}.png", KINDS[n]) for n in "56")])},
        {"cat": "train/{1..3}.png", "dog": "train/4.png"}, {"dog": "test/{5..6}.png"},
    ),
    "hub, metadata.jsonl of nested folders": Case(
        "data/{a,b,c}/{1..2}.png",
        {"metadata.jsonl": "".join(
            json.dumps({"file_name": f"data/{folder}/{n}.png", "label": kind, "width": 1}) + "\n"
            for folder, n, kind in (("a", 1, "cat"), ("a", 2, "dog"), ("b", 1, "cat"),
                                    ("b", 2, "dog"), ("c", 1, "cat"), ("c", 2, "dog")))},
        {"cat": "data/{a,b,c}/1.png", "dog": "data/{a,b,c}/2.png"},
    ),
    "Roboflow": Case(
        "train/{1..5}.png + valid/6.png + test/{7..8}.png",
        {"train/_classes.csv": roboflow({"1.png": (1, 0), "2.png": (1, 0), "3.png": (0, 1),
                                         "4.png": (1, 1), "5.png": (0, 0)}),
         "valid/_classes.csv": roboflow({"6.png": (0, 1)}),
         "test/_classes.csv": roboflow({"7.png": (1, 0), "8.png": (0, 1)})},
        {"cat": "train/{1..2}.png", "dog": "train/3.png"},
        {"cat": "test/7.png", "dog": "test/8.png"},
        notes=(r"1 image has several classes and is left out \(train/4.png\)",
               r"1 image has an empty label and is left out \(train/5.png\)",
               r"valid/ is left out .1 images"),
    ),
    "Label Studio, JSON": Case(
        "{1..8}.png",
        {"project-1-at-2026-03-01.json": json.dumps([
            *(label_studio_task(int(n), UPLOADED[n], [kind]) for n, kind in KINDS.items()),
            label_studio_task(7, "/data/upload/1/ffffffff-7.png", ["cat"], ["dog"]),
            label_studio_task(8, "/data/upload/1/ffffffff-8.png", ["cat"], cancelled=True),
        ])},
        SIX,
        notes=(r"1 image has an empty label and is left out \(8.png\); 1 image has several classes "
               r"and is left out \(7.png\)",),
    ),
    "Label Studio, JSON-MIN": Case(
        "my images/{1..6}.png",
        {"labels.json": json.dumps([label_studio_row(int(n), LOCAL[n], kind)
                                    for n, kind in KINDS.items()], indent=2)},
        {"cat": "my images/{1..3}.png", "dog": "my images/{4..6}.png"}, source="labels.json",
        notes=("columns path=image,label=choice",),
    ),
    "Label Studio, CSV": Case(
        "{1..7}.png",
        {"labels.csv": label_studio_csv([
            *(label_studio_row(int(n), UPLOADED[n], kind) for n, kind in KINDS.items()),
            label_studio_row(7, "/data/upload/1/ffffffff-7.png", {"choices": ["cat", "dog"]})])},
        SIX, notes=(r"1 image has several classes and is left out \(7.png\)",),
    ),
    "CVAT for images, of a project": Case(
        "images/Train/{1..4}.png + images/Test/{5..6}.png",
        {"annotations.xml": cvat_xml({
            f"{n}.png": ("Train" if n in "1234" else "Test", [KINDS[n]]) for n in KINDS})},
        {"cat": "images/Train/{1..3}.png", "dog": "images/Train/4.png"},
        {"dog": "images/Test/{5..6}.png"},
    ),
    "CVAT for images, of a task": Case(
        "images/{1..8}.png",
        {"annotations.xml": cvat_xml({f"{n}.png": (None, [kind]) for n, kind in KINDS.items()} | {
            "7.png": (None, []), "8.png": (None, ["cat", "dog"]), "9.png": (None, ["cat"])})},
        IN_IMAGES,
        notes=(r"1 row has no image \(9.png\); 1 image has an empty label and is left out "
               r"\(images/7.png\); 1 image has several classes and is left out \(images/8.png\)",),
    ),
    "CVAT, ImageNet list": Case(
        "images/{1..6}.png",
        {"default.txt": "".join(f"{n}.png {int(int(n) > 3)}\n" for n in KINDS),
         "synsets.txt": "house cat\ndog\n"},
        {"house cat": "images/{1..3}.png", "dog": "images/{4..6}.png"},
    ),
    "Datumaro, ImageNet lists of two subsets": Case(
        "images/{a 1,a 2,3,4,5,6}.png",
        {"train.txt": '"a 1".png 0\n"a 2".png 0\n4.png 1\n5.png 0 1\n',
         "val.txt": "3.png 0\n6.png 1\n", "synsets.txt": "cat\ndog\n"},
        {"cat": "images/{a 1,a 2}.png", "dog": "images/4.png"},
        {"cat": "images/3.png", "dog": "images/6.png"},
        notes=(r"1 image has several classes and is left out \(images/5.png\)",),
    ),
    "Vertex AI, no header": Case(
        "photos/{1..6}.png",
        {"import.csv": as_csv([("test" if n in "36" else "training", f"gs://bucket/animals/{n}.png",
                                kind) for n, kind in KINDS.items()])},
        {"cat": "photos/{1..2}.png", "dog": "photos/{4..5}.png"},
        {"cat": "photos/3.png", "dog": "photos/6.png"},
        notes=("columns path=column 2,label=column 3,split=column 1",),
    ),
    "clip-randlora label": Case(
        "{1..7}.png",
        {"labels.csv": as_csv([
            ("image", "label", "probability", "answer", "label_next"),
            *((f"{n}.png", kind, .9 - int(n) / 100, kind, "") for n, kind in KINDS.items()),
            ("7.png", "", .3, "dog", 1)])},
        SIX, source="labels.csv", notes=(r"1 image has an empty label and is left out \(7.png\)",),
    ),
    "an image that is called like the column": Case(
        "{image,2,3,4}.png",
        {"labels.csv": as_csv([("image", "label"), ("image", "cat"), (2, "cat"), (3, "dog"),
                               (4, "dog")])},
        {"cat": "{image,2}.png", "dog": "{3,4}.png"}, source="labels.csv",
    ),
    "paths that leave the table's folder": Case(
        "photos/{1..6}.png",
        {"lists/labels.csv": as_csv([("path", "label"), *((rf"..\photos\{n}", kind)
                                                          for n, kind in KINDS.items())])},
        {"cat": "{ROOT}/photos/{1..3}.png", "dog": "{ROOT}/photos/{4..6}.png"},
        source="lists/labels.csv",
    ),
    "columns that are said": Case(
        "{1..6}.png",
        {"labels.csv": as_csv([("image", "colour", "size", "part"), *(
            (n, ("black", "white")[int(n) % 2], "small" if n in "12" else "large",
             "train" if int(n) < 5 else "test") for n in KINDS)])},
        {"large": "{3..4}.png", "small": "{1..2}.png"}, {"large": "{5..6}.png"},
        options={"columns": "path=image,label=size,split=part"},
    ),
    "columns that are said, by number and against the folders": Case(
        "{a,b}/{1..3}.png",
        {"labels.csv": as_csv([(f"a/{n}.png", f"k{n % 2}", n) for n in (1, 2, 3)]
                              + [(f"b/{n}.png", f"k{n % 2}", n) for n in (1, 2, 3)])},
        {"k0": "{a,b}/2.png", "k1": "{a,b}/{1,3}.png"}, options={"columns": {"label": "2"}},
    ),
    "not clear which column": Case(
        "{1..6}.png",
        {"labels.csv": as_csv([("image", "colour", "size"), *(
            (n, ("black", "white")[int(n) % 2], "small" if n in "12" else "large")
            for n in KINDS)])},
        error=r"labels.csv: 2 columns may be the label \(colour, size\); say which one is, as "
        r"--columns label=colour", source="labels.csv",
    ),
    "no label": Case(
        "{1..6}.png", {"labels.csv": as_csv([("image",), *((f"{n}.png",) for n in KINDS)])},
        error=r"labels.csv: no column is the label; name it with --columns label=",
        source="labels.csv",
    ),
    "no images": Case(
        "{7..9}.png", {"labels.csv": as_csv(ROWS)}, source="labels.csv",
        error=r"labels.csv: no column names files of images that are there; name it with",
    ),
    "a column that is not there": Case(
        "{1..6}.png", {"labels.csv": as_csv(ROWS)}, options={"columns": "label=species"},
        error=r"labels.csv: no column 'species' \(--columns\); the columns are file and label",
    ),
    "columns that cannot be": Case(
        "{1..6}.png", {"labels.csv": as_csv(ROWS)}, options={"columns": "class=label"},
        error=r"--columns: class=label: give path=COLUMN, label=COLUMN and split=COLUMN",
    ),
    "a column that tells no split": Case(
        "{1..6}.png", {"labels.csv": as_csv(ROWS)}, options={"columns": "split=label"},
        error=r"labels.csv: the column label holds no splits; use train, val and test",
    ),
    "only images of several classes": Case(
        "train/{1..2}.png", {"train/_classes.csv": roboflow({"1.png": (1, 1), "2.png": (1, 1)})},
        source="train/_classes.csv", error=r"_classes.csv: its images have several classes each",
    ),
    "XML with entities": Case(
        "images/{1..6}.png",
        {"annotations.xml": cvat_xml({f"{n}.png": (None, [k]) for n, k in KINDS.items()},
                                     '<!DOCTYPE annotations [<!ENTITY a "b">]>\n')},
        error=r"no table has their labels.*annotations.xml: has a DOCTYPE",
    ),
    "a workbook": Case(
        "{1..6}.png", {"labels.xlsx": b"PK\x03\x04"}, source="labels.xlsx",
        error=r"labels.xlsx: a workbook; save the sheet as CSV",
    ),
    "broken JSON": Case(
        "{1..6}.png", {"labels.json": '{"1.png": "cat", '}, source="labels.json",
        error=r"labels.json: neither JSON nor JSON lines",
    ),
    "other JSON": Case(
        "{1..6}.png", {"labels.json": "3"}, source="labels.json",
        error=r"labels.json: no table of images and labels",
    ),
    "a label that has no name": Case(
        "{1..6}.png", {"train.txt": "".join(f"{n}.png {n}\n" for n in KINDS),
                       "synsets.txt": "cat\ndog\n"},
        source="train.txt", error=r"train.txt: line 2 has the label 2, but the 2 names beside it",
    ),
}  # fmt: skip


def build(root: Path, case: Case) -> Path:
    """Write the files: images that all differ."""
    write_images(root, case.images)
    for name, text in case.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / case.source


def labelled(*splits) -> dict[str, set[str]]:
    """The names of the images of splits, by class."""
    found: dict[str, set[str]] = {}
    for split in splits:
        for item in split:
            found.setdefault(split.classes[item.label], set()).add(item.name)
    return found


def expected(patterns: Mapping[str, str], root: Path) -> dict[str, set[str]]:
    return {
        name: {
            file.replace("ROOT", str(root)) for file in expand(pattern.replace("{ROOT}", "ROOT"))
        }
        for name, pattern in patterns.items()
    }


def check(data: Data, case: Case, root: Path) -> None:
    if case.test:
        assert labelled(data.train) == expected(case.train, root)
        assert labelled(data.test) == expected(case.test, root)
        assert not data.held_out
    else:
        assert labelled(data.train, data.test) == expected(case.train, root)
        assert data.held_out
    for note in case.notes:
        assert any(re.search(note, said) for said in data.notes), data.notes


@pytest.mark.parametrize("name", FILES)
def test_label_files(tmp_path, name):
    case = FILES[name]
    source = build(tmp_path, case)
    if not case.error:
        check(load_data(source, **case.options), case, tmp_path)
        return
    with pytest.raises(UserError, match=case.error) as caught:
        load_data(source, **case.options)
    assert "\n" not in str(caught.value)
