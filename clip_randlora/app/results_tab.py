"""The fourth tab: how good both are on the held-out images, and where they differ."""

from __future__ import annotations

from typing import Any

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.events import sentence
from clip_randlora.app.service import Service
from clip_randlora.app.workspace import Workspace
from clip_randlora.runs.predictions_file import read_answers
from clip_randlora.runs.run_folder import read_metrics

_IN_GALLERY = 24

Update = dict[gr.components.Component, Any]


class HoodTab:
    """Accuracy per class, confusion, calibration, and the images that tuning fixed or broke."""

    def __init__(self, service: Service):
        self.service = service
        self.summary = gr.HTML(elem_id="summary")
        self.per_class = gr.Dataframe(
            headers=["class", "images", "zero-shot", "tuned"],
            interactive=False,
            wrap=True,
            label="Held-out accuracy by class",
            elem_id="per-class",
        )
        with gr.Row():
            with gr.Column():
                self.fixed = _gallery("Fixed by tuning", "fixed")
            with gr.Column():
                self.broken = _gallery("Broken by tuning", "broken")
        self.confusion = _figure("Confusion matrices")
        self.calibration = _figure("Calibration: how often it is right, by how sure it is")
        self.curves = _figure("Training curves")
        self.outputs = [
            self.summary,
            self.per_class,
            self.fixed,
            self.broken,
            self.confusion,
            self.calibration,
            self.curves,
        ]

    def show(self, workspace: Workspace) -> Update:
        """Return the tab's contents for the run in use."""
        try:
            run = self.service.finished_run(workspace)
            metrics, answers = read_metrics(run), read_answers(run)
            summary, rows = rendering.summary(metrics), _rows(metrics)
        except cr.UserError as error:
            empty = dict.fromkeys(self.outputs)
            return {**empty, self.summary: rendering.messages([sentence(error)])}
        fixed, broken = _changed(answers)
        return {
            self.summary: summary,
            self.per_class: rows,
            self.fixed: _with_captions(workspace, fixed),
            self.broken: _with_captions(workspace, broken),
            **{
                component: str(run / name) if (run / name).exists() else None
                for component, name in (
                    (self.confusion, "confusion.png"),
                    (self.calibration, "calibration.png"),
                    (self.curves, "curves.png"),
                )
            },
        }


def _gallery(label: str, name: str) -> gr.Gallery:
    gr.Markdown(f"#### {label}")
    return gr.Gallery(
        label=label,
        show_label=False,
        buttons=[],
        columns=4,
        height=300,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        elem_id=name,
    )


def _figure(label: str) -> gr.Image:
    gr.Markdown(f"#### {label}")
    return gr.Image(
        label=label,
        show_label=False,
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="figure",
    )


def _rows(metrics: dict[str, Any]) -> list[list[str | int]]:
    return [
        [name, row["images"], f"{row['zero_shot']:.1%}", f"{row['tuned']:.1%}"]
        for name, row in metrics["per_class"].items()
    ]


def _changed(answers: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the answers that tuning made right, and those that it made wrong."""
    right = [(row["zero_shot"] == row["label"], row["tuned"] == row["label"]) for row in answers]
    fixed = [row for row, (before, after) in zip(answers, right, strict=True) if after > before]
    broken = [row for row, (before, after) in zip(answers, right, strict=True) if before > after]
    return fixed, broken


def _with_captions(workspace: Workspace, answers: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return thumbnails of the images that are still there, with what changed."""
    there = workspace.tested()
    return [
        (str(workspace.thumbnail(there[row["image"]])), f"{row['zero_shot']} → {row['tuned']}")
        for row in answers
        if row["image"] in there
    ][:_IN_GALLERY]
