"""The model card of an export."""

from __future__ import annotations

from pathlib import Path

from clip_randlora.clip.models import DEFAULT_TAG
from clip_randlora.export.export_source import ExportSource, RunInfo
from clip_randlora.export.snippets import snippet, transformers_base
from clip_randlora.runs.card_metadata import card_metadata, data_name, licence

_LIBRARIES = ("open_clip", "transformers", "peft")  # the formats that the hub knows as libraries


def write(source: ExportSource, format: str, path: str) -> str:
    """Return the README of an export that will be at ``path``."""
    run = source.runs[0]
    data = data_name(run.settings)
    metadata = card_metadata(
        run.settings,
        run.metrics,
        f"{run.base_name} tuned on {data}",
        classes=source.classes,
        library=format if format in _LIBRARIES else "clip-randlora",
        relation="adapter" if format in ("adapter", "peft") else "finetune",
        base=transformers_base(run) if format in ("transformers", "peft") else None,
    )
    classes = ", ".join(f"`{name}`" for name in source.classes)
    results = "\n".join(map(_results, source.runs))
    return f"""{metadata}
# {run.base_name} tuned on {data}, as {format}

Base model: {run.base_name}, weights: {_weights(run)}.
Licence of the base: {licence(run.settings).words}

{len(source.classes)} classes: {classes}.

| run | training images | test images | zero-shot top-1 | tuned top-1 | calibration error, tuned |
|---|---|---|---|---|---|
{results}

{_remarks(source)}

## Load it

```python
{snippet(run, format, path).strip()}
```

## Settings

Written with clip-randlora, format {format}, {source.precision}, strength {source.strength:g}.

{_settings(source)}
"""


def _results(run: RunInfo) -> str:
    images, zero_shot, tuned = (run.metrics[key] for key in ("images", "zero_shot", "tuned"))
    return (
        f"| {run.name} | {images['train']} | {images['test']} | {zero_shot['top1']:.1%} | "
        f"{tuned['top1']:.1%} | {tuned['ece']:.3f} |"
    )


def _remarks(source: ExportSource) -> str:
    remarks = []
    if len(source.runs) > 1:
        weighted = zip(source.weights, source.runs, strict=True)
        terms = " + ".join(f"{weight:g} x {run.name}" for weight, run in weighted)
        remarks.append(
            f"The update is {terms}, added in weight space; the figures are each run's own, not "
            f"the sum's."
        )
    if source.strength != 1:
        remarks.append(
            f"The figures were measured at strength 1; this export has strength "
            f"{source.strength:g} (0 is zero-shot)."
        )
    return "\n".join(remarks) or "Measured with this package by the run itself, at strength 1."


def _settings(source: ExportSource) -> str:
    rows = ["| setting | value |", "|---|---|"]
    for run in source.runs:
        train = run.settings["train"]
        flat = {key: value for key, value in train.items() if not isinstance(value, dict)}
        flat |= {f"method.{key}": value for key, value in train["method"].items()}
        name = f"{run.name}: " if len(source.runs) > 1 else ""
        rows += [f"| {name}{key} | {value} |" for key, value in flat.items() if value is not None]
    return "\n".join(rows)


def _weights(run: RunInfo) -> str:
    pretrained = run.settings["pretrained"]
    return "its own" if pretrained == DEFAULT_TAG else Path(pretrained).name
