"""The second tab: model, method, preset, and the training while it runs."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.events import PRIVATE, as_sentences
from clip_randlora.app.service import Service
from clip_randlora.app.workspace import Workspace

_PRESET_HELP = (
    "Fast: a first look, a quarter of the training. Balanced: the defaults. "
    "Thorough: twice the training, three prompts a class."
)
# those that the settings under "Advanced" fit; scripts may name any of `clip_randlora.METHODS`
_METHODS = {name: cr.METHODS[name] for name in ("randlora", "lora", "vera", "nola")}
_TOWERS = [("images", "vision"), ("text", "text")]
_TARGETS = [
    ("attention: query", "q"),
    ("attention: key", "k"),
    ("attention: value", "v"),
    ("attention: output", "out"),
    ("MLP", "mlp"),
    ("1x1 convolutions", "conv"),
]
_PLOT_HEIGHT = 240

Update = dict[gr.components.Component, Any]


class TrainTab:
    """Choose how to train, start and stop it, and watch."""

    def __init__(self, service: Service):
        self.service = service
        with gr.Row():
            with gr.Column(scale=1):
                self._build_choices()
            with gr.Column(scale=2):
                self._build_watching()
        self._build_advanced()
        self.outputs = [
            self.progress,
            self.loss,
            self.accuracy,
            self.notes,
            self.start,
            self.stop,
            self.timer,
            self.shown_run,
        ]
        self._bind()

    def show(self, workspace: Workspace) -> Update:
        """Return the state of the workspace's training, and whether to go on looking."""
        job = workspace.job
        place = self.service.trainer.place(job) if job else 0
        runs = job is not None and job.is_running
        loss, accuracy = _curves(job.history if job else [])
        return {
            self.progress: rendering.progress(job, place),
            self.loss: loss,
            self.accuracy: accuracy,
            self.notes: rendering.messages(job.notes if job else []),
            self.start: gr.update(visible=not (job and job.is_learning)),
            self.stop: gr.update(visible=bool(job and job.is_learning)),
            self.timer: gr.Timer(active=runs),
            self.shown_run: f"{workspace.run} {job.state if job else ''}",
        }

    def _build_choices(self) -> None:
        self.model = gr.Dropdown(
            [(_describe(model), model.name) for model in cr.SUGGESTIONS],
            value="lite0",
            label="Model",
            info="lite0 comes with the app; the others are downloaded when first used.",
            elem_id="model",
        )
        self.method = gr.Dropdown(
            [(method.__name__, name) for name, method in _METHODS.items()],
            value="randlora",
            label="Method",
            info=_describe_methods(),
            elem_id="method",
        )
        self.preset = gr.Radio(
            [(name.capitalize(), name) for name in cr.PRESETS],
            value="balanced",
            label="Preset",
            info=_PRESET_HELP,
            elem_id="preset",
        )
        self.start = gr.Button("Start", variant="primary", elem_id="start")
        self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")

    def _build_watching(self) -> None:
        self.progress = gr.HTML(elem_id="progress")
        loss, accuracy = _curves([])
        with gr.Row():
            self.loss = gr.LinePlot(
                loss,
                x="step",
                y="loss",
                title="Training loss",
                height=_PLOT_HEIGHT,
                elem_id="loss-curve",
                buttons=[],
            )
            self.accuracy = gr.LinePlot(
                accuracy,
                x="step",
                y="accuracy",
                color="measured on",
                color_map={"training images": "#94a3b8", "held-out images": "#4f46e5"},
                title="Accuracy",
                y_lim=[0, 1],
                height=_PLOT_HEIGHT,
                elem_id="accuracy-curve",
                buttons=[],
            )
        self.notes = gr.HTML(elem_id="train-notes")
        self.timer = gr.Timer(1, active=False)
        self.shown_run = gr.State("")

    def _build_advanced(self) -> None:
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            gr.Markdown("Leave a box empty, or at 0, for the default.", elem_classes="hint")
            with gr.Row():
                self.rank = gr.Number(
                    None,
                    label="Rank",
                    precision=0,
                    info="Of each base or of the update. RandLoRA: a higher rank trains fewer "
                    "numbers; default 6.",
                )
                self.alpha = gr.Number(
                    None,
                    label="Alpha",
                    info="The update is scaled by alpha / rank; VeRA's by alpha.",
                )
                self.bases = gr.Dropdown(
                    [("default", ""), "uniform", "sparse", "very sparse"],
                    value="",
                    label="Bases",
                    info="RandLoRA's random bases: dense or with few entries.",
                )
                self.blocks = gr.Number(
                    None, label="Blocks", precision=0, info="Adapt only the last K of each tower."
                )
            with gr.Row():
                self.towers = gr.CheckboxGroup(
                    _TOWERS,
                    value=["vision", "text"],
                    label="Towers",
                    info="The encoders that are changed.",
                )
                self.targets = gr.CheckboxGroup(
                    _TARGETS,
                    value=[target for _, target in _TARGETS],
                    label="Targets",
                    info="The kinds of weight that are changed, where a model has them.",
                )
            with gr.Row():
                self.learning_rate = gr.Number(
                    None, label="Learning rate", info="Peak; by method and model otherwise."
                )
                self.steps = gr.Number(
                    None, label="Steps", precision=0, info="In place of the preset's."
                )
                self.shots = gr.Number(
                    None,
                    label="Shots",
                    precision=0,
                    info="Training images of each class; all of them otherwise.",
                )
                self.seed = gr.Number(
                    1, label="Seed", precision=0, info="Same seed, same result, on one machine."
                )
                self.precision = gr.Dropdown(
                    ["auto", "fp32", "bf16", "fp16"],
                    value="auto",
                    label="Precision",
                    info="Auto: bf16 where the hardware is fast in it.",
                )

    def _bind(self) -> None:
        choices = [self.model, self.method, self.preset]
        advanced = [
            self.rank,
            self.alpha,
            self.bases,
            self.blocks,
            self.towers,
            self.targets,
            self.learning_rate,
            self.steps,
            self.shots,
            self.seed,
            self.precision,
        ]
        self.start.click(as_sentences(self._start), [*choices, *advanced], self.outputs, **PRIVATE)
        self.stop.click(self._stop, None, self.outputs, **PRIVATE)
        self.timer.tick(
            self._look, None, self.outputs, show_progress="hidden", queue=True, **PRIVATE
        )

    def _start(
        self,
        model: str,
        method: str,
        preset: str,
        rank: int | None,
        alpha: float | None,
        bases: str,
        blocks: int | None,
        towers: list[str],
        targets: list[str],
        learning_rate: float | None,
        steps: int | None,
        shots: int | None,
        seed: int | None,
        precision: str,
        request: gr.Request,
    ) -> Update:
        workspace = self.service.workspace(request)
        adapter = {
            "rank": rank,
            "alpha": alpha,
            "bases": bases.replace(" ", "_") if method == "randlora" else None,
            "blocks": blocks,
        }
        adapter = {key: value for key, value in adapter.items() if value}
        settings = {
            "method": {"method": method, "towers": towers, "targets": targets, **adapter},
            "learning_rate": learning_rate or None,  # an empty box may come as 0
            "steps": steps or None,
            "shots": shots or None,
            "seed": 1 if seed is None else seed,
            "precision": precision,
        }
        self.service.start(workspace, model, preset, settings)
        return self.show(workspace)

    def _stop(self, request: gr.Request) -> Update:
        workspace = self.service.workspace(request)
        if workspace.job is not None:
            self.service.trainer.stop(workspace.job)
        return self.show(workspace)

    def _look(self, request: gr.Request) -> Update:
        return self.show(self.service.workspace(request))


def _describe_methods() -> str:
    """Return the methods' names with the first words of their documentation."""
    return " ".join(
        f"{method.__name__}: {method.__doc__.split(' (')[0].lower()}."
        for method in _METHODS.values()
    )


def _describe(model: cr.Suggestion) -> str:
    if model.name == "lite0":
        where = "bundled"
    else:
        where = "downloaded" if model.is_downloaded else "not downloaded yet"
    return f"{model.name}: {model.parameters / 1e6:.0f} M numbers, {where}"


def _curves(history: list[dict[str, float | None]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the loss by step, and both accuracies by step in long form."""
    loss = pd.DataFrame(history, columns=["step", "loss"], dtype=float)
    lines = {"accuracy": "training images", "test_accuracy": "held-out images"}
    # both names from the beginning: the plot fixes its colours by the first data that it gets
    rows = [(0, None, label) for label in lines.values()]
    rows += [
        (row["step"], row[key], label)
        for key, label in lines.items()
        for row in history
        if row[key] is not None
    ]
    accuracy = pd.DataFrame(rows, columns=["step", "accuracy", "measured on"])
    # a column without numbers would be taken for words
    return loss, accuracy.astype({"step": float, "accuracy": float})
