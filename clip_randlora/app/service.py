"""What the page and the endpoints both do: the one place that starts trainings and asks runs."""

from __future__ import annotations

import csv
import io
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

import clip_randlora as cr
from clip_randlora.app.answers import Answer, Answers
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.jobs import Job, Trainer
from clip_randlora.app.uploads import without_paths
from clip_randlora.app.visitors import Visitors, visitor_in
from clip_randlora.app.workspace import Workspace
from clip_randlora.app.workspaces import Workspaces
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.data import DiskFile, Item, Skipped, UnreadableImage, list_images
from clip_randlora.runs.run_folder import ADAPTER

_SECONDS_BETWEEN_SWEEPS = 300
_SECONDS_TO_COME_BACK = 10  # reloading a page closes it too
_IMAGES_AT_ONCE = 16
_WHOLE = ("adapter", "run")  # given as trained: their strength is chosen where they are loaded
TRAIN_FIRST = "There is no tuned model yet: train one, or load a run under Take away."


class Service:
    """Everybody's workspaces, the training queue and the answering thread of one app."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.workspaces = Workspaces(settings)
        self.visitors = Visitors(settings.folder)
        self.answers = Answers(settings.device)
        self.trainer = Trainer(settings.max_train_minutes, settings.device, self.answers.prepare)
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def workspace(self, request: gr.Request) -> Workspace:
        """Return the workspace of whoever asks."""
        workspace = self.workspaces.of(request.session_hash)
        self.visitors.give(visitor_in(request.cookies), [workspace.folder])
        return workspace

    def leave(self, request: gr.Request) -> None:
        """Note that a page was closed; a training that nobody comes back to is stopped."""
        self.workspaces.leave(request.session_hash)
        timer = threading.Timer(_SECONDS_TO_COME_BACK, self._stop_left, [request.session_hash])
        timer.daemon = True
        timer.start()

    def _stop_left(self, session: str) -> None:
        workspace = self.workspaces.left(session)
        if workspace is not None and workspace.job is not None and workspace.job.is_learning:
            self.trainer.stop(workspace.job)

    def start(
        self, workspace: Workspace, model: str, preset: str, settings: Mapping[str, Any]
    ) -> Job:
        """Queue a training.

        Args:
            workspace: whose images.
            model: a name of `clip_randlora.SUGGESTIONS`.
            preset: a name of `clip_randlora.PRESETS`.
            settings: what to set besides; as `clip_randlora.TrainConfig`.

        Raises:
            UserError: the images are not enough, a setting is wrong, or a training is under way.
        """
        if workspace.job is not None and workspace.job.is_learning:
            raise cr.UserError("your training is under way; stop it before you start another")
        if model not in {suggestion.name for suggestion in cr.SUGGESTIONS}:
            raise cr.UserError(f"model {model} is not offered here")
        chosen = {**cr.read_preset(preset), **settings, "prompts": workspace.names_in_prompts()}
        if workspace.templates != DEFAULT_TEMPLATES:
            chosen["templates"] = workspace.templates
        config = cr.TrainConfig.parse(chosen)
        job = Job(model, workspace.data(), config, workspace.new_run(), workspace.source())
        workspace.job = job
        self.trainer.submit(job)
        return job

    def classify(
        self, workspace: Workspace, images: Sequence[Path | Image.Image], strength: float
    ) -> list[Answer]:
        """Return zero-shot and tuned answers of the workspace's run.

        Raises:
            UserError: there is no run, or an image cannot be read.
        """
        if workspace.run is None:
            raise cr.UserError(TRAIN_FIRST)
        workspace.remember_uploads(image for image in images if isinstance(image, Path))
        return self.answers.classify(workspace.run, images, strength)

    def classify_many(
        self,
        workspace: Workspace,
        uploads: Sequence[Path],
        strength: float,
        on_images: Callable[[int, int], None],
    ) -> tuple[list[list[str]], Path, list[Skipped]]:
        """Classify uploaded images, or those in uploaded zips.

        Args:
            workspace: whose run.
            uploads: image files and zips.
            strength: of the tuned answers.
            on_images: called with the number of images that are done, and of all.

        Returns:
            A row ``image, zero-shot, probability, tuned, probability`` for each image; the CSV
            of the same with every class; what could not be read.

        Raises:
            UserError: there is no run, no readable image, or too many.
        """
        workspace.remember_uploads(uploads)
        items, skipped = _list_images(uploads, workspace.settings.max_images)
        table: list[tuple[str, Answer]] = []
        for start in range(0, len(items), _IMAGES_AT_ONCE):
            on_images(start, len(items))
            names, pictures = [], []
            for item in items[start : start + _IMAGES_AT_ONCE]:
                try:
                    pictures.append(item.open())
                    names.append(item.name)
                except UnreadableImage as error:
                    skipped.append(Skipped(item.name, error.reason))
            table += zip(names, self.classify(workspace, pictures, strength), strict=True)
        if not table:
            raise cr.UserError("none of these images can be read")
        path = _write_table(table, workspace.downloads() / "answers.csv")
        return [_short_row(name, answer) for name, answer in table], path, skipped

    def finished_run(self, workspace: Workspace) -> Path:
        """Return the folder of the run in use.

        Raises:
            UserError: there is none, it is still measured, or only its adapter was loaded.
        """
        run = workspace.run
        if run is None:
            raise cr.UserError(TRAIN_FIRST)
        if run.is_file():
            raise cr.UserError("only an adapter was loaded; load the zip of its run for this")
        if not (run / "metrics.json").exists():
            raise cr.UserError("the run is still being measured; try again in a moment")
        return run

    def adapter_file(self, workspace: Workspace) -> Path:
        """Return the adapter file in use.

        Raises:
            UserError: there is no run.
        """
        if workspace.run is None:
            raise cr.UserError(TRAIN_FIRST)
        return workspace.run if workspace.run.is_file() else workspace.run / ADAPTER

    def formats(self) -> dict[str, str]:
        """Return what can be downloaded: name -> what it is."""
        others = {
            name: f"{name}: {sentence}"
            for name, sentence in cr.export_formats().items()
            if name != "adapter"
        }
        return {
            "adapter": "adapter: one small file that loads with clip-randlora.",
            "run": "run: the adapter, metrics, predictions, figures and model card.",
            **others,
        }

    def takes_strength(self, name: str) -> bool:
        """Tell whether a strength goes into a download, or is chosen where it is loaded."""
        return name not in _WHOLE

    def precisions(self, name: str) -> tuple[str, ...]:
        """Return the precisions in which a download can be had, the default first."""
        return ("fp32",) if name in _WHOLE else cr.export_precisions(name)

    def takes_sums(self, name: str) -> bool:
        """Tell whether a download can be the average of two runs."""
        return name not in ("run", "peft")

    def export(
        self, workspace: Workspace, name: str, strength: float, precision: str, share: float = 0.0
    ) -> Path:
        """Return a file of the run in use, in one of `formats`: the adapter, or a zip.

        Args:
            workspace: whose run.
            name: one of `formats`.
            strength: 0 (zero-shot) to 1 (tuned), for those that take one; 1 for the others.
            precision: one of `precisions`.
            share: of the run before in a weighted average of two runs, 0 to 1.

        Raises:
            UserError: there is no run, or the format does not fit its model, or it cannot be had
                at that strength or precision, or there is no run before that fits.
        """
        if name not in self.formats():
            raise cr.UserError(f"format {name}: choose {', '.join(self.formats())}")
        if strength != 1 and not self.takes_strength(name):
            raise cr.UserError(
                f"strength {strength:g}: {name} is given as trained and its strength chosen where "
                f"it is loaded; leave it at 1"
            )
        if precision not in self.precisions(name):
            choices = " or ".join(self.precisions(name))
            raise cr.UserError(f"precision {precision}: {name} is written in {choices}")
        before = self._run_to_average(workspace, name, share)
        if name == "adapter" and before is None:
            return self.adapter_file(workspace)
        run = self.finished_run(workspace)
        marks = f"{name}-strength{strength:g}-{precision}" if self.takes_strength(name) else name
        marks += f"-share{share:g}-{before.name}" if before else ""
        path = workspace.downloads() / f"{marks}-{run.name}.zip"
        if not path.exists() and name == "run":
            _zip_folder(run, path, "run")
        elif not path.exists():
            with tempfile.TemporaryDirectory(dir=workspace.downloads()) as folder:
                options = {"strength": strength, "precision": precision}
                if before:
                    options |= {"add": [before], "weights": (1 - share, share)}
                write = partial(cr.export_run, run, name, Path(folder) / name, **options)
                _zip_folder(without_paths(write, workspace.folder, "your run"), path, name)
        return path

    def _run_to_average(self, workspace: Workspace, name: str, share: float) -> Path | None:
        """Return the run before if it has a share, and refuse what cannot be averaged."""
        if not 0 <= share <= 1:
            raise cr.UserError(f"share {share:g}: must lie between 0 and 1")
        if share == 0:
            return None
        if not self.takes_sums(name):
            raise cr.UserError(f"share {share:g}: {name} is of one run alone; leave it at 0")
        if workspace.run_before is None:
            raise cr.UserError(
                f"share {share:g}: there is no run before this one to average it with; train twice "
                f"or load one"
            )
        return workspace.run_before

    def snippet(self, workspace: Workspace, name: str, share: float = 0.0) -> str:
        """Return the Python lines that load a download; see `export`."""
        if name not in _WHOLE:
            return cr.loading_snippet(self.finished_run(workspace), name, name)
        folder = "adapter/" if share else ""
        path = {"adapter": f"{folder}{ADAPTER}", "run": "run"}[name]
        return (
            "import clip_randlora as cr\n\n"
            f'classifier = cr.Classifier.load("{path}")\n'
            'print(classifier.predict(["image.jpg"]))\n'
        )

    def delete(self, request: gr.Request) -> None:
        """Delete everything that whoever asks has here."""
        workspace = self.workspace(request)
        if workspace.job is not None:
            self.trainer.stop(workspace.job)
        self.answers.forget(workspace.folder)
        self.workspaces.delete(request.session_hash)

    def _sweep(self) -> None:
        while True:
            self.workspaces.sweep()
            self.visitors.forget_missing()
            time.sleep(_SECONDS_BETWEEN_SWEEPS)


def _list_images(uploads: Sequence[Path], most: int) -> tuple[list[Item], list[Skipped]]:
    """Return the images among uploads and in uploaded zips, none unpacked to disk."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    for upload in uploads:
        if upload.suffix.lower() == ".zip":
            found, left_out = without_paths(partial(list_images, upload), upload, upload.name)
            items += found
            skipped += left_out
        else:
            items.append(Item(upload.name, 0, DiskFile(upload, upload.stat().st_size)))
    if len(items) > most:
        raise cr.UserError(f"{len(items)} images, at most {most}; send fewer at a time")
    return items, skipped


def _short_row(name: str, answer: Answer) -> list[str]:
    """Return ``image, zero-shot, probability, tuned, probability``."""
    row = [name]
    for which in ("zero_shot", "tuned"):
        top, probability = max(answer[which].items(), key=lambda pair: pair[1])
        row += [top, f"{probability:.1%}"]
    return row


def _zip_folder(folder: Path, path: Path, name: str) -> None:
    """Zip a folder under a name, written whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                zipped.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
    temporary.replace(path)


def _write_table(table: Sequence[tuple[str, Answer]], path: Path) -> Path:
    """Write both answers with every class's probability as CSV."""
    classes = list(table[0][1]["zero_shot"])
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [f"{which}: {name}" for which in ("zero_shot", "tuned") for name in classes]
    writer.writerow(["image", "zero_shot", "tuned", *columns])
    for name, answer in table:
        tops = [max(answer[which], key=answer[which].get) for which in ("zero_shot", "tuned")]
        numbers = [answer[which][c] for which in ("zero_shot", "tuned") for c in classes]
        writer.writerow([name, *tops, *(f"{number:.9g}" for number in numbers)])
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)
    return path
