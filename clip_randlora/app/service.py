"""What the page and the endpoints share: everybody's workspaces, the training queue, answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

import clip_randlora as cr
from clip_randlora.app.answers import Answer, Answers
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.jobs import Job, TrainingQueue
from clip_randlora.app.uploads import hidden_paths
from clip_randlora.app.workspace import Workspace
from clip_randlora.app.workspaces import Workspaces, visitor_in
from clip_randlora.clip.templates import DEFAULT_TEMPLATES
from clip_randlora.data import DiskFile, Item, Skipped, UnreadableImage, list_images
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
        self.queue = TrainingQueue(
            settings.max_train_minutes, settings.device, self.answers.prepare
        )
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def workspace(self, request: gr.Request) -> Workspace:
        """Return the workspace of the visitor who asks from a page or a client."""
        visitor = visitor_in(request.cookies)
        if visitor is None:  # the access middleware gives everybody one
            raise cr.UserError("a cookie says whose images are whose; allow it")
        workspace = self.workspaces.of(visitor)
        workspace.pages.add(request.session_hash)
        return workspace

    def leave(self, request: gr.Request) -> None:
        """Note that a page was closed; a training that nobody comes back to is stopped."""
        workspace = self.workspace(request)
        workspace.pages.discard(request.session_hash)
        timer = threading.Timer(_SECONDS_TO_COME_BACK, self._stop_abandoned, [workspace])
        timer.daemon = True
        timer.start()

    def _stop_abandoned(self, workspace: Workspace) -> None:
        if not workspace.pages and workspace.job is not None and workspace.job.is_learning:
            self.queue.stop(workspace.job)

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
        chosen = {**cr.read_preset(preset), **settings}
        if workspace.templates != DEFAULT_TEMPLATES:
            chosen["templates"] = workspace.templates
        data = workspace.data()
        chosen["prompts"] = {
            name: words for name, words in workspace.names.items() if name in data.classes
        }
        config = cr.TrainConfig.parse(chosen)
        images = len(workspace.pictures())
        source = f"{images} images of {len(workspace.classes)} classes, gathered in the app"
        job = Job(model, data, config, workspace.new_run(), source)
        self.queue.submit(job)
        workspace.job = job
        return job

    def classify(self, workspace: Workspace, path: Path, strength: float) -> Answer:
        """Return the zero-shot and the tuned answer of the workspace's run.

        Raises:
            UserError: there is no run, or the image cannot be read.
        """
        run = workspace.require_run()
        (answer,) = self.answers.classify(run, [cr.decode_image(path, path.name)], strength)
        return answer

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
            A row ``image, zero-shot, probability, tuned, probability`` for each image; a CSV file
            with the probability of every class; the images that cannot be read.

        Raises:
            UserError: there is no run, no readable image, or too many.
        """
        run = workspace.require_run()
        items, skipped = _list_uploads(uploads)
        if len(items) > self.settings.max_images:
            raise cr.UserError(
                f"{len(items)} images, at most {self.settings.max_images}; send fewer at a time"
            )
        names: list[str] = []
        answers: list[Answer] = []
        for start in range(0, len(items), _IMAGES_AT_ONCE):
            on_images(start, len(items))
            pictures = []
            for item in items[start : start + _IMAGES_AT_ONCE]:
                try:
                    pictures.append(item.open())
                    names.append(item.name)
                except UnreadableImage as error:
                    skipped.append(Skipped(item.name, error.reason))
            answers += self.answers.classify(run, pictures, strength)
        if not answers:
            raise cr.UserError("none of these images can be read")
        path = workspace.folder / "downloads" / "answers.csv"
        with atomic_write(path) as temporary:
            table = _table(names, answers, cr.read_task(run).classes)
            table.to_csv(temporary, index=False, float_format="%.9g")
        rows = [
            [name, *_top(answer["zero_shot"]), *_top(answer["tuned"])]
            for name, answer in zip(names, answers, strict=True)
        ]
        return rows, path, skipped

    def delete(self, workspace: Workspace) -> None:
        """Delete a workspace and the uploads of its owner."""
        if workspace.job is not None:
            self.queue.stop(workspace.job)
        self.answers.forget(workspace.folder)
        self.workspaces.delete(workspace)

    def _sweep(self) -> None:
        while True:
            self.workspaces.sweep()
            time.sleep(_SECONDS_BETWEEN_SWEEPS)


def _list_uploads(uploads: Sequence[Path]) -> tuple[list[Item], list[Skipped]]:
    """Return the images among uploads and in uploaded zips, none unpacked to disk."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    for upload in uploads:
        if upload.suffix.lower() == ".zip":
            with hidden_paths(upload, upload.name):
                found, left_out = list_images(upload)
            items += found
            skipped += left_out
        else:
            items.append(Item(upload.name, 0, DiskFile(upload, upload.stat().st_size)))
    return items, skipped


def _top(probabilities: Mapping[str, float]) -> tuple[str, str]:
    """Return the answer and its probability, as they are shown."""
    name, probability = next(iter(probabilities.items()))
    return name, f"{probability:.1%}"


def _table(names: Sequence[str], answers: Sequence[Answer], classes: Sequence[str]) -> pd.DataFrame:
    """Return a row for each image: both answers, and both probabilities of every class."""
    return pd.DataFrame(
        {
            "image": name,
            **{which: next(iter(of_class)) for which, of_class in answer.items()},
            **{f"{which}: {c}": of_class[c] for which, of_class in answer.items() for c in classes},
        }
        for name, answer in zip(names, answers, strict=True)
    )
