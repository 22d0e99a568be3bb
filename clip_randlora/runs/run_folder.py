"""The folder of a run: who may write to it, and the files that a finished run has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.data import Data
from clip_randlora.errors import UserError
from clip_randlora.runs.image_record import FILE_NAME as IMAGES
from clip_randlora.runs.image_record import ImageRecord, write_images
from clip_randlora.runs.metrics_file import METRICS, read_metrics
from clip_randlora.runs.model_card import model_card
from clip_randlora.runs.predictions_file import write_predictions
from clip_randlora.runs.run import Run
from clip_randlora.runs.run_config import CONFIG, check_same_settings, has_config, write_config
from clip_randlora.training.checkpoint import FILE_NAME as CHECKPOINT
from clip_randlora.utils.outputs import (
    figure_errors_to_notes,
    is_empty_but_lock,
    lock_folder,
    remove_if_left_empty,
    write_csv,
    write_json,
    write_text,
)

__all__ = ["ADAPTER", "begin", "exclusive_run_folder", "has_checkpoint", "read_metrics", "write"]

FIGURES = ("curves", "confusion", "calibration", "examples")
_HISTORY_COLUMNS = ("step", "loss", "accuracy", "learning_rate")


@contextmanager
def exclusive_run_folder(
    out: str | Path, settings: Mapping[str, Any], resume: bool
) -> Iterator[Path]:
    """Lock a run folder while a training writes to it: a new one, or one to resume.

    If the training fails before there is anything to keep, the folder is left as it was.

    Raises:
        UserError: the folder holds something else, another run or a finished one, or another
            process writes to it.
    """
    folder = Path(out)
    try:
        folder.exists()
    except (OSError, ValueError) as error:  # too long, or it has a NUL
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
                for name in (CONFIG, IMAGES):
                    (folder / name).unlink(missing_ok=True)
            raise


def _check_can_write(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    if (folder / METRICS).exists():
        raise UserError(f"--out {folder}: holds a finished run; choose another folder")
    if has_config(folder):
        if not resume:
            raise UserError(
                f"--out {folder}: holds an unfinished run; add --resume to go on with it, or "
                f"choose another folder"
            )
        check_same_settings(folder, settings)
    elif not is_empty_but_lock(folder, CONFIG):
        raise UserError(f"--out {folder}: not empty and not a run; choose another folder")
    elif resume:
        raise UserError(f"--out {folder}: no run there to resume; leave --resume out to start one")


def begin(folder: Path, settings: Mapping[str, Any], images: ImageRecord) -> None:
    """Record the settings and the images: from now on the run can be resumed."""
    write_config(folder, settings)
    write_images(folder, images)


def has_checkpoint(folder: Path) -> bool:
    """Return whether the folder holds the state of an unfinished training."""
    return (folder / CONFIG).is_file() and (folder / CHECKPOINT).is_file()


def write(run: Run, folder: Path, settings: Mapping[str, Any], data: Data) -> None:
    """Write the files of a finished run beside its adapter.

    A figure that cannot be drawn becomes a note of the run. ``metrics.json``, which marks the run
    as finished, comes last.
    """
    columns = run.history[0] if run.history else _HISTORY_COLUMNS
    write_csv(folder / "history.csv", columns, (row.values() for row in run.history))
    write_predictions(folder, run.predictions)
    draw_figures(run, folder, data)
    write_text(folder / "README.md", model_card(run, folder, settings))
    write_json(folder / METRICS, run.metrics)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def draw_figures(
    run: Run, folder: Path, data: Data, names: Sequence[str] = FIGURES
) -> dict[str, Path]:
    """Draw figures as ``NAME.png`` and return their paths; what fails becomes a note of the run."""
    for name in names:
        with figure_errors_to_notes(f"{name}.png", run.notes):
            _draw(name, run, folder, data)
    return find_figures(folder, names)


def find_figures(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the paths of the figures that could be drawn, by their names."""
    paths = {name: folder / f"{name}.png" for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def _draw(name: str, run: Run, folder: Path, data: Data) -> None:
    from clip_randlora.runs import figures  # matplotlib takes memory that training needs

    figure = {
        "curves": lambda: figures.curves(run.history, run.metrics),
        "confusion": lambda: figures.confusions(run.predictions),
        "calibration": lambda: figures.calibration(run.predictions),
        "examples": lambda: figures.examples(run.predictions, data.test),
    }[name]()
    figures.save(figure, folder / f"{name}.png")
