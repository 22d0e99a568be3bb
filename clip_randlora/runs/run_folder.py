"""Run folders: what a training leaves behind, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from clip_randlora.adapters.config import one_line
from clip_randlora.adapters.io import adapter_files
from clip_randlora.clip.prompts import list_prompts, recorded_prompts
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.data import Data, summarize_skipped
from clip_randlora.errors import UserError
from clip_randlora.evaluation import Predictions
from clip_randlora.runs.image_record import FILE_NAME as IMAGES
from clip_randlora.runs.image_record import ImageRecord, write_images
from clip_randlora.training.checkpoint import FILE_NAME as CHECKPOINT
from clip_randlora.training.config import TrainConfig
from clip_randlora.utils import formats
from clip_randlora.utils.outputs import (
    atomic_write,
    figure_errors_to_notes,
    is_empty_but_lock,
    lock_folder,
    remove_if_left_empty,
)
from clip_randlora.utils.yaml_files import read_mapping

if TYPE_CHECKING:
    from clip_randlora.runs.run import Run

_CONFIG, _METRICS = "config.yaml", "metrics.json"
ADAPTER, PREDICTIONS = adapter_files.FILE_NAME, "predictions.csv"
ANSWER_COLUMNS = ("image", "label", "zero_shot", "tuned")
_HISTORY_COLUMNS = ("step", "loss", "accuracy", "learning_rate")
_COMPLETE = "complete"  # the last line of config.yaml, without which it was cut short
_CLASSES_IN_FULL = 100  # with more classes, predictions.csv holds the answers only


@contextmanager
def exclusive_run_folder(
    out: str | Path, settings: Mapping[str, Any], resume: bool
) -> Iterator[Path]:
    """Hold a run folder while a training writes to it, a new one or one to go on in.

    Nothing is left of a run that fails before there is anything to keep.

    Raises:
        UserError: the folder holds something else, another run, or a finished one, or another
            process writes there.
    """
    folder = Path(out)
    try:
        folder.exists()
    except (OSError, ValueError) as error:  # too long, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--out {str(out)[:60]}: no path ({reason}); choose another") from None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: there is a file of that name; choose another folder")
    with remove_if_left_empty(folder), lock_folder(folder):
        _check_can_write(folder, settings, resume)
        try:
            yield folder
        except UserError:
            if not (folder / CHECKPOINT).exists() and not (folder / ADAPTER).exists():
                for name in (_CONFIG, IMAGES):
                    (folder / name).unlink(missing_ok=True)
            raise


def begin(folder: Path, settings: Mapping[str, Any], images: ImageRecord) -> None:
    """Record the settings and the images: from now on, a run can go on in the folder."""
    recorded = {"format": formats.RUN, **settings, _COMPLETE: True}
    _write_text(folder / _CONFIG, yaml.safe_dump(recorded, sort_keys=False, allow_unicode=True))
    write_images(folder, images)


def begun_with(folder: str | Path) -> dict[str, Any]:
    """Return the training's settings that a run in the folder began with; none if there is none.

    Raises:
        UserError: they cannot be read.
    """
    return read_config(folder)["train"] if has_begun(Path(folder)) else {}


def has_begun(folder: Path) -> bool:
    """Tell whether a run can go on in the folder."""
    try:
        return (folder / _CONFIG).exists()
    except (OSError, ValueError):  # no path at all, which `exclusive_run_folder` says
        return False


def _check_can_write(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    config = folder / _CONFIG
    if (folder / _METRICS).exists():
        raise UserError(f"--out {folder}: holds a finished run; choose another folder")
    if config.exists():
        if not resume:
            raise UserError(
                f"--out {folder}: holds an unfinished run; add --resume to go on with it, or "
                f"choose another folder"
            )
        before, now = read_config(folder), json.loads(json.dumps(settings))
        known = now.keys() & before.keys()  # an older run does not record everything
        _check_same_settings(
            folder, *({key: of[key] for key in now if key in known} for of in (before, now))
        )
    elif not is_empty_but_lock(folder, _CONFIG):
        raise UserError(f"--out {folder}: not empty and not a run; choose another folder")
    elif resume:
        raise UserError(f"--out {folder}: no run there to resume; leave --resume out to start one")


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a run's settings.

    Raises:
        UserError: the folder holds no run, or its settings cannot be read.
    """
    path = Path(folder) / _CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: not a run folder (it has no {_CONFIG})")
    return check_config(path, read_mapping(path, "the settings of a run"))


