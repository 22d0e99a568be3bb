"""What the page shows of a project: one function turns it into plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import clip_randlora as cr
from clip_randlora.app.findings_left import findings_left
from clip_randlora.app.guessing import explain
from clip_randlora.app.jobs import TrainingJob
from clip_randlora.app.pictures import Picture
from clip_randlora.app.project_file import RunEntry
from clip_randlora.app.run_results import summarize
from clip_randlora.app.searches import fingerprint
from clip_randlora.app.service import Service
from clip_randlora.app.tray import Guess
from clip_randlora.app.workspace import Workspace
from clip_randlora.data.projects import ProjectClass
from clip_randlora.runs.image_record import read_images
from clip_randlora.tuning import TRAININGS

_Image = tuple[str, str]  # class and digest
_SHOWN = 8  # images of a class on its card
_SHOWN_UNSORTED = 60
_SEARCH_MINUTES = (2, 10, 30)
_METHODS = (
    "randlora", "lora", "vera", "nola", "dora", "kradapter", "norm_tuning", "anchored_head",
    "linear_probe", "full",
)  # fmt: skip
_TITLES = {
    "anchored_head": "Anchored head",
    "linear_probe": "Linear probe",
    "norm_tuning": "Norm tuning",
    "full": "Full fine-tuning",
}
_PRESET_WORDS = {
    "fast": "A first look: a quarter of the training.",
    "balanced": "The usual training.",
    "thorough": "Twice the training, and three prompts a class.",
}


def describe(service: Service, workspace: Workspace) -> dict[str, Any]:
    """Return the project as the page shows it: images, training, runs, choices."""
    with workspace.lock:
        if workspace.list_trained() and workspace.job is not None:
            service.answers.prepare_run(workspace.job.folder)
        used = workspace.runs.in_use()
        images = workspace.gathered()
        return {
            "classes": [describe_class(workspace, entry) for entry in workspace.project.classes],
            "unsorted": _describe_unsorted(service, workspace),
            "warnings": workspace.warnings(),
            "held_out": workspace.project.held_out,
            "templates": list(workspace.project.templates),
            "why_not_train": workspace.why_not_train(),
            "why_not_search": workspace.why_not_search(),
            "training": _describe_training(service, workspace),
            "search": _describe_search(service, workspace, images),
            "check": _describe_check(service, workspace, images),
            "runs": [describe_run(workspace, entry, images) for entry in workspace.project.runs],
            "in_use": used.id if used else "",
            "choices": workspace.project.choices,
            "contents": workspace.describe_contents(),
        }


def describe_class(workspace: Workspace, entry: ProjectClass) -> dict[str, Any]:
    """Return a class with its counts and its first images."""
    pictures = workspace.pictures(entry.name)
    test = sum(picture.is_test for picture in pictures)
    return {
        "name": entry.name,
        "prompts": list(entry.prompts),
        "is_on": entry.is_on,
        "train": len(pictures) - test,
        "test": test,
        "images": [describe_picture(workspace, picture) for picture in pictures[:_SHOWN]],
    }


def describe_images(workspace: Workspace, class_name: str | None) -> list[dict[str, Any]]:
    """Return all images of a class, or those not sorted yet."""
    chosen = workspace.unsorted() if class_name is None else workspace.pictures(class_name)
    return [describe_picture(workspace, picture) for picture in chosen]


def _describe_unsorted(service: Service, workspace: Workspace) -> dict[str, Any]:
    """Return the images that are not sorted yet, and how far somebody has looked at them."""
    tray, unsorted = service.guessing.look(workspace), workspace.unsorted()
    return {
        "count": len(unsorted),
        "images": [describe_picture(workspace, p) for p in unsorted[:_SHOWN_UNSORTED]],
        "words": explain(workspace, tray.guesser),
        "guessed": sum(picture.number in tray.guesses for picture in unsorted),
        "is_busy": tray.is_busy,
        "next": [picture.number for picture in unsorted if picture.number in tray.next],
        "error": tray.error,
    }


def suggestions(service: Service, workspace: Workspace) -> list[dict[str, Any]]:
    """Return the images that are not sorted yet with what they are taken for, surest first.

    Images that look like none of the classes come after the others.
    """
    with workspace.lock:
        tray = service.guessing.look(workspace)
        rows = [
            describe_picture(workspace, picture)
            | {
                "class_name": guess.class_name,
                "confidence": guess.confidence,
                "is_unknown": guess.is_unknown,
                "reason": guess.reason,
                "is_next": picture.number in tray.next,
            }
            for picture in workspace.unsorted()
            for guess in [tray.guesses.get(picture.number, Guess(None))]
        ]
    return sorted(rows, key=lambda row: (row["is_unknown"], -row["confidence"]))


def describe_run(workspace: Workspace, entry: RunEntry, images: Set[_Image]) -> dict[str, Any]:
    """Return a run with its figures; a damaged one, or an adapter alone, has no figures.

    Args:
        workspace: whose run.
        entry: of the run.
        images: what is gathered now.
    """
    folder = workspace.folder / "runs" / entry.id
    row = {"id": entry.id, "name": entry.name, "number": entry.number, "preset": entry.preset}
    metrics = folder / "metrics.json"
    if not metrics.exists():
        job = workspace.job
        is_measured = job is not None and job.is_running and job.folder.name == entry.id
        remark = "being measured" if is_measured else "an adapter alone, without figures"
        return row | {"is_finished": False, "remark": remark, "time": 0}
    written = metrics.stat().st_mtime
    row["time"] = written
    try:
        facts, images_then = _facts(folder, written)
    except cr.UserError:
        return row | {"is_finished": False, "remark": "damaged"}
    return row | facts | {"is_finished": True, "is_changed": images_then != images}


@lru_cache(maxsize=256)
def _facts(folder: Path, written: float) -> tuple[dict[str, Any], Set[_Image] | None]:
    """Return what is shown of a finished run, and its images; read once, as it does not change."""
    record = read_images(folder)
    images = {(image.class_name, image.digest) for image in record.images} if record else None
    return summarize(folder), images


def choices(service: Service) -> dict[str, Any]:
    """Return what can be chosen for a training, and for a search for its settings."""
    most_minutes = service.settings.max_train_minutes
    return {
        "models": [
            {
                "name": model.name,
                "words": f"{model.parameters / 1e6:.0f} million parameters, "
                + ("here already" if model.is_downloaded else "downloaded at first use"),
            }
            for model in cr.SUGGESTIONS
        ],
        "methods": [
            {"name": name, "title": _title(name), "words": _first_sentence(name)}
            for name in _METHODS
        ],
        "presets": [{"name": name, "words": _PRESET_WORDS[name]} for name in cr.PRESETS],
        "search_minutes": [m for m in _SEARCH_MINUTES if m <= most_minutes] or [most_minutes],
        "search_trainings": TRAININGS,
        "trains_on": service.settings.trains_on,
        "samples": list(cr.DATASETS),
        "most_images": service.settings.max_images,
        "keep_hours": service.settings.keep_hours,
        "max_upload_mb": service.settings.max_upload_mb,
    }


def _describe_training(service: Service, workspace: Workspace) -> dict[str, Any] | None:
    job = workspace.job
    if job is None:
        lost = workspace.was_interrupted
        return {"state": "interrupted"} if lost else None
    last = job.history[-1] if job.history else None
    return {
        "run": job.folder.name,
        "state": job.state,
        "is_running": job.is_running,
        "can_stop": job.is_learning,
        "method": job.config.method.method,
        "model": job.model,
        "preset": job.preset,
        "place": service.queue.place(job),
        "step": last.step if last else 0,
        "steps": last.steps if last else 0,
        "seconds_left": last.seconds_left if last else None,
        "curves": _curves(job),
        "notes": job.notes,
        "error": job.error,
    }


def _describe_search(
    service: Service, workspace: Workspace, images: Set[_Image]
) -> dict[str, Any] | None:
    """Return the search that is under way, or the last one; None if there was none."""
    job = workspace.search
    record = workspace.project.search if job is None else job.record()
    if record is None:
        return None
    return record.model_dump() | {
        "is_running": job is not None,
        "can_stop": job is not None and job.is_learning,
        "place": service.queue.place(job) if job else 0,
        "seconds_left": job.seconds_left if job else 0,
        "is_changed": record.gathered != fingerprint(images),
    }


def _describe_check(
    service: Service, workspace: Workspace, images: Set[_Image]
) -> dict[str, Any] | None:
    """Return the check that is under way, or what is left of the last one; None if there is none.

    The counts of findings by kind are in ``left``.
    """
    job, record = workspace.check, workspace.project.check
    if job is not None:
        return {
            "is_running": True,
            "can_stop": job.is_learning,
            "state": job.state,
            "place": service.queue.place(job),
            "stage": job.stage,
            "done": job.done,
            "total": job.total,
        }
    if record is None:
        return None
    return {
        "is_running": False,
        "time": record.time,
        "images": record.images,
        "is_changed": record.gathered != fingerprint(images),
        "left": Counter(finding.kind for finding, _ in findings_left(workspace)),
        "error": record.error,
    }


def _curves(job: TrainingJob) -> list[dict[str, Any]]:
    names = ("step", "loss", "accuracy", "test_accuracy")
    return [{name: row[name] for name in names} for row in map(asdict, job.history)]


def describe_picture(workspace: Workspace, picture: Picture) -> dict[str, Any]:
    """Return an image's number, name, use, and the address of its thumbnail."""
    return {
        "number": picture.number,
        "name": picture.name,
        "is_test": picture.is_test,
        "address": workspace.address(picture),
    }


def _title(method: str) -> str:
    return _TITLES.get(method, cr.METHODS[method].__name__)


def _first_sentence(method: str) -> str:
    return (cr.METHODS[method].__doc__ or "").split("\n")[0].split(" (")[0].rstrip(".") + "."
