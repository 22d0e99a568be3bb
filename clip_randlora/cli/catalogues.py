"""The commands models and datasets, which list what is available."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from clip_randlora.cli.console import loading, results, working
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.data import DatasetSpec


def models() -> None:
    """List the models with their default and other weights."""
    with loading():
        import open_clip

        from clip_randlora.clip.models import BUNDLED, default_pretrained
    table = Table("model", "default weights", "other weights")
    for name in BUNDLED:
        table.add_row(name, "bundled, offline", "")
    for name in open_clip.list_models():
        default = default_pretrained(name)
        others = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if tag != default]
        table.add_row(name, default or "none: give a file", ", ".join(others))
    results.print(table)
    results.print("Also: hf-hub:ORG/REPO, and folders with an open_clip_config.json.")


def datasets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A listed name, or a YAML file.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download it.")] = False,
) -> None:
    """List the data sets, or show or download one."""
    if name is None:
        if download:
            raise UserError("--download: name the data set")
        _list_datasets()
        return
    with loading():
        from clip_randlora.data import DATASETS, find_dataset_spec
        from clip_randlora.data.published import download as fetch
    if name in DATASETS:
        results.print(f"{name}: {DATASETS[name].description}; bundled, nothing to download")
        return
    spec = find_dataset_spec(name)
    if download:
        with working(f"downloading {spec.name}"):
            fetch(spec)
    _show_dataset(spec)


def _list_datasets() -> None:
    with loading():
        from clip_randlora.data import DATASETS, find_dataset_spec, packaged_specs
        from clip_randlora.data.published import show_size
        from clip_randlora.utils.paths import data_root

        table = Table("name", "classes", "images", "on disk", "download", "licence", "what")
        for name, known in DATASETS.items():
            row = str(known.classes), f"{known.images:,}", "bundled", "", known.licence
            table.add_row(name, *row, known.description)
        for name in packaged_specs():
            spec = find_dataset_spec(name)
            table.add_row(
                name,
                str(spec.number_of_classes),
                f"{sum(spec.images.values()):,}",
                _on_disk(spec),
                show_size(spec.download_megabytes) if spec.download_megabytes else "?",
                spec.licence,
                spec.description,
            )
    results.print(table)
    results.print(
        f"Data sets of torchvision are in {data_root()} (CLIP_RANDLORA_DATA changes that), data "
        f"sets of the Hugging Face hub in its cache. Your own: a folder of class folders, a .zip "
        f"of one, WebDataset shards, parquet files, or a YAML file that describes it."
    )


def _on_disk(spec: DatasetSpec) -> str:
    from clip_randlora.data.published import is_on_disk

    try:
        return "yes" if is_on_disk(spec) else ""
    except UserError:  # the library that keeps it is not installed
        return "?"


def _show_dataset(spec: DatasetSpec) -> None:
    shown = spec.model_dump(exclude={"file"}, exclude_defaults=True)
    table = Table(show_header=False)
    for field, value in shown.items():
        if isinstance(value, dict):
            value = [f"{key}: {what}" for key, what in value.items()]
        separator = "\n" if field in ("templates", "notes") else ", "
        text = separator.join(value) if isinstance(value, list | tuple) else str(value)
        table.add_row(field, text)
    with loading():
        table.add_row("on this machine", _on_disk(spec) or "no")
    results.print(table)
