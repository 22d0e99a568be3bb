"""The fourth tab: how good both are on the held-out images, and where they differ."""

from __future__ import annotations

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.service import Service
from clip_randlora.app.uploads import hidden_paths
from clip_randlora.app.view import Update, View, gallery, sentence
from clip_randlora.app.workspace import Workspace
from clip_randlora.runs.predictions_file import read_answers
from clip_randlora.runs.run_folder import read_metrics

_MAX_THUMBNAILS = 24


class ResultsTab(View):
    """Accuracy per class, confusion, calibration, and the images that tuning fixed or broke."""

    def __init__(self, service: Service):
        super().__init__(service)
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
                gr.Markdown("#### Fixed by tuning")
                self.fixed = gallery("Fixed by tuning", 4, 300, "fixed")
            with gr.Column():
                gr.Markdown("#### Broken by tuning")
                self.broken = gallery("Broken by tuning", 4, 300, "broken")
        self.figures = {
            "confusion.png": _figure("Confusion matrices"),
            "calibration.png": _figure("Calibration: how often it is right, by how sure it is"),
            "curves.png": _figure("Training curves"),
        }
        self.outputs = [
            self.summary,
            self.per_class,
            self.fixed,
            self.broken,
            *self.figures.values(),
        ]

    def show(self, workspace: Workspace) -> Update:
        """Return the tab's contents for the run in use."""
        try:
            run = workspace.finished_run()
            with hidden_paths(workspace.folder):
                metrics, answers = read_metrics(run), read_answers(run)
            summary = rendering.summary(metrics)
        except cr.UserError as error:
            empty: Update = dict.fromkeys(self.outputs)
            return {**empty, self.summary: rendering.messages([sentence(error)])}
        files = workspace.test_images()
        fixed: list[tuple[str, str]] = []
        broken: list[tuple[str, str]] = []
        for row in answers:
            before, after = row["zero_shot"] == row["label"], row["tuned"] == row["label"]
            if before != after and row["image"] in files:
                thumbnail = str(workspace.thumbnail(files[row["image"]]))
                changed = fixed if after else broken
                changed.append((thumbnail, f"{row['zero_shot']} → {row['tuned']}"))
        return {
            self.summary: summary,
            self.per_class: [
                [name, row["images"], f"{row['zero_shot']:.1%}", f"{row['tuned']:.1%}"]
                for name, row in metrics["per_class"].items()
            ],
            self.fixed: fixed[:_MAX_THUMBNAILS],
            self.broken: broken[:_MAX_THUMBNAILS],
            **{
                figure: str(run / name) if (run / name).exists() else None
                for name, figure in self.figures.items()
            },
        }


def _figure(label: str) -> gr.Image:
    gr.Markdown(f"#### {label}")
    return gr.Image(
        label=label,
        show_label=False,
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="figure",
    )
