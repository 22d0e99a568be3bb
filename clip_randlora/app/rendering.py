"""What the page shows, as HTML: everything that people typed or uploaded is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import clip_randlora as cr
from clip_randlora.app.jobs import Job
from clip_randlora.app.workspace import Workspace
from clip_randlora.runs.run_folder import read_metrics
from clip_randlora.utils.progress import format_seconds

_BARS = 5
_THUMBNAILS = 8  # of each class, in the overview
_STATES = {
    "waiting": "Waiting",
    "preparing": "Preparing",
    "training": "Training",
    "measuring": "Measuring on the held-out images",
    "done": "Done",
    "stopped": "Stopped",
    "failed": "Failed",
}


def overview(workspace: Workspace) -> str:
    """Draw a card for each class: its name, its counts, its first images."""
    cards = []
    for name in workspace.classes:
        pictures = workspace.pictures(name)
        test = sum(picture.is_test for picture in pictures)
        counts = f"{len(pictures) - test} images" + (f" + {test} for testing" if test else "")
        thumbnails = "".join(
            f'<img src="{_data_uri(workspace.thumbnail(picture.path, 72))}" alt="">'
            for picture in pictures[:_THUMBNAILS]
        )
        cards.append(
            f'<li class="class-card"><div class="class-name">{escape(name)}</div>'
            f'<div class="class-count">{counts}</div>'
            f'<div class="thumbnails">{thumbnails}</div></li>'
        )
    if not cards:
        return (
            '<p class="hint">Nothing here yet. Start with the bundled drawings, upload a zip of '
            "class folders, or add a class and drop images on it.</p>"
        )
    return f'<ul class="class-cards">{"".join(cards)}</ul>'


def messages(lines: Iterable[str], kind: str = "note") -> str:
    """Draw remarks as a list; ``kind`` is ``note`` or ``warning``."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f'<ul class="messages {kind}" role="status">{items}</ul>' if items else ""


def prompts(of_classes: Mapping[str, Sequence[str]], most: int = 12) -> str:
    """Draw the prompts of the first classes."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(' · '.join(some[:4]))}"
        f"{' …' if len(some) > 4 else ''}</td></tr>"
        for name, some in list(of_classes.items())[:most]
    )
    more = len(of_classes) - most
    note = f'<p class="hint">and {more} more classes</p>' if more > 0 else ""
    return f'<table class="prompts">{rows}</table>{note}' if rows else ""


def progress(job: Job | None, place: int) -> str:
    """Draw the state of a training: a bar, the step, the time left, the device."""
    if job is None:
        return _progress_box("Ready", "Choose a preset and press Start.", 0, "")
    headline, details, share = _STATES[job.state], [], 0.0
    if job.state == "waiting":
        details.append(f"{place} training{'s' if place != 1 else ''} before yours")
    if job.history:
        step = job.history[-1]
        share = step.step / step.steps
        details.append(f"step {step.step} of {step.steps}")
        if job.state == "training":
            details += [f"{format_seconds(step.seconds_left)} left", f"loss {step.loss:.3f}"]
    if job.device:
        details.append(f"on {job.device}")
    if job.state == "done":
        metrics = read_metrics(job.folder)
        before, after = metrics["zero_shot"]["top1"], metrics["tuned"]["top1"]
        headline = f"Done: {before:.1%} zero-shot, {after:.1%} tuned"
        details.append(f"trained in {format_seconds(metrics['train_seconds'])}")
    return _progress_box(headline, " · ".join(details), share, job.error)


def side_by_side(answers: Mapping[str, Mapping[str, float]], strength: float) -> tuple[str, str]:
    """Draw both answers for one image, zero-shot and tuned, the most probable class first."""
    tuned = "Tuned" if strength == 1 else f"Tuned, strength {strength:.2f}"
    return (
        answer(answers["zero_shot"], "Zero-shot"),
        answer(answers["tuned"], tuned, other=next(iter(answers["zero_shot"]))),
    )


def answer(probabilities: Mapping[str, float], title: str, other: str | None = None) -> str:
    """Draw the most probable classes as bars.

    Args:
        probabilities: ``{class: probability}``, the most probable first.
        title: which of the two answers this is.
        other: the class that the other answers; if this one differs, it is marked.
    """
    rows = []
    for place, (name, p) in enumerate(list(probabilities.items())[:_BARS]):
        changed = place == 0 and other is not None and other != name
        mark = '<span class="changed">changed</span>' if changed else ""
        rows.append(
            f'<li class="{"first" if place == 0 else ""}">'
            f'<span class="bar-name">{escape(name)}{mark}</span>'
            f'<span class="bar-value">{p:.1%}</span>'
            f'<span class="bar"><span style="width:{100 * p:.1f}%"></span></span></li>'
        )
    return f'<section class="answer"><h3>{title}</h3><ol>{"".join(rows)}</ol></section>'


def no_answer(reason: str) -> tuple[str, str]:
    """Fill the places of the answers before there are any."""
    zero_shot, tuned = (
        f'<section class="answer"><h3>{title}</h3><p class="hint">{escape(reason)}</p></section>'
        for title in ("Zero-shot", "Tuned")
    )
    return zero_shot, tuned


def summary(metrics: Mapping[str, Any]) -> str:
    """Draw the held-out accuracy and the calibration error of both.

    Raises:
        UserError: a number is missing: the run is damaged.
    """
    try:
        cards = "".join(
            f'<li class="{which}"><span class="label">{title}</span>'
            f'<span class="number">{metrics[which]["top1"]:.1%}</span>'
            f'<span class="label">calibration error {metrics[which]["ece"]:.3f}</span></li>'
            for which, title in (("zero_shot", "Zero-shot"), ("tuned", "Tuned"))
        )
        facts = (
            f"{metrics['images']['test']} held-out images · trained on "
            f"{metrics['images']['train']} · "
            f"{metrics['trainable_parameters']:,} trainable parameters · "
            f"{metrics['steps']} steps in {format_seconds(metrics['train_seconds'])} · "
            f"{metrics['method']}, {metrics['model']}"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise cr.UserError(f"the run's metrics are damaged ({error})") from error
    return f'<ul class="summary">{cards}</ul><p class="hint">{escape(facts)}</p>'


def _progress_box(headline: str, details: str, share: float, remark: str) -> str:
    percent = round(100 * share)
    return (
        f'<div class="training"><div class="headline" role="status">{escape(headline)}</div>'
        f'<div class="track" role="progressbar" aria-label="training" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><span style="width:{percent}%"></span>'
        f'</div><div class="details">{escape(details)}&nbsp;</div>'
        f"{messages([remark], 'warning')}</div>"
    )


@lru_cache(maxsize=4096)
def _data_uri(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
