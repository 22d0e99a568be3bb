"""The commands demo and train, which make a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from clip_randlora.cli.completion import complete_dataset, complete_method, complete_preset
from clip_randlora.cli.console import (
    INTERRUPTED,
    fail,
    loading,
    messages,
    print_json,
    print_metrics,
    print_notes,
    progress,
    results,
)
from clip_randlora.cli.options import (
    DATA,
    METHOD,
    TRAINING,
    CheckOption,
    ClassFoldersOption,
    ColumnsOption,
    DataArgument,
    DeviceOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    TrackOption,
    absolute,
    load_data_and_model,
    merge_method,
    parse_shots,
    preset_settings,
    settings_of_file,
)

_PROMPTS_SHOWN = 4  # classes

if TYPE_CHECKING:
    from clip_randlora.adapters import Adapter
    from clip_randlora.data import Data
    from clip_randlora.few_shot import Run, Step, TrainConfig


def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/demo.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shots drawn and of training.")] = 1,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Teach the bundled model the bundled drawings, offline, and compare."""
    out = out or _free_folder(Path("runs") / "demo")
    settings = {"seed": seed}
    _train("clipart", None, "lite0", None, settings, out, device, resume=False, as_json=as_json)


def train(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder to write the run to.")],
    test: Annotated[
        str | None,
        typer.Option(
            help="Test images, in the same forms as DATA.",
            rich_help_panel=DATA,
            autocompletion=complete_dataset,
        ),
    ] = None,
    class_folders: ClassFoldersOption = None,
    columns: ColumnsOption = None,
    model: ModelOption = "lite0",
    pretrained: PretrainedOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="randlora (default), lora, clip_lora, vera, nola, dora, kradapter, norm_tuning, "
            "full, anchored_head, linear_probe, tip_adapter_f, gda, zero_shot.",
            rich_help_panel=METHOD,
            autocompletion=complete_method,
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            help="Images per class, a share such as `50%`, or `all`. Default: 16.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the shots drawn and of training. Default: 1.", rich_help_panel=TRAINING
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="fast, balanced or thorough. Default: balanced.",
            rich_help_panel=TRAINING,
            autocompletion=complete_preset,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings; options override it.", rich_help_panel=TRAINING),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Rank of each basis (RandLoRA), or of the update.", rich_help_panel=METHOD
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Scale of the update.", rich_help_panel=METHOD)
    ] = None,
    towers: Annotated[
        str | None, typer.Option(help="vision, text or vision,text.", rich_help_panel=METHOD)
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Any of q,k,v,out,mlp,conv.", rich_help_panel=METHOD)
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Adapt only the last K blocks.", rich_help_panel=METHOD)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps. Default: set by the number of images.", rich_help_panel=TRAINING
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. Default: the method's.", rich_help_panel=TRAINING),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt template with one {}; may be repeated.", rich_help_panel=TRAINING
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=TRAINING)
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Decode training images when the steps need them, or keep all in memory. "
            "Default: by the free memory.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    image_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep decoded training images there, for later trainings.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    device: DeviceOption = None,
    check: CheckOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    prompts: Annotated[
        bool,
        typer.Option("--prompts", help="Show every prompt before training."),
    ] = False,
    track: TrackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a model your classes, compare it with zero-shot, save the run."""
    settings = preset_settings(preset) | settings_of_file(config)
    settings |= _given(
        seed=seed,
        steps=steps,
        learning_rate=learning_rate,
        templates=template,
        precision=precision,
        stream=stream,
    )
    if shots is not None:
        settings["shots"] = parse_shots(shots)
    adapter = _given(
        method=method,
        rank=rank,
        alpha=alpha,
        towers=towers and towers.split(","),
        targets=targets and targets.split(","),
        blocks=blocks,
    )
    if adapter:
        settings["method"] = merge_method(settings.get("method"), adapter)
    _train(
        data,
        test,
        model,
        pretrained,
        settings,
        out,
        device,
        resume,
        class_folders,
        prompts,
        image_cache,
        check,
        columns,
        track or (),
        as_json,
    )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _train(
    data: str,
    test: str | None,
    model: str,
    pretrained: str | None,
    settings: dict[str, Any],
    out: Path,
    device: str | None,
    resume: bool,
    class_folders: str | None = None,
    all_prompts: bool = False,
    image_cache: Path | None = None,
    check: bool | None = None,
    columns: str | None = None,
    track: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    with loading():
        from clip_randlora.few_shot import Interrupted, TrainConfig, class_prompts, fit
        from clip_randlora.runs.run_config import read_class_folders, read_columns
        from clip_randlora.runs.tracking import check_trackers

        check_trackers(track)
        config = TrainConfig.parse(settings)
        if resume:
            class_folders = class_folders or read_class_folders(out)
            columns = columns or read_columns(out, absolute(data))
    labelled, loaded = load_data_and_model(
        data, test, class_folders, model, pretrained, device, check, columns
    )
    messages.print(
        Text(str(loaded.net.model_name), style="bold"),
        f", on {loaded.device}; {labelled.name}: {len(labelled.classes)} classes",
        sep="",
    )
    _print_prompts(class_prompts(labelled, config, out if resume else None), all_prompts)
    source = {"data": absolute(data), "test": test and absolute(test)}
    if class_folders:
        source["class_folders"] = class_folders
    if columns:
        source["columns"] = columns
    said: list[str] = []

    def start(adapter: Adapter, notes: list[str]) -> None:
        said.extend(notes)
        _print_start(adapter, notes, labelled)

    def show_step(step: Step) -> None:
        details = f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}"
        on_progress("training", step.step, step.steps, details)

    try:
        with progress() as on_progress:
            run = fit(
                loaded,
                labelled,
                config,
                out,
                resume=resume,
                source=source,
                on_step=show_step,
                on_progress=on_progress,
                on_start=start,
                image_cache=image_cache,
                track=track,
            )
    except Interrupted as stop:
        if stop.folder is None:
            fail(INTERRUPTED, "interrupted before the first step: nothing is saved; start again")
        fail(
            INTERRUPTED,
            f"interrupted after step {stop.step}: saved to {out}; run the same command with "
            f"--resume to go on",
        )
    print_notes(note for note in run.notes if note not in said)
    if as_json:
        skipped = [asdict(entry) for entry in run.skipped]
        folder = {"folder": str(run.folder), "metrics": run.metrics}
        print_json(folder | {"notes": run.notes, "skipped": skipped})
    else:
        _print_run(run, config)


def _print_prompts(prompts: dict[str, list[str]], all_of_them: bool) -> None:
    """Print the prompts of the first classes, or every prompt."""
    from clip_randlora.clip.prompts import list_prompts

    lines = list_prompts(prompts, most=None if all_of_them else 1)
    shown = lines if all_of_them else lines[:_PROMPTS_SHOWN]
    more = len(lines) - len(shown)
    messages.print("prompts:")
    for line in shown:
        messages.print(f"  {line}")
    if more:
        messages.print(f"  and {more} more classes (--prompts shows all)")


def _print_start(adapter: Adapter, notes: list[str], data: Data) -> None:
    """Print what will be adapted, and notes on the data."""
    from clip_randlora.data import summarize_skipped

    table = Table("tower", "target", "weights", "trainable parameters")
    for row in adapter.summary():
        table.add_row(row.tower, row.target, str(row.weights), f"{row.parameters:,}")
    table.add_section()
    table.add_row("", "total", str(len(adapter.weights)), f"{adapter.num_parameters():,}")
    messages.print(table)
    print_notes([*notes, summarize_skipped(data.skipped)])


def _print_run(run: Run, config: TrainConfig) -> None:
    from clip_randlora.data import summarize_skipped
    from clip_randlora.utils.wording import shots_in_words

    print_metrics(run.metrics)
    if run.skipped:
        messages.print(summarize_skipped(run.skipped))
    images = run.metrics["images"]
    results.print(
        f"{images['train']} training and {images['test']} test images "
        f"({shots_in_words(config.shots)}, seed {config.seed}); trained {run.metrics['steps']} "
        f"steps in {run.metrics['train_seconds']:.1f} s"
    )
    results.print(f"Saved to {run.folder}")


def _free_folder(folder: Path) -> Path:
    """Return the folder if it does not exist, or else its first numbered sibling that is free."""
    candidates = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 10_000))]
    return next(candidate for candidate in candidates if not candidate.exists())
