"""The command tune: settings found by cross-validation on the training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from clip_randlora.cli.completion import complete_method
from clip_randlora.cli.console import (
    INTERRUPTED,
    fail,
    loading,
    messages,
    print_json,
    print_notes,
    progress,
    results,
)
from clip_randlora.cli.options import (
    METHOD,
    TRAINING,
    ClassFoldersOption,
    ColumnsOption,
    DataArgument,
    DeviceOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    load_data_and_model,
    parse_shots,
    settings_of_file,
)

if TYPE_CHECKING:
    from clip_randlora.tuning import Trial, Tuning

_ROWS = 10


def tune(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder to write tuned.yaml and trials.csv to.")],
    minutes: Annotated[
        float, typer.Option(help="Time of the whole search.", rich_help_panel=TRAINING)
    ] = 10,
    class_folders: ClassFoldersOption = None,
    columns: ColumnsOption = None,
    model: ModelOption = "lite0",
    pretrained: PretrainedOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated. Default: randlora and anchored_head.",
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
        typer.Option(help="Seed of the shots drawn. Default: 1.", rich_help_panel=TRAINING),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings that stay as they are.", rich_help_panel=TRAINING),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best settings by cross-validation on the training images alone."""
    with loading():
        from clip_randlora.few_shot import TrainConfig
        from clip_randlora.tuning import METHODS, SETTINGS, SearchInterrupted, require_free
        from clip_randlora.tuning import tune as search

        require_free(out)
        settings = settings_of_file(config)
        if shots is not None:
            settings["shots"] = parse_shots(shots)
        if seed is not None:
            settings["seed"] = seed
        base = TrainConfig.parse(settings)
    labelled, loaded = load_data_and_model(
        data, None, class_folders, model, pretrained, device, columns=columns
    )
    try:
        with progress() as on_progress:
            found = search(
                loaded,
                labelled,
                minutes,
                base,
                methods=method or METHODS,
                on_trial=_print_trial,
                on_progress=on_progress,
            )
    except SearchInterrupted as stop:
        _save(stop.tuning, out, as_json)
        fail(
            INTERRUPTED,
            f"interrupted: the best of {len(stop.tuning.trials)} settings is saved to "
            f"{out / SETTINGS}; train with it by --config {out / SETTINGS}",
        )
    _save(found, out, as_json)
    if not as_json:
        results.print(f"Saved to {out / SETTINGS}; train with it by --config {out / SETTINGS}")


def _save(found: Tuning, out: Path, as_json: bool) -> None:
    """Print the best trials, or all as JSON, and write the settings."""
    found.write(out)
    print_notes(found.notes)
    if as_json:
        return print_json(found.as_mapping() | {"folder": str(out)})
    table = Table("settings", "folds", "images", "accuracy")
    for trial in found.trials[:_ROWS]:
        shown = "failed" if trial.failed else f"{trial.accuracy:.1%}"
        table.add_row(str(trial.candidate), str(trial.folds), str(len(trial.correct)), shown)
    results.print(table)


def _print_trial(trial: Trial) -> None:
    shown = "failed" if trial.failed else f"{trial.accuracy:.1%} of {len(trial.correct)}"
    messages.print(f"{trial.candidate}: {shown}")
