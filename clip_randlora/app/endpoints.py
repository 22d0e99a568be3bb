"""The app's endpoints: what the page, scripts (``gradio_client``) and assistants (MCP) call."""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.events import api
from pydantic import ValidationError

import clip_randlora as cr
from clip_randlora.adapters.config import one_line
from clip_randlora.app.answers import Answer
from clip_randlora.app.calls import Caller, as_endpoint
from clip_randlora.app.describe import choices, describe, describe_images, suggestions
from clip_randlora.app.downloads import DOWNLOADS, export, snippet
from clip_randlora.app.findings_left import call_fine, describe_findings
from clip_randlora.app.project_archive import is_project, open_project, project_name, save_project
from clip_randlora.app.removals import Removal
from clip_randlora.app.run_results import results
from clip_randlora.app.searches import Choices
from clip_randlora.app.service import Service
from clip_randlora.app.workspace import Added
from clip_randlora.runs.run_folder import read_metrics

_SECONDS_BETWEEN_REPORTS = 0.5
_MOST_FRAME_BYTES = 4 * 2**20
_SAMPLE_CLASSES = ("bird", "fruit", "house", "mammal", "vehicle")
_SAMPLE_IMAGES = 12  # of each class, and as many test images at most

File = dict[str, Any]
"""An uploaded file, as ``gradio_client.handle_file`` gives it."""