def check_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's ``config.yaml`` holds, the settings as those of today.

    ``format`` stays the file's version.

    Raises:
        UserError: it is damaged, cut short, or of a version that is not known yet.
    """
    version = formats.check_version(f"{path}: format", config.setdefault("format", 1), formats.RUN)
    kinds = {"model": str, "pretrained": str | None, "classes": list, "train": dict}
    for name, kind in kinds.items():
        if name not in config or not isinstance(config[name], kind):
            raise UserError(f"{path}: damaged, {name} is not that of a run; copy the run again")
    if not isinstance(config.setdefault("data", {}), dict):
        raise UserError(f"{path}: damaged, data is not that of a run; copy the run again")
    if not config["classes"] or not all(isinstance(name, str) for name in config["classes"]):
        raise UserError(f"{path}: damaged, classes are not those of a run; copy the run again")
    fields, train = TrainConfig.model_fields, config["train"]
    recorded = formats.train_settings_of(version, list(fields))
    missing = [name for name in recorded if name not in train]
    train = formats.upgrade_train(train, version)
    if missing and train.keys() <= fields.keys():  # what is unknown is named when it is parsed
        raise UserError(f"{path}: damaged, train has no {missing[0]}; copy the run again")
    if version > 1 and config.get(_COMPLETE) is not True:
        raise UserError(f"{path}: damaged, cut short; copy the run again")
    return config | {"train": train}


def read_prompts(folder: str | Path, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return ``{class: prompts}`` of a run, as its settings record them.

    Those of a run that did not record them are what the version of then made of its class names.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / _CONFIG
    try:
        if "prompts" in config:
            stated = config.get("templates"), config["prompts"]
        else:
            train = TrainConfig.parse(config["train"])
            stated = train.templates or DEFAULT_TEMPLATES, train.prompts
        templates = TypeAdapter(tuple[str, ...]).validate_python(stated[0])
        names = TypeAdapter(dict[str, tuple[str, ...]]).validate_python(stated[1])
        return recorded_prompts(config["classes"], templates, names)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, prompts: {one_line(error)}; copy it again") from error
    except UserError as error:
        raise UserError(f"{path}: damaged settings: {error}") from error


def class_folders_of(folder: Path) -> str | None:
    """Return which folders the run's training took as classes, if it was told; see `load_data`."""
    return read_config(folder)["data"].get("class_folders") if has_begun(folder) else None


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Read a finished run's ``metrics.json``.

    Raises:
        UserError: the run is not finished, or the file is damaged.
    """
    path = Path(folder) / _METRICS
    if not path.is_file():
        raise UserError(f"{folder}: the run is not finished; go on with it by --resume")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if {"zero_shot", "tuned", "per_class"} <= metrics.keys():
            return metrics
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: damaged, not the metrics of a run")


def has_checkpoint(folder: Path) -> bool:
    """Whether an unfinished training left a state there to go on from."""
    return (folder / _CONFIG).is_file() and (folder / CHECKPOINT).is_file()


def write(run: Run, settings: Mapping[str, Any], data: Data) -> None:
    """Write a finished run's files beside its adapter; a figure that fails is a note of the run.

    ``metrics.json``, which marks it as finished, comes last.
    """
    folder, predictions = run.folder, run.predictions
    columns = run.history[0] if run.history else _HISTORY_COLUMNS
    _write_text(folder / "history.csv", _csv(columns, (row.values() for row in run.history)))
    _write_text(folder / PREDICTIONS, predictions_csv(predictions))
    for name in ("curves", "confusion", "calibration", "examples"):
        with figure_errors_to_notes(f"{name}.png", run.notes):
            _draw(name, run, data)
    _write_text(folder / "README.md", _card(run, settings))
    _write_text(folder / _METRICS, json.dumps(run.metrics, indent=2, ensure_ascii=False) + "\n")
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _draw(name: str, run: Run, data: Data) -> None:
    from clip_randlora.runs import figures  # matplotlib takes memory that training has a use for

    figure = {
        "curves": lambda: figures.curves(run.history, run.metrics),
        "confusion": lambda: figures.confusions(run.predictions),
        "calibration": lambda: figures.calibration(run.predictions),
        "examples": lambda: figures.examples(run.predictions, data.test),
    }[name]()
    figures.save(figure, run.folder / f"{name}.png")


def predictions_csv(predictions: Predictions) -> str:
    """Return a table of both answers: image, label, zero_shot, tuned and the probabilities.

    Up to 100 classes every class's probability is there, as ``zero_shot: CLASS``; with more, that
    of the answer only.
    """
    classes = predictions.classes
    header = [*ANSWER_COLUMNS, *probability_columns(classes)]
    rows = []
    for index, (name, label) in enumerate(
        zip(predictions.names, predictions.labels.tolist(), strict=True)
    ):
        zero_shot, tuned = predictions.zero_shot[index], predictions.tuned[index]
        row = [name, classes[label], classes[zero_shot.argmax()], classes[tuned.argmax()]]
        rows.append(row + probability_cells(zero_shot.tolist(), tuned.tolist()))
    return _csv(header, rows)


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Name the columns of both answers' probabilities, of every class or of the answers only."""
    if len(classes) > _CLASSES_IN_FULL:
        return ["zero_shot probability", "tuned probability"]
    return [f"{which}: {name}" for which in ("zero_shot", "tuned") for name in classes]


