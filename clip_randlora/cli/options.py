"""Options that several commands share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip_randlora.cli.completion import complete_dataset, complete_model, complete_tracker
from clip_randlora.cli.console import loading, progress
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.classifier import Classifier
    from clip_randlora.clip.models import Model
    from clip_randlora.cluster import ClusterClassifier
    from clip_randlora.data import Data

# groups of options in --help
DATA, MODEL, METHOD, TRAINING = "Data", "Model", "Method", "Training"
RESULTS, CLUSTER = "Results", "On a cluster"

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        autocompletion=complete_dataset,
        help="Folder of class folders, .zip, table of labels (CSV, JSON), WebDataset shards, "
        "parquet files, hub:ORG/NAME[@SPLIT], a data set's name or its YAML file.",
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder of a finished run, or hf-hub:ORG/NAME[@REVISION]."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        help="lite0, an open_clip name, hf-hub:ORG/REPO or a local folder.",
        autocompletion=complete_model,
        rich_help_panel=MODEL,
    ),
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        help="Tag or checkpoint file; `none` for random weights. Default: the tag in `models`.",
        rich_help_panel=MODEL,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cuda, mps or cpu. Default: the best available.", rich_help_panel=MODEL),
]
ClassFoldersOption = Annotated[
    str | None,
    typer.Option(
        help="Which folders are the classes: `top`, or the `leaves` of nested folders.",
        rich_help_panel=DATA,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="path=COLUMN,label=COLUMN,split=COLUMN",
        help="Columns of a table of labels, or some of them. Default: found, and told in a note.",
        rich_help_panel=DATA,
    ),
]
CheckOption = Annotated[
    bool | None,
    typer.Option(
        "--check/--no-check",
        help="Read every file's header and look for copies of test images. Default: up to 100,000 "
        "images.",
        rich_help_panel=DATA,
    ),
]
EngineOption = Annotated[
    str, typer.Option(help="local, or ray for a cluster.", rich_help_panel=CLUSTER)
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Address of a running Ray cluster. Default: start one here.", rich_help_panel=CLUSTER
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        help="Processes of the cluster that classify. Default: one a GPU, or one for every four "
        "CPU cores.",
        rich_help_panel=CLUSTER,
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Also report to tensorboard, trackio, wandb or mlflow; may be repeated.",
        autocompletion=complete_tracker,
        rich_help_panel=RESULTS,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else.", rich_help_panel=RESULTS)
]


def preset_settings(preset: str | None) -> dict[str, Any]:
    """Return the training settings of a preset, or no settings for None."""
    if preset is None:
        return {}
    from clip_randlora.training.presets import read_preset

    return dict(read_preset(preset))


def settings_of_file(config: Path | None) -> dict[str, Any]:
    """Read a YAML of training settings, or the ``config.yaml`` of a run."""
    if config is None:
        return {}
    from clip_randlora.utils.yaml_files import read_mapping

    settings = read_mapping(config, "settings as `name: value` lines", f"--config {config}")
    if not isinstance(settings.get("train"), dict):
        return settings
    if "classes" in settings:  # a run's config.yaml
        from clip_randlora.runs.run_config import check_config

        settings = check_config(config, settings)
    return dict(settings["train"])


def merge_method(configured: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """Override the file's method settings by the options; another method starts from defaults."""
    if isinstance(configured, str):
        configured = {"method": configured}
    if not isinstance(configured, dict | None):
        raise UserError("method: give a name, or settings with `method`")
    base = dict(configured or {"method": "randlora"})
    if chosen.get("method", base.get("method")) != base.get("method"):
        base = {}
    return base | chosen


def parse_shots(shots: str) -> int | str | None:
    """Return the number of images per class, a share of them such as `50%`, or None for `all`."""
    from clip_randlora.data import sampling

    try:
        return sampling.parse_shots(shots)
    except ValueError as error:
        raise UserError(f"--shots {shots}: {error}") from None


def load_data_and_model(
    data: str,
    test: str | None,
    class_folders: str | None,
    model: str,
    pretrained: str | None,
    device: str | None,
    check: bool | None = None,
    columns: str | None = None,
) -> tuple[Data, Model]:
    """Load what the options of these names say, and show how far the reading is."""
    with loading():
        from clip_randlora.clip.models import DEFAULT_TAG, load_model
        from clip_randlora.data import load_data
    with progress() as on_progress:
        labelled = load_data(
            data,
            test,
            class_folders=class_folders,  # type: ignore[arg-type]  # checked there
            check=check,
            columns=columns,
            on_progress=on_progress,
        )
    with loading():
        weights = {None: DEFAULT_TAG, "none": None}.get(pretrained, pretrained)
        return labelled, load_model(model, weights, device)


def absolute(source: str) -> str:
    """Make a path or a pattern of them absolute; the name of a data set stays as it is."""
    from clip_randlora.data.layouts import absolute_hub
    from clip_randlora.data.parts import is_pattern

    if hub := absolute_hub(source):
        return hub
    return str(Path(source).resolve()) if Path(source).exists() or is_pattern(source) else source


def load_classifier(
    run: Path,
    device: str | None,
    engine: str,
    address: str | None,
    workers: int | None,
    strength: float = 1.0,
) -> Classifier | ClusterClassifier:
    """Load a run here, or prepare to load it on a cluster's workers."""
    from clip_randlora.utils.ray_cluster import is_cluster

    if is_cluster(engine, address):
        from clip_randlora.cluster import ClusterClassifier

        return ClusterClassifier(
            run, strength=strength, device=device, address=address, workers=workers
        )
    if workers is not None:
        raise UserError("--workers: only with --engine ray")
    from clip_randlora.classifier import Classifier

    return Classifier.load(run, strength=strength, device=device)
