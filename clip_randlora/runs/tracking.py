"""A training in an experiment tracker, if one is asked for: settings, curves, results and figures.

The trackers are accelerate's (`accelerate.tracking`). Where a training is reported is no setting of
it: ``config.yaml`` does not record it, so a run that is resumed or repeated reports nothing unless
it is asked again.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_randlora.errors import UserError, needs_extra

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
"""Names of the trackers; each is also the extra that brings its library."""

TENSORBOARD_FOLDER = "tensorboard"
"""The folder of TensorBoard's files in a run folder."""

_PROJECT = "clip-randlora"


def check_trackers(track: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of trackers, each once.

    Raises:
        UserError: one is unknown, or its library is not installed.
    """
    names = tuple(dict.fromkeys([track] if isinstance(track, str) else track))
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track {name}: no such tracker; choose {', '.join(TRACKERS)}")
        with needs_extra(f"--track {name}", name):
            importlib.import_module(name)
    return names


class Tracking:
    """Reports one training to its trackers, inside a ``with`` block.

    A tracker that fails during the training is left out from then on, and a note says so: the
    training goes on. Nothing happens without trackers.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, run: str, notes: list[str]):
        """Prepare to report; `start` begins.

        Args:
            names: what `check_trackers` returned; none in processes beside the main one.
            folder: of the run.
            run: its name.
            notes: gets a line for each tracker that fails.

        Raises:
            UserError: TensorBoard was asked for, and there is no run folder for its files.
        """
        if "tensorboard" in names and folder is None:
            raise UserError("--track tensorboard: writes into the run folder; give one as `out`")
        # those that may refuse come before TensorBoard, which has written a file by then
        self._trackers = [
            _Tracker(name, folder, run) for name in sorted(names, key="tensorboard".__eq__)
        ]
        self._notes = notes
        self._logged: list[Mapping[str, float | None]] = []

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(_Tracker.finish)

    def start(self, settings: Mapping[str, Any]) -> None:
        """Open the trackers, and record the settings by their paths, as ``method/rank``.

        Raises:
            UserError: a tracker cannot be opened.
        """
        flat = {
            name: value if isinstance(value, str | int | float) else _as_text(value)
            for name, value in _flatten(settings).items()
        }
        for tracker in self._trackers:
            try:
                with redirect_stdout(sys.stderr):
                    tracker.start(flat)
            except Exception as error:
                raise UserError(f"--track {tracker.name}: {_reason(error)}") from error

    def log_history(self, history: Sequence[Mapping[str, float | None]]) -> None:
        """Report the rows of ``history.csv`` that are new, as ``train/loss`` and so on.

        A training that diverged begins again, with another history. Its second try is another run
        of the trackers, because some refuse a step that is not after the last.
        """
        if history[: len(self._logged)] != self._logged:
            self._tell(_Tracker.restart)
            self._logged = []
        for row in history[len(self._logged) :]:
            values = {f"train/{name}": value for name, value in row.items() if name != "step"}
            self._tell(_Tracker.log, values, int(row["step"] or 0))
        self._logged = list(history)

    def log_results(self, metrics: Mapping[str, Any], figures: Mapping[str, Path]) -> None:
        """Report the final metrics as ``tuned/top1`` and so on, and figures.

        Args:
            metrics: of the run. The accuracies of each class are left to the confusion matrix.
            figures: PNG files by their names.
        """
        kept = {name: value for name, value in metrics.items() if name != "per_class"}
        self._tell(_Tracker.log, _flatten(kept), metrics["steps"])
        self._tell(_Tracker.log_figures, figures, metrics["steps"])

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """Do this with every tracker that has not failed."""
        for tracker in list(self._trackers):
            try:
                with redirect_stdout(sys.stderr):  # standard output has the command's own lines
                    what(tracker, *arguments)
            except Exception as error:
                self._trackers.remove(tracker)
                self._notes.append(
                    f"--track {tracker.name} failed and was left out from then on: {_reason(error)}"
                )
                with suppress(Exception):
                    tracker.finish()


class _Tracker:
    """One of accelerate's trackers, and what they do not have in common."""

    def __init__(self, name: str, folder: Path | None, run: str):
        self.name, self._folder, self._run = name, folder, run
        self._tracker: Any = None  # while it is open

    def start(self, settings: Mapping[str, Any]) -> None:
        """Open a run and record its settings."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._settings = settings
        project, options = self._options()
        tracker = LOGGER_TYPE_TO_CLASS[self.name](project, **options)
        tracker.main_process_only = False  # the other processes have none
        tracker.start()
        self._tracker = tracker
        tracker.store_init_configuration(dict(settings))

    def _options(self) -> tuple[str, dict[str, Any]]:
        """Return the project, and what else the tracker is opened with."""
        if self.name == "tensorboard":
            # what an interrupted training wrote is reported again, so it is hidden
            return TENSORBOARD_FOLDER, {"logging_dir": self._folder, "purge_step": 0}
        if self.name == "mlflow":
            return _PROJECT, {"run_name": self._run}
        project = os.environ.get(f"{self.name.upper()}_PROJECT", _PROJECT)
        options: dict[str, Any] = {"name": self._run}
        if self.name == "trackio":  # nothing that was not asked for: the machine's load, a page
            options |= {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}
        return project, options

    def restart(self) -> None:
        """Begin another run with the same settings."""
        self.finish()
        self.start(self._settings)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Report the numbers among these values."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._tracker.log(numbers, step=step)

    def log_figures(self, figures: Mapping[str, Path], step: int) -> None:
        """Report PNG files."""
        if self.name == "mlflow":
            for path in figures.values():
                self._tracker.log_artifact(str(path))
        elif self.name == "trackio":
            import trackio

            images = {name: trackio.Image(str(path)) for name, path in figures.items()}
            self._tracker.log(images, step=step)
        else:
            batches = {
                name: np.asarray(Image.open(path).convert("RGB"))[None]
                for name, path in figures.items()
            }
            how = {"dataformats": "NHWC"} if self.name == "tensorboard" else {}
            self._tracker.log_images(batches, step=step, **how)

    def finish(self) -> None:
        """End the run."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None and self.name == "trackio":
            import trackio

            trackio.finish()  # after accelerate's, the process ends the run again when it exits
        elif tracker is not None:
            tracker.finish()


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their paths, as ``tuned/top1``."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _as_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _reason(error: Exception) -> str:
    """Return what went wrong in one line."""
    return " ".join(str(error).split()) or type(error).__name__
