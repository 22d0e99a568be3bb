"""The commands models and datasets, which list what is available."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from clip_randlora.cli.completion import complete_dataset
from clip_randlora.cli.console import loading, print_json, results, working
from clip_randlora.cli.options import JsonOption
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.data import DatasetSpec


_ON_DISK = {True: "yes", False: "", None: "?"}


def models(as_json: JsonOption = False) -> None:
    """List the models with their default and other weights."""
    with loading():
        import open_clip

        from clip_randlora.clip.models import BUNDLED, DEFAULT_TAG, default_pretrained
    rows: list[dict[str, Any]] = [
        {"name": name, "pretrained": DEFAULT_TAG, "others": []} for name in BUNDLED
    ]
    for name in open_clip.list_models():
        default, tags = default_pretrained(name), open_clip.list_pretrained_tags_by_model(name)
        others = [tag for tag in tags if tag != default]
        rows.append({"name": name, "pretrained": default, "others": others})
    if as_json:
        return print_json(rows)
    shown = {DEFAULT_TAG: "bundled, offline", None: "none: give a file"}
    table = Table("model", "default weights", "other weights")
    for row in rows:
        default = row["pretrained"]
        table.add_row(row["name"], shown.get(default, default), ", ".join(row["others"]))
    results.print(table)
    results.print("Also: hf-hub:ORG/REPO, and folders with an open_clip_config.json.")


def datasets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A listed name, or a YAML file.",
            autocompletion=complete_dataset,
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the data sets, or show or download one."""
    if name is None:
        if download:
            raise UserError("--download: name the data set")
        return _list_datasets(as_json)
    with loading():
        from clip_randlora.data import DATASETS, find_dataset_spec
        from clip_randlora.data.published import download as fetch
    if name in DATASETS:
        if as_json:
            return print_json(_bundled_row(name))
        results.print(f"{name}: {DATASETS[name].description}; bundled, nothing to download")
        return
    spec = find_dataset_spec(name)
    if download:
        with working(f"downloading {spec.name}"):
            fetch(spec)
    if as_json:
        shown = spec.model_dump(mode="json", exclude={"file"}, exclude_defaults=True)
        return print_json(shown | {"on_disk": _on_disk(spec)})
    _show_dataset(spec)


def _list_datasets(as_json: bool) -> None:
    with loading():
        from clip_randlora.data import DATASETS, find_dataset_spec, packaged_specs
        from clip_randlora.data.published import show_size
        from clip_randlora.utils.paths import data_root

        rows = [_bundled_row(name) for name in DATASETS]
        rows += [_row(find_dataset_spec(name)) for name in packaged_specs()]
    if as_json:
        return print_json(rows)
    table = Table("name", "classes", "images", "on disk", "download", "licence", "what")
    for row in rows:
        is_bundled, size = row["name"] in DATASETS, row["download_megabytes"]
        table.add_row(
            row["name"],
            str(row["classes"]),
            f"{row['images']:,}",
            "bundled" if is_bundled else _ON_DISK[row["on_disk"]],
            "" if is_bundled else show_size(size) if size else "?",
            row["licence"],
            row["description"],
        )
    results.print(table)
    results.print(
        f"Data sets of torchvision are in {data_root()} (CLIP_RANDLORA_DATA changes that), data "
        f"sets of the Hugging Face hub in its cache. Your own: a folder of class folders, a .zip "
        f"of one, WebDataset shards, parquet files, or a YAML file that describes it."
    )


def _bundled_row(name: str) -> dict[str, Any]:
    """Describe a bundled data set, as `BundledDataset` does."""
    from clip_randlora.data import DATASETS

    known = asdict(DATASETS[name])
    del known["load"]
    return {"name": name, **known, "download_megabytes": 0, "on_disk": True}


def _row(spec: DatasetSpec) -> dict[str, Any]:
    """Describe a data set as a bundled one is described."""
    return {
        "name": spec.name,
        "description": spec.description,
        "classes": spec.number_of_classes,
        "images": sum(spec.images.values()),
        "licence": spec.licence,
        "download_megabytes": spec.download_megabytes,
        "on_disk": _on_disk(spec),
    }


def _on_disk(spec: DatasetSpec) -> bool | None:
    """Return whether it is on this machine; None if the library that keeps it is not installed."""
    from clip_randlora.data.published import is_on_disk

    try:
        return is_on_disk(spec)
    except UserError:
        return None


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
        table.add_row("on this machine", _ON_DISK[_on_disk(spec)] or "no")
    results.print(table)
