"""What the page and the endpoints share: everybody's workspaces, the training queue, answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image
from starlette.requests import Request

import clip_randlora as cr
from clip_randlora.adapters import ZeroShot
from clip_randlora.app.answers import Answer, Answers
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.checks import Checked, CheckJob
from clip_randlora.app.estimates import Estimates, ExportCost
from clip_randlora.app.findings_left import end_check
from clip_randlora.app.guessing import Guessing, model_at_hand
from clip_randlora.app.jobs import JobQueue, TrainingJob
from clip_randlora.app.searches import Choices, SearchJob, fingerprint
from clip_randlora.app.uploads import Upload, for_page, hidden_paths
from clip_randlora.app.workspace import Workspace
from clip_randlora.app.workspaces import Workspaces
from clip_randlora.data import DiskFile, Item, Skipped, UnreadableImage, list_images
from clip_randlora.data.sampling import count_shots
from clip_randlora.runs.run_folder import read_metrics
from clip_randlora.utils.outputs import atomic_write

_SECONDS_BETWEEN_SWEEPS = 300
_SECONDS_TO_COME_BACK = 10  # reloading a page closes it too
_IMAGES_AT_ONCE = 16  # few, so that one person's thousand do not hold up another's one


class Service:
    """Everybody's workspaces, the training queue and the answering thread of one app."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.workspaces = Workspaces(settings)
        self.answers = Answers(settings.device)
        self.guessing = Guessing(self.answers)
        self.estimates = Estimates(settings.folder.resolve() / "speed.json")
        self.queue = JobQueue(settings.max_train_minutes, settings.device, self._prepare_model)
        self._obstacles: dict[object, dict[str, str]] = {}  # by model and method
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        self.answers.prepare_base("lite0", self.estimates.measure)

    def workspace(self, request: gr.Request) -> Workspace:
        """Return the workspace of the visitor who asks from a page or a client."""
        return self.workspaces.of(self.visitor(request))

    def visitor(self, request: gr.Request | Request) -> str:
        """Return the secret of the visitor who asks."""
        visitor = self.workspaces.visitor(request.cookies)
        if visitor is None:  # the access middleware gives everybody one
            raise cr.UserError("a cookie says whose images are whose; allow it")
        return visitor

    def uploads(
        self, request: gr.Request, files: Sequence[Any], names: Sequence[str]
    ) -> list[Upload]:
        """Return uploaded files that a call names, with the names that they had.

        Args:
            request: the call.
            files: what Gradio's upload answered, or mappings with its ``path``.
            names: as many; with ``/`` for files of a folder.

        Raises:
            UserError: a file was not uploaded by this visitor.
        """
        visitor, found = self.visitor(request), []
        for number, file in enumerate(files):
            path = Path(str(file.get("path", "") if isinstance(file, Mapping) else file))
            if not path.is_file() or not self.workspaces.owns(visitor, path):
                raise cr.UserError("the file did not arrive; send it again")
            found.append(Upload(path, names[number] if number < len(names) else path.name))
        return found

    def arrive(self, request: gr.Request) -> None:
        """Note that a page was opened."""
        self.workspace(request).pages.add(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        """Note that a page was closed; what runs and nobody comes back to is stopped."""
        workspace = self.workspace(request)
        workspace.pages.discard(request.session_hash)
        timer = threading.Timer(_SECONDS_TO_COME_BACK, self._stop_abandoned, [workspace])
        timer.daemon = True
        timer.start()

    def _stop_abandoned(self, workspace: Workspace) -> None:
        if self.settings.trains_on:
            return
        for job in workspace.running:
            if not workspace.pages and job.is_learning:
                self.queue.stop(job)

    def start(
        self, workspace: Workspace, model: str, preset: str, settings: Mapping[str, Any]
    ) -> TrainingJob:
        """Queue a training.

        Args:
            workspace: whose images.
            model: a name of `clip_randlora.SUGGESTIONS`.
            preset: a name of `clip_randlora.PRESETS`.
            settings: what to set besides; as `clip_randlora.TrainConfig`.

        Raises:
            UserError: the images are not enough, a setting is wrong, or a training or search is
                under way.
        """
        _require_idle(workspace)
        config = self.config(model, preset, settings)
        run = workspace.runs.new_id()
        data = workspace.data(run)
        images = len(data.train) + len(data.test)
        source = f"{images} images of {len(data.classes)} classes, gathered in the app"
        job = TrainingJob(
            model=model,
            data=data,
            config=config,
            folder=workspace.folder / "runs" / run,
            source=source,
            preset=preset,
            on_end=lambda job: self._end(workspace, job),
        )
        workspace.begin_training(job)
        self.queue.submit(job)
        return job

    def start_search(self, workspace: Workspace, start: Choices, minutes: float) -> SearchJob:
        """Queue a search for better settings than those it starts with.

        Raises:
            UserError: the images or minutes do not suffice, a setting is wrong, or a training or
                search is under way.
        """
        _require_idle(workspace)
        most = self.settings.max_train_minutes
        if not 0 < minutes <= most:
            raise cr.UserError(f"minutes: {minutes:g}; give a number above 0, at most {most:g}")
        reason = workspace.why_not_search()
        if reason:
            raise cr.UserError(reason)
        config = self.config(start.model, start.preset, start.settings())
        counts = workspace.training_counts().values()
        if min(count_shots(config.shots, count) for count in counts) < 2:
            raise cr.UserError("images of each class: a search needs two or more")
        if isinstance(config.method, ZeroShot):
            raise cr.UserError("method zero_shot: it has nothing to search for; choose another")
        name = workspace.runs.new_id()
        job = SearchJob(
            model=start.model,
            data=workspace.data(name),
            config=config,
            folder=workspace.work / name,
            minutes=minutes,
            start=start,
            gathered=fingerprint(workspace.gathered()),
            on_end=workspace.end_search,
        )
        workspace.begin_search(job)
        self.queue.submit(job)
        return job

    def start_check(self, workspace: Workspace) -> CheckJob:
        """Queue a check of the images for wrong labels, near duplicates and bad files.

        Raises:
            UserError: the images are not enough, or a check is under way.
        """
        with workspace.lock:
            if workspace.check is not None:
                raise cr.UserError("your images are being checked already")
            name = workspace.runs.new_id()
            job = CheckJob(
                model=model_at_hand(workspace),
                data=workspace.data_as_it_is(name),
                folder=workspace.work / name,
                images={
                    picture.path.name: Checked(picture.number, class_name, digest)
                    for picture in workspace.pictures()
                    for class_name in [picture.class_name or ""]
                    for digest in [workspace.digest(picture)]
                },
                gathered=fingerprint(workspace.gathered()),
                on_end=lambda job: end_check(workspace, job),
            )
            workspace.check = job
        self.queue.submit(job)
        return job

    def config(self, model: str, preset: str, settings: Mapping[str, Any]) -> cr.TrainConfig:
        """Return the settings of a training.

        Raises:
            UserError: one is wrong, or the model is not offered.
        """
        if model not in {suggestion.name for suggestion in cr.SUGGESTIONS}:
            raise cr.UserError(f"model {model} is not offered here")
        return cr.TrainConfig.parse({**cr.read_preset(preset), **settings})

    def estimate(
        self, workspace: Workspace, model: str, preset: str, settings: Mapping[str, Any]
    ) -> float | None:
        """Return about how many seconds a training will take; None if that is not known yet."""
        config = self.config(model, preset, settings)
        pictures = [
            workspace.pictures(entry.name) for entry in workspace.project.classes if entry.is_on
        ]
        tested = sum(picture.is_test for group in pictures for picture in group)
        counts = [sum(not picture.is_test for picture in group) for group in pictures]
        if not tested:
            tested = round(sum(counts) * workspace.project.held_out)
            counts = [round(count * (1 - workspace.project.held_out)) for count in counts]
        images = sum(count_shots(config.shots, count) for count in counts)
        return self.estimates.seconds(model, config.method.method, config, images, tested)

    def obstacles(self, workspace: Workspace, run: str | None) -> dict[str, str]:
        """Return ``{format: why a run cannot be exported in it}``, "" where it can."""
        path = workspace.runs.path(run)
        if path.is_file():
            reason = "only an adapter was loaded; load the zip of its run for this"
            return dict.fromkeys(["run", *cr.export_formats()], reason) | {"adapter": ""}
        task, metrics = cr.read_task(path), read_metrics(path)
        key = task.model, task.pretrained, metrics.get("method")
        if key not in self._obstacles:
            # the file of the adapter is handed out as it is, a head's too
            self._obstacles[key] = cr.export_obstacles(path) | {"adapter": ""}
        return self._obstacles[key]

    def export_costs(self, workspace: Workspace, run: str | None) -> dict[str, ExportCost]:
        """Return ``{format: about how large an export is, and how long it takes}``."""
        model = cr.read_task(workspace.runs.path(run)).model
        sizes = {suggestion.name: suggestion.parameters for suggestion in cr.SUGGESTIONS}
        return {
            name: self.estimates.export_cost(model, name, sizes.get(model, 0))
            for name in ("adapter", "run", *cr.export_formats())
        }

    def note_export(
        self, workspace: Workspace, run: str | None, format: str, path: Path, seconds: float
    ) -> None:
        """Note what an export cost."""
        model = cr.read_task(workspace.runs.path(run)).model
        self.estimates.record_export(model, format, path.stat().st_size, seconds)

    def _prepare_model(self, model: cr.Model) -> None:
        self.estimates.measure(model)
        self.answers.prepare(model)

    def _end(self, workspace: Workspace, job: TrainingJob) -> None:
        """List a run whose training has ended, and get ready to answer with it."""
        workspace.end_training(job)
        if job.state != "done":
            return
        metrics = read_metrics(job.folder)
        images = min(metrics["images"]["train"], job.config.batch_size)
        method = job.config.method.method
        self.estimates.record(job.model, method, metrics["steps"], images, metrics["train_seconds"])
        self.answers.forget(job.folder)  # it answered before it was measured, without a threshold
        self.answers.prepare_run(job.folder)

    def classify(
        self, workspace: Workspace, image: Image.Image, strength: float, run: str | None = None
    ) -> Answer:
        """Return the zero-shot and the tuned answer of a run; of the one in use if it is None.

        Raises:
            UserError: there is no run, or it cannot be read.
        """
        (answer,) = self.answers.classify(workspace.runs.path(run), [image], strength)
        return answer

    def classify_many(
        self,
        workspace: Workspace,
        uploads: Sequence[Upload],
        strength: float,
        on_images: Callable[[int, int], None] = lambda done, images: None,
        run: str | None = None,
    ) -> tuple[list[tuple[str, Answer]], Path, list[Skipped]]:
        """Classify uploaded images, or those in uploaded zips.

        Args:
            workspace: whose run.
            uploads: image files and zips.
            strength: of the tuned answers.
            on_images: called with the number of images that are done, and of all.
            run: its id; None for the run in use.

        Returns:
            The name and both answers of each image; a CSV file with the probability of every
            class; the images that cannot be read.

        Raises:
            UserError: there is no run, no readable image, or too many.
        """
        path = workspace.runs.path(run)
        items, skipped = _list_uploads(uploads)
        if len(items) > self.settings.max_images:
            raise cr.UserError(
                f"{len(items)} images, at most {self.settings.max_images}; send fewer at a time"
            )
        answered: list[tuple[str, Answer]] = []
        for start in range(0, len(items), _IMAGES_AT_ONCE):
            on_images(start, len(items))
            names, pictures = [], []
            for item in items[start : start + _IMAGES_AT_ONCE]:
                try:
                    pictures.append(item.open())
                    names.append(item.name)
                except UnreadableImage as error:
                    skipped.append(Skipped(item.name, for_page(error.reason)))
            answers = self.answers.classify(path, pictures, strength) if pictures else []
            answered += zip(names, answers, strict=True)
        if not answered:
            first = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
            raise cr.UserError(f"none of these images can be read{first}")
        table = workspace.downloads / "answers.csv"
        with atomic_write(table) as temporary:
            frame = _table(answered, cr.read_task(path).classes)
            frame.to_csv(temporary, index=False, float_format="%.9g")
        return answered, table, skipped

    def delete(self, workspace: Workspace) -> None:
        """Delete a workspace and the uploads of its owner."""
        for job in workspace.running:
            self.queue.stop(job)
        self.answers.forget(workspace.folder)
        self.workspaces.delete(workspace)

    def _sweep(self) -> None:
        while True:
            self.workspaces.sweep()
            time.sleep(_SECONDS_BETWEEN_SWEEPS)


def _require_idle(workspace: Workspace) -> None:
    if workspace.search is not None:
        raise cr.UserError("your search for settings is under way; stop it first")
    if workspace.job is not None and workspace.job.is_learning:
        raise cr.UserError("your training is under way; stop it before you start another")


def _list_uploads(uploads: Sequence[Upload]) -> tuple[list[Item], list[Skipped]]:
    """Return the images among uploads and in uploaded zips, none unpacked to disk."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    for path, name in uploads:
        if path.suffix.lower() == ".zip":
            with hidden_paths(path, name):
                found, left_out = list_images(path)
            items += found
            skipped += left_out
        else:
            items.append(Item(name, 0, DiskFile(path, path.stat().st_size)))
    return items, skipped


def _table(answered: Sequence[tuple[str, Answer]], classes: Sequence[str]) -> pd.DataFrame:
    """Return a row for each image: both answers, and both probabilities of every class.

    ``unknown`` is the last column if the run has a threshold for images of no class.
    """
    sides = ("zero_shot", "tuned")
    return pd.DataFrame(
        {
            "image": name,
            **{which: next(iter(answer[which])) for which in sides},
            **{f"{which}: {c}": answer[which][c] for which in sides for c in classes},
            **({"unknown": answer["unknown"]} if "unknown" in answer else {}),
        }
        for name, answer in answered
    )