def probability_cells(zero_shot: Sequence[float], tuned: Sequence[float]) -> list[str]:
    """Write both answers' probabilities, in the order of the classes, for those columns."""
    if len(tuned) > _CLASSES_IN_FULL:
        zero_shot, tuned = [max(zero_shot)], [max(tuned)]
    return [f"{number:.9g}" for number in (*zero_shot, *tuned)]


def read_answers(folder: str | Path) -> list[dict[str, str]]:
    """Read ``predictions.csv``: for each test image ``image``, ``label``, ``zero_shot``, ``tuned``.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / PREDICTIONS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{key: row[key] for key in ANSWER_COLUMNS} for row in rows]
    except FileNotFoundError:
        raise UserError(f"{folder}: the run is not finished (it has no {PREDICTIONS})") from None
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged, not the predictions of a run") from error


def _csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_same_settings(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> None:
    keys = list(dict.fromkeys([*before, *now]))
    for key in sorted(keys, key=lambda key: isinstance(now.get(key), Mapping)):
        old, new = before.get(key), now.get(key)
        name = f"{path}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _check_same_settings(folder, old, new, f"{name}.")
        elif old != new:
            raise UserError(
                f"--resume: {folder} was begun with {name} = {old}, now it is {new}; resume with "
                f"the same settings (--config {folder / _CONFIG} has those of the training), or "
                f"choose another --out"
            )


def _card(run: Run, settings: Mapping[str, Any]) -> str:
    """Write the run's model card."""
    metrics, train = run.metrics, settings["train"]
    zero_shot, tuned = metrics["zero_shot"], metrics["tuned"]
    per_class = "\n".join(
        f"| {name} | {row['images']} | {row['zero_shot']:.1%} | {row['tuned']:.1%} |"
        for name, row in metrics["per_class"].items()
    )
    remarks = [*run.notes]
    if run.skipped:
        remarks.append(summarize_skipped(run.skipped))
    remarks = "\n".join(f"- {remark}" for remark in remarks)
    prompts = recorded_prompts(settings["classes"], settings["templates"], settings["prompts"])
    prompts = "\n".join(f"- {line}" for line in list_prompts(prompts, most=3))
    shown = "![examples](examples.png)\n\n" if (run.folder / "examples.png").exists() else ""
    return f"""# {metrics["model"]} tuned on {settings["data"]["data"]}

{shown}| | top-1 | expected calibration error |
|---|---|---|
| zero-shot | {zero_shot["top1"]:.1%} | {zero_shot["ece"]:.3f} |
| tuned | {tuned["top1"]:.1%} | {tuned["ece"]:.3f} |

Measured on {metrics["images"]["test"]} test images; trained on {metrics["images"]["train"]}
({train["shots"] or "all"} shots, seed {metrics["seed"]}) with {metrics["method"]}:
{metrics["trainable_parameters"]:,} trained numbers, {metrics["steps"]} steps,
{metrics["train_seconds"]:.0f} s on {metrics["device"]}.

| class | test images | zero-shot | tuned |
|---|---|---|---|
{per_class}

{remarks}

## Prompts

{prompts}

## Use it

```python
import clip_randlora as cr

classifier = cr.Classifier.load("{run.folder.name}")
classifier.predict(["image.jpg"])
```

Base model: {metrics["model"]}, weights: {metrics["pretrained"]}; its licence applies.
`config.yaml` has every setting and prompt.
"""