class Endpoints:
    """Every endpoint is a method with the name that scripts call it by.

    The first six are those of the first version; their arguments stay as they are.
    """

    def __init__(self, service: Service):
        self.service = service
        self._bind_first_ones()
        for function in (
            self.state,
            self.choices,
            self.images,
            self.add_class,
            self.rename_class,
            self.set_class,
            self.remove_class,
            self.add_images,
            self.add_files,
            self.suggestions,
            self.sort_images,
            self.move_images,
            self.remove_images,
            self.undo,
            self.set_prompts,
            self.prompts,
            self.set_held_out,
            self.see_it_work,
            self.estimate,
            self.start_training,
            self.stop_training,
            self.start_search,
            self.stop_search,
            self.use_settings,
            self.start_check,
            self.stop_check,
            self.findings,
            self.call_fine,
            self.use_run,
            self.rename_run,
            self.remove_run,
            self.load_run,
            self.results,
            self.answer,
            self.answer_example,
            self.answer_frame,
            self.answer_many,
            self.formats,
            self.export_run,
            self.save_project,
            self.open_project,
            self.delete_everything,
        ):
            api(as_endpoint(service, function), api_name=function.__name__, queue=False)

    def _bind_first_ones(self) -> None:
        with gr.Column(visible=False):
            name, model = gr.Textbox("clipart"), gr.Textbox("lite0")
            method, preset = gr.Textbox("randlora"), gr.Textbox("balanced")
            shots, seed = gr.Number(16, precision=0), gr.Number(1, precision=0)
            strength, format, precision = gr.Number(1.0), gr.Textbox("adapter"), gr.Textbox("fp32")
            share, file, image = gr.Number(0.0), gr.File(), gr.File()
            result, exported = gr.JSON(), gr.File()
            for function, inputs, output in (
                (self.load_sample, [name], result),
                (self.load_archive, [file], result),
                (self.train, [model, method, shots, seed, preset], result),
                (self.predict, [image, strength], result),
                (self.evaluate, [], result),
                (self.export, [format, strength, precision, share], exported),
            ):
                gr.Button().click(
                    as_endpoint(self.service, function),
                    inputs,
                    output,
                    api_name=function.__name__,
                    concurrency_limit=None,
                )

    # --- the first version's --------------------------------------------------------------------

    def load_sample(self, caller: Caller, name: str) -> dict[str, Any]:
        """Add a bundled set to the project's images; return classes and counts.

        Args:
            name: clipart or digits.
        """
        return _summarize(caller, caller.workspace.add_data(name))

    def load_archive(self, caller: Caller, file: str) -> dict[str, Any]:
        """Add a zip of class folders; return classes, counts and what was skipped.

        Args:
            file: the zip.
        """
        return _summarize(caller, caller.workspace.add_data(Path(file)))

    def train(
        self, caller: Caller, model: str, method: str, shots: int, seed: int, preset: str
    ) -> Iterator[dict[str, Any]]:
        """Train on the project's images; stream the progress, end with the metrics.

        Args:
            model: lite0, ViT-B-32 or another that is offered.
            method: randlora, lora, vera, nola, dora, kradapter, norm_tuning, full,
                anchored_head or linear_probe.
            shots: training images per class; 0 for all.
            seed: same seed, same result, on one machine.
            preset: fast, balanced or thorough.
        """
        settings = {"method": method, "shots": shots or None, "seed": seed}
        job = self.service.start(caller.workspace, model, preset, settings)
        try:
            while job.is_running:
                row: dict[str, Any] = {"state": job.state}
                if job.state == "waiting":
                    row["place"] = self.service.queue.place(job)
                if job.history:
                    last = asdict(job.history[-1])
                    shown = ("step", "steps", "loss", "accuracy", "seconds_left")
                    row |= {name: last[name] for name in shown}
                yield row
                time.sleep(_SECONDS_BETWEEN_REPORTS)
        finally:
            if job.is_learning:  # the client is gone: others may train
                self.service.queue.stop(job)
        if job.state == "failed":
            raise cr.UserError(job.error)
        yield read_metrics(job.folder) if job.state == "done" else {"state": job.state}

    def predict(self, caller: Caller, image: str, strength: float) -> dict[str, Any]:
        """Classify an image with the run in use: ``{"zero_shot": {...}, "tuned": {...}}``.

        Args:
            image: the image file.
            strength: 0 (zero-shot) to 1 (tuned).
        """
        path = Path(image)
        picture = cr.decode_image(path, path.name)
        answer = self.service.classify(caller.workspace, picture, strength)
        return {which: answer[which] for which in ("zero_shot", "tuned")}

    def evaluate(self, caller: Caller) -> dict[str, Any]:
        """Return the metrics of the run in use on its test images."""
        return read_metrics(caller.workspace.runs.finished())

    def export(
        self, caller: Caller, format: str, strength: float, precision: str, share: float
    ) -> str:
        """Return a file of the run in use: the adapter, or a zip.

        Args:
            format: adapter, run, open_clip, transformers, peft, onnx, web or head.
            strength: 0 (zero-shot) to 1 (tuned), where the format takes one.
            precision: fp32; onnx and web also fp16, web also int8.
            share: weight of the run before, in an average of two runs.
        """
        return str(export(caller.workspace, format, strength, precision, share))

    # --- the project ----------------------------------------------------------------------------

    def state(self, caller: Caller) -> dict[str, Any]:
        """Return the project: classes with counts, warnings, the training, the runs."""
        return describe(self.service, caller.workspace)

    def choices(self, caller: Caller) -> dict[str, Any]:
        """Return what can be chosen: models, methods, presets, bundled sets, and the limits."""
        return choices(self.service)

    def images(self, caller: Caller, class_name: str = "") -> list[dict[str, Any]]:
        """Return number, name and use of every image of a class.

        Args:
            class_name: the class; "" for the images that are not sorted yet.
        """
        return describe_images(caller.workspace, class_name or None)

    def add_class(self, caller: Caller, name: str) -> str:
        """Add an empty class; return its name, tidied.

        Args:
            name: up to 80 characters, none of which a folder's name may not have.
        """
        return caller.workspace.add_class(name)

    def rename_class(self, caller: Caller, name: str, new: str) -> str:
        """Rename a class; return the new name, tidied.

        Args:
            name: of the class.
            new: what it is called from now on.
        """
        return caller.workspace.rename_class(name, new)

    def set_class(self, caller: Caller, name: str, prompts: list[str], is_on: bool) -> None:
        """Set what prompts call a class, and whether it is trained.

        Args:
            name: of the class.
            prompts: names for "a photo of a ...", or whole prompts; none for the class's name.
            is_on: whether it takes part in trainings.
        """
        caller.workspace.set_class(name, prompts, is_on)

    def remove_class(self, caller: Caller, name: str) -> dict[str, str]:
        """Remove a class with its images; return what was removed, and the token that undoes it.

        Args:
            name: of the class.
        """
        return _undoable(caller.workspace.remove_class(name))

    def add_images(
        self,
        caller: Caller,
        class_name: str,
        files: list[File],
        names: list[str] = [],  # noqa: B006
    ) -> dict[str, Any]:
        """Add images to a class; return how many were added, known already, and left out.

        Args:
            class_name: the class, which is added if it is new; "" for images not sorted yet.
            files: uploaded image files.
            names: what they are called; by default as uploaded.
        """
        uploads = caller.uploads(files, names)
        return asdict(caller.workspace.add_images(class_name or None, uploads))

    def add_files(self, caller: Caller, files: list[File], names: list[str]) -> dict[str, Any]:
        """Add what was dropped: folders become classes, loose images are not sorted yet.

        Zips of class folders are unpacked. A saved project must be the only file, and is opened if
        there is nothing to lose; else the answer has ``is_project``, and `open_project` takes it.

        Args:
            files: uploaded files.
            names: their paths, such as ``pets/cat/1.jpg``.
        """
        uploads = caller.uploads(files, names)
        zips = [upload for upload in uploads if upload.name.lower().endswith(".zip")]
        if len(uploads) == len(zips) == 1 and is_project(zips[0]):
            if caller.workspace.describe_contents():
                return {"is_project": True}
            _, notes = open_project(caller.workspace, zips[0].path, zips[0].name)
            return {**asdict(Added(notes=notes)), "opened": True}
        others = [upload for upload in uploads if upload not in zips]
        added = caller.workspace.add_tree(others)
        for upload in zips:
            added.add(caller.workspace.add_data(upload.path, upload.name))
        return asdict(added)

    def suggestions(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the images that are not sorted yet, with what they are taken for, surest first.

        The run in use guesses, or before a training the model, by the names of the classes. While
        it has not looked at an image, or it cannot be read (``reason``), there is no
        ``class_name``; `state` says in ``unsorted`` how far it is. An image that looks like none of
        the classes (``is_unknown``) comes after the others, with its most probable class. A
        training would learn most from the images with ``is_next``.
        """
        return suggestions(self.service, caller.workspace)

    def sort_images(self, caller: Caller, groups: dict[str, list[int]]) -> dict[str, str]:
        """Move images to several classes; return what was moved, and the token that undoes it.

        Args:
            groups: the numbers of the images of each class, such as ``{"cat": [1, 5]}``.
        """
        return _undoable(caller.workspace.sort_images({n or None: g for n, g in groups.items()}))

    def move_images(self, caller: Caller, numbers: list[int], class_name: str) -> dict[str, str]:
        """Move images to another class; return what was moved, and the token that undoes it.

        Args:
            numbers: of the images.
            class_name: the class, which must be there; "" for those that are not sorted yet.
        """
        return _undoable(caller.workspace.sort_images({class_name or None: numbers}))

    def remove_images(self, caller: Caller, numbers: list[int]) -> dict[str, str]:
        """Remove images; return what was removed, and the token that undoes it.

        Args:
            numbers: of the images.
        """
        return _undoable(caller.workspace.remove_images(numbers))

    def undo(self, caller: Caller, token: str) -> str:
        """Put back what was removed or moved in the last ten minutes; return what it was.

        Args:
            token: from the call that removed it.
        """
        return caller.workspace.undo(token)

    def set_prompts(self, caller: Caller, templates: list[str]) -> None:
        """Set the prompt templates.

        Args:
            templates: sentences with one {} each, where the class's name goes.
        """
        caller.workspace.set_templates(templates)

    def prompts(self, caller: Caller) -> dict[str, list[str]]:
        """Return every class's prompts, as a training will use them."""
        return caller.workspace.prompts()

    def set_held_out(self, caller: Caller, share: float) -> None:
        """Set the share of test images, which are never trained on.

        Args:
            share: between 0 and 1.
        """
        caller.workspace.set_held_out(share)

    # --- training -------------------------------------------------------------------------------

    def see_it_work(self, caller: Caller) -> None:
        """Load some of the bundled drawings, and start a fast training on them."""
        workspace = caller.workspace
        if not workspace.classes:
            workspace.add_sample("clipart", _SAMPLE_CLASSES, _SAMPLE_IMAGES)
        self.start_training(caller, "lite0", "randlora", "fast")

    def estimate(
        self,
        caller: Caller,
        model: str,
        method: str,
        preset: str,
        more: dict[str, Any] = {},  # noqa: B006
    ) -> float | None:
        """Return about how many seconds a training will take; null if that is not known yet.

        Args:
            model: as for `start_training`.
            method: as for `start_training`.
            preset: as for `start_training`.
            more: as for `start_training`.
        """
        settings = _choices(model, method, preset, more).settings()
        return self.service.estimate(caller.workspace, model, preset, settings)

    def start_training(
        self,
        caller: Caller,
        model: str,
        method: str,
        preset: str,
        more: dict[str, Any] = {},  # noqa: B006
    ) -> str:
        """Start a training, and return the id of its run; `state` says how far it is.

        Args:
            model: lite0, ViT-B-32 or another of `choices`.
            method: randlora, lora, vera, nola, dora, kradapter, norm_tuning, full,
                anchored_head or linear_probe.
            preset: fast, balanced or thorough.
            more: further settings of a training or of its method, by name.
        """
        chosen = _choices(model, method, preset, more)
        job = self.service.start(caller.workspace, model, preset, chosen.settings())
        caller.workspace.choose(chosen)
        return job.folder.name

    def stop_training(self, caller: Caller) -> None:
        """Stop the training; what it has learned is kept."""
        if caller.workspace.job is not None:
            self.service.queue.stop(caller.workspace.job)

    def start_search(
        self,
        caller: Caller,
        minutes: float,
        model: str,
        method: str,
        preset: str,
        more: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        """Search for better settings by cross-validation; `state` has its `search`.

        Only training images are used, and no run is made. The settings that are found can be given
        to `start_training`, and to `use_settings` for the page.

        Args:
            minutes: its time, at most that of a training.
            model: as for `start_training`.
            method: tried first, with its settings; then the methods that are good on most images.
            preset: as for `start_training`.
            more: as for `start_training`.
        """
        chosen = _choices(model, method, preset, more)
        self.service.start_search(caller.workspace, chosen, minutes)

    def stop_search(self, caller: Caller) -> None:
        """Stop the search for settings; the best so far is kept."""
        if caller.workspace.search is not None:
            self.service.queue.stop(caller.workspace.search)

    def use_settings(
        self,
        caller: Caller,
        model: str,
        method: str,
        preset: str,
        more: dict[str, Any] = {},  # noqa: B006
    ) -> None:
        """Set what the page trains with next.

        Args:
            model: as for `start_training`.
            method: as for `start_training`.
            preset: as for `start_training`.
            more: as for `start_training`.
        """
        chosen = _choices(model, method, preset, more)
        self.service.config(model, preset, chosen.settings())  # refuses what is wrong
        caller.workspace.choose(chosen)

    # --- checking -------------------------------------------------------------------------------

    def start_check(self, caller: Caller) -> None:
        """Look for wrong labels, near duplicates and bad files; `state` has its `check`."""
        self.service.start_check(caller.workspace)

    def stop_check(self, caller: Caller) -> None:
        """Stop the check; what the one before found stays."""
        if caller.workspace.check is not None:
            self.service.queue.stop(caller.workspace.check)

    def findings(self, caller: Caller) -> list[dict[str, Any]]:
        """Return what the last check found and nobody settled: kind, images, suggested class.

        What was moved or removed since, or called fine, is settled.
        """
        return describe_findings(caller.workspace)

    def call_fine(self, caller: Caller, keys: list[str]) -> dict[str, str]:
        """Remember that findings are fine, also in later checks; return the token that undoes it.

        Args:
            keys: of the findings.
        """
        return _undoable(call_fine(caller.workspace, keys))

    # --- runs -----------------------------------------------------------------------------------

    def use_run(self, caller: Caller, run: str) -> None:
        """Let a run answer from now on.

        Args:
            run: its id, from `state`.
        """
        caller.workspace.runs.use(run)

    def rename_run(self, caller: Caller, run: str, name: str) -> None:
        """Call a run something.

        Args:
            run: its id.
            name: up to 80 characters; "" for its number.
        """
        caller.workspace.runs.rename(run, name)

    def remove_run(self, caller: Caller, run: str) -> dict[str, str]:
        """Remove a run; return what was removed, and the token that undoes it.

        Args:
            run: its id.
        """
        return _undoable(caller.workspace.remove_run(run))

    def load_run(self, caller: Caller, file: File, name: str = "") -> list[str]:
        """Take in an adapter file or the zip of a run, and use it; return its classes.

        Args:
            file: the uploaded file.
            name: what it is called; by default as uploaded.
        """
        (upload,) = caller.uploads([file], [name] if name else [])
        return list(caller.workspace.load_run(upload.path, upload.name).classes)

    def results(self, caller: Caller, run: str = "") -> dict[str, Any]:
        """Return how good a run is: verdict, accuracies by class, both answers for each test image.

        Args:
            run: its id; "" for the run in use.
        """
        return results(caller.workspace, run or None)

    # --- answers --------------------------------------------------------------------------------

    def answer(
        self, caller: Caller, image: File, strength: float = 1.0, run: str = "", name: str = ""
    ) -> Answer:
        """Classify an uploaded image: ``{"zero_shot": {...}, "tuned": {...}}``, surest first.

        If the run knows when an image is of none of its classes, ``unknown`` is beside them.

        Args:
            image: the uploaded file.
            strength: 0 (zero-shot) to 1 (tuned).
            run: id of the run that answers; "" for the run in use.
            name: what the file is called in errors.
        """
        (upload,) = caller.uploads([image], [name] if name else [])
        picture = cr.decode_image(upload.path, upload.name)
        return self.service.classify(caller.workspace, picture, strength, run or None)

    def answer_example(
        self, caller: Caller, number: int, strength: float = 1.0, run: str = ""
    ) -> Answer:
        """Classify a gathered image.

        Args:
            number: of the image.
            strength: 0 (zero-shot) to 1 (tuned).
            run: id of the run that answers; "" for the run in use.
        """
        picture = caller.workspace.picture(number)
        image = cr.decode_image(picture.path, picture.name)
        return self.service.classify(caller.workspace, image, strength, run or None)

    def answer_frame(
        self, caller: Caller, frame: str, strength: float = 1.0, run: str = ""
    ) -> Answer:
        """Classify a picture of a camera.

        Args:
            frame: a JPEG or PNG in base64, as a ``data:`` URL or bare.
            strength: 0 (zero-shot) to 1 (tuned).
            run: id of the run that answers; "" for the run in use.
        """
        if len(frame) > _MOST_FRAME_BYTES:
            raise cr.UserError("the camera's picture is too large")
        try:
            content = base64.b64decode(frame.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise cr.UserError("the camera's picture did not arrive whole") from None
        image = cr.decode_image(io.BytesIO(content), "the camera's picture")
        return self.service.classify(caller.workspace, image, strength, run or None)

    def answer_many(
        self,
        caller: Caller,
        files: list[File],
        names: list[str] = [],  # noqa: B006
        strength: float = 1.0,
        run: str = "",
    ) -> dict[str, Any]:
        """Classify many images: both answers of each, and the address of a CSV file.

        Args:
            files: uploaded images and zips.
            names: what they are called; by default as uploaded.
            strength: 0 (zero-shot) to 1 (tuned).
            run: id of the run that answers; "" for the run in use.
        """
        uploads = caller.uploads(files, names)
        answered, table, skipped = self.service.classify_many(
            caller.workspace, uploads, strength, run=run or None
        )
        rows: list[dict[str, Any]] = []
        for name, answer in answered:
            (before, p_before), (after, p_after) = (
                next(iter(answer[which].items())) for which in ("zero_shot", "tuned")
            )
            rows.append({"name": name, "before": before, "after": after})
            rows[-1] |= {"p_before": p_before, "p_after": p_after}
            rows[-1]["unknown"] = answer.get("unknown", False)
        return {
            "rows": rows,
            "skipped": [asdict(entry) for entry in skipped],
            "csv": _address(table, project_name(caller.workspace, "-answers.csv")),
        }

    # --- take away ------------------------------------------------------------------------------

    def formats(self, caller: Caller, run: str = "") -> list[dict[str, Any]]:
        """Return the formats of an export: about how long, how large, and why not where it cannot.

        Args:
            run: its id; "" for the run in use.
        """
        obstacles = self.service.obstacles(caller.workspace, run or None)
        costs = self.service.export_costs(caller.workspace, run or None)
        return [
            {
                "name": name,
                "words": download.description,
                "takes_strength": download.takes_strength,
                "takes_share": download.takes_share,
                "precisions": list(download.precisions),
                "obstacle": obstacles.get(name, ""),
                "bytes": costs[name].bytes,
                "seconds": costs[name].seconds,
            }
            for name, download in DOWNLOADS.items()
        ]

    def export_run(
        self,
        caller: Caller,
        format: str,
        run: str = "",
        strength: float = 1.0,
        precision: str = "fp32",
        share: float = 0.0,
    ) -> dict[str, Any]:
        """Export a run; return the file's name, size and address, and Python that loads it.

        Args:
            format: one of `formats`.
            run: its id; "" for the run in use.
            strength: 0 (zero-shot) to 1 (tuned), where the format takes one.
            precision: fp32; onnx and web also fp16, web also int8.
            share: weight of the run before, in an average of two runs.
        """
        workspace, chosen = caller.workspace, run or None
        started = time.perf_counter()
        path = export(workspace, format, strength, precision, share, chosen)
        self.service.note_export(workspace, chosen, format, path, time.perf_counter() - started)
        name = project_name(workspace, f"-{format}{path.suffix}")
        return {
            "name": name,
            "bytes": path.stat().st_size,
            "address": _address(path, name),
            "snippet": snippet(workspace, format, share, chosen),
        }

    def save_project(self, caller: Caller) -> dict[str, Any]:
        """Save images, names, prompts, split and runs as one zip; return its address."""
        path = save_project(caller.workspace)
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "address": _address(path, path.name),
        }

    def open_project(self, caller: Caller, file: File, name: str = "") -> dict[str, Any]:
        """Open a saved project in place of this one; return notes, and the token that undoes it.

        Args:
            file: the uploaded zip.
            name: what it is called; by default as uploaded.
        """
        (upload,) = caller.uploads([file], [name] if name else [])
        token, notes = open_project(caller.workspace, upload.path, upload.name)
        what = "the project of before"
        return {"undo": token, "what": what, "done": f"Removed {what}", "notes": notes}

    def delete_everything(self, caller: Caller) -> None:
        """Delete all images, runs and uploads of this project for good."""
        self.service.delete(caller.workspace)


def _choices(model: str, method: str, preset: str, more: dict[str, Any]) -> Choices:
    try:
        return Choices(model=model, method=method, preset=preset, more=more)
    except ValidationError as error:
        raise cr.UserError(one_line(error, Choices.model_fields)) from error


def _undoable(removal: Removal) -> dict[str, str]:
    return {"what": removal.what, "done": removal.done, "undo": removal.token}


def _address(path: Path, name: str) -> str:
    """Return the address of a file in a project's folder, relative to the page."""
    return f"download/{path.parent.name}/{path.name}?name={quote(name)}"


def _summarize(caller: Caller, added: Added) -> dict[str, Any]:
    workspace = caller.workspace
    tests = {
        name: [picture.is_test for picture in workspace.pictures(name)]
        for name in workspace.classes
    }
    return {
        "classes": list(tests),
        "counts": {
            name: {"train": of_class.count(False), "test": of_class.count(True)}
            for name, of_class in tests.items()
        },
        "added": added.images,
        "known": added.known,
        "skipped": [asdict(entry) for entry in added.skipped],
        "warnings": workspace.warnings(),
    }
