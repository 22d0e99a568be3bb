"""The second tab: model, method, preset, and the training while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.service import Service
from clip_randlora.app.view import Update, View
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
_METHOD_SETTINGS = ("rank", "alpha", "bases", "blocks", "towers", "targets")
_MEASURED_ON = ("training images", "held-out images")
_PLOT_HEIGHT = 240


class TrainTab(View):
    """Choose how to train, start and stop it, and watch.

    ``advanced`` has the boxes of the settings, by name; ``shown_run`` changes with the run in use.
    """

    def __init__(self, service: Service):
        super().__init__(service)
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
        self.on(
            self.start.click,
            self._start,
            [self.model, self.method, self.preset, *self.advanced.values()],
            self.outputs,
        )
        self.on(self.stop.click, self._stop, outputs=self.outputs)
        self.on(self.timer.tick, self.show, outputs=self.outputs, show_progress="hidden")

    def show(self, workspace: Workspace) -> Update:
        """Return the state of the workspace's training, and whether to go on looking."""
        job = workspace.job
        is_learning = job is not None and job.is_learning
        loss, accuracy = _curves(job.history if job else [])
        return {
            self.progress: rendering.progress(job, self.service.queue.place(job) if job else 0),
            self.loss: loss,
            self.accuracy: accuracy,
            self.notes: rendering.messages(job.notes if job else []),
            self.start: gr.update(visible=not is_learning),
            self.stop: gr.update(visible=is_learning),
            self.timer: gr.Timer(active=job is not None and job.is_running),
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
        boxes: dict[str, gr.components.Component] = {}
        self.advanced = boxes
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            gr.Markdown("Leave a box empty, or at 0, for the default.", elem_classes="hint")
            with gr.Row():
                boxes["rank"] = _whole_number(
                    "Rank",
                    "Of each base or of the update. RandLoRA: a higher rank trains fewer "
                    "parameters; default 6.",
                )
                boxes["alpha"] = gr.Number(
                    None,
                    label="Alpha",
                    info="The update is scaled by alpha / rank; VeRA's by alpha.",
                )
                boxes["bases"] = gr.Dropdown(
                    [("default", ""), "uniform", "sparse", ("very sparse", "very_sparse")],
                    value="",
                    label="Bases",
                    info="RandLoRA's random bases: dense or with few entries.",
                )
                boxes["blocks"] = _whole_number("Blocks", "Adapt only the last K of each tower.")
            with gr.Row():
                boxes["towers"] = _checkboxes("Towers", "The encoders that are changed.", _TOWERS)
                boxes["targets"] = _checkboxes(
                    "Targets",
                    "The kinds of weight that are changed, where a model has them.",
                    _TARGETS,
                )
            with gr.Row():
                boxes["learning_rate"] = gr.Number(
                    None, label="Learning rate", info="Peak; by method and model otherwise."
                )
                boxes["steps"] = _whole_number("Steps", "In place of the preset's.")
                boxes["shots"] = _whole_number(
                    "Shots", "Training images of each class; all of them otherwise."
                )
                boxes["seed"] = _whole_number(
                    "Seed", "Same seed, same result, on one machine.", value=1
                )
                boxes["precision"] = gr.Dropdown(
                    ["auto", "fp32", "bf16", "fp16"],
                    value="auto",
                    label="Precision",
                    info="Auto: bf16 where the hardware is fast in it.",
                )

    def _start(
        self, workspace: Workspace, model: str, method: str, preset: str, *values: Any
    ) -> Update:
        settings = {
            name: value
            for name, value in zip(self.advanced, values, strict=True)
            if value not in (None, "") and (value != 0 or name == "seed")
        }
        settings.setdefault("shots", None)  # all images
        if method != "randlora":
            settings.pop("bases", None)
        own = {name: settings.pop(name) for name in _METHOD_SETTINGS if name in settings}
        settings["method"] = {"method": method, **own}
        self.service.start(workspace, model, preset, settings)
        return self.show(workspace)

    def _stop(self, workspace: Workspace) -> Update:
        if workspace.job is not None:
            self.service.queue.stop(workspace.job)
        return self.show(workspace)


def _whole_number(label: str, info: str, value: int | None = None) -> gr.Number:
    return gr.Number(value, label=label, info=info, precision=0)


def _checkboxes(label: str, info: str, choices: list[tuple[str, str]]) -> gr.CheckboxGroup:
    every = [value for _, value in choices]
    return gr.CheckboxGroup(choices, value=every, label=label, info=info)


def _describe_methods() -> str:
    """Return the methods' names with the first words of their documentation."""
    return " ".join(
        f"{method.__name__}: {(method.__doc__ or '').split(' (')[0].lower()}."
        for method in _METHODS.values()
    )


def _describe(model: cr.Suggestion) -> str:
    if model.name == "lite0":
        where = "bundled"
    else:
        where = "downloaded" if model.is_downloaded else "not downloaded yet"
    return f"{model.name}: {model.parameters / 1e6:.0f} M parameters, {where}"


def _curves(history: Sequence[cr.Step]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the loss by step, and both accuracies by step in long form."""
    loss = pd.DataFrame(
        [(step.step, step.loss) for step in history], columns=["step", "loss"], dtype=float
    )
    # both names from the beginning: the plot fixes its colours by the first data that it gets
    rows: list[tuple[int, float | None, str]] = [(0, None, label) for label in _MEASURED_ON]
    for step in history:
        accuracies = zip((step.accuracy, step.test_accuracy), _MEASURED_ON, strict=True)
        rows += [(step.step, value, label) for value, label in accuracies if value is not None]
    accuracy = pd.DataFrame(rows, columns=["step", "accuracy", "measured on"])
    # a column without numbers would be taken for words
    return loss, accuracy.astype({"step": float, "accuracy": float})
