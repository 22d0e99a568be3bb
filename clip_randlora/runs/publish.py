"""Publish a run on the Hugging Face hub: its files without what is private, and a card."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import yaml

from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.clip.models import DEFAULT_TAG, RANDOM
from clip_randlora.clip.prompts import list_prompts
from clip_randlora.errors import UserError
from clip_randlora.runs import image_record
from clip_randlora.runs.card_metadata import card_metadata, data_name, hub_dataset, licence
from clip_randlora.runs.card_text import bullets, results, results_per_class
from clip_randlora.runs.metrics_file import read_metrics
from clip_randlora.runs.run_config import CONFIG, read_config, read_prompts
from clip_randlora.runs.run_source import LOADED
from clip_randlora.utils.hub import HubName, require_token, upload
from clip_randlora.utils.yaml_files import read_mapping

_CARD = "README.md"
# not predictions.csv, which names files, nor examples.png, which shows test images
_AS_THEY_ARE = ("history.csv", "curves.png", "confusion.png", "calibration.png")


def push_run(
    folder: str | Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a finished run to a model repository of the hub, in one commit.

    It goes without the images, the names of their files and the folders of this machine. What
    an earlier run left there under the same names is replaced.

    Args:
        folder: of the run.
        repository: ``ORG/NAME``; it is created if it does not exist.
        private: whether a new repository is; by default as the account says.
        token: one that may write; by default that of ``hf auth login`` or HF_TOKEN.

    Returns:
        The repository's address.

    Raises:
        UserError: the run is not finished, its base model is on this machine alone, there is no
            token, or the hub refuses.
    """
    folder, name = Path(folder), HubName.parse(repository)
    settings, metrics = read_config(folder), read_metrics(folder)
    if not (folder / ADAPTER).is_file():
        raise UserError(f"{folder}: the run is not finished; go on with it by --resume")
    _require_known_base(settings)
    require_token(repository, token)
    known = (*LOADED, *_AS_THEY_ARE)
    files: dict[str, Path | bytes] = {
        file: folder / file for file in known if (folder / file).is_file()
    }
    files[CONFIG] = _public_settings(folder)
    if record := image_record.read_images(folder):
        files[image_record.FILE_NAME] = _public_images(record)
    card = hub_card(folder, settings, metrics, name.repository)
    files[_CARD] = card.encode()
    return upload(files, name.repository, private=private, token=token, instead_of=(*known, _CARD))


def _require_known_base(settings: Mapping[str, Any]) -> None:
    """Refuse a run whose base model nobody else can load."""
    model, pretrained = settings["model"], str(settings["pretrained"])
    is_file = pretrained != DEFAULT_TAG and Path(pretrained).is_absolute()
    if model.startswith("local-dir:") or is_file:
        what = pretrained if is_file else model.removeprefix("local-dir:")
        raise UserError(
            f"{what}: the run's base model is on this machine alone; upload the whole model with "
            f"`export --format open_clip --push-to ORG/NAME`, or train on one of the hub"
        )


def _public_settings(folder: Path) -> bytes:
    """Return ``config.yaml`` with the names of data in place of their paths."""
    settings = read_mapping(folder / CONFIG, "the settings of a run")
    data = dict(settings.get("data") or {})
    for key in ("data", "test"):
        source = {"data": {"data": data.get(key)}}
        if data.get(key) and not hub_dataset(source):
            data[key] = data_name(source)
    text = yaml.safe_dump(settings | {"data": data}, sort_keys=False, allow_unicode=True)
    return text.encode()


def _public_images(record: image_record.ImageRecord) -> bytes:
    """Return ``images.csv`` with numbers in place of the images' names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(image_record.COLUMNS)
    for number, image in enumerate(record.images, start=1):
        writer.writerow(astuple(replace(image, name=str(number))))
    return text.getvalue().encode()


def hub_card(
    folder: Path, settings: Mapping[str, Any], metrics: Mapping[str, Any], repository: str
) -> str:
    """Return the card of a run on the hub: metadata, results, prompts, and how to load it.

    Args:
        folder: of the run, with the figures that could be drawn.
        settings: of its ``config.yaml``.
        metrics: of its ``metrics.json``.
        repository: ``ORG/NAME``.
    """
    name = repository.partition("/")[2]
    prompts = read_prompts(folder, settings)
    metadata = card_metadata(
        settings,
        metrics,
        name,
        classes=list(prompts),
        library="clip-randlora",
        relation="adapter",
    )
    figures = "\n".join(
        f"![{figure}]({figure}.png)"
        for figure in ("curves", "confusion", "calibration")
        if (folder / f"{figure}.png").is_file()
    )
    weights = "its own" if settings["pretrained"] == DEFAULT_TAG else settings["pretrained"]
    weights = "random" if RANDOM.fullmatch(str(weights)) else weights
    return f"""{metadata}
# {name}

{settings["model"]} tuned on {data_name(settings)} with clip-randlora, for {len(prompts)} classes.

{results(metrics)}

{results_per_class(metrics)}

{figures}

## Use it

```python
import clip_randlora as cr

classifier = cr.Classifier.from_pretrained("{repository}")
classifier.predict(["image.jpg"])
```

    clip-randlora predict hf-hub:{repository} image.jpg

`strength` 0 gives the zero-shot answers, 1 the tuned ones.

## Prompts

{bullets(list_prompts(prompts, most=3))}

Base model: {settings["model"]}, weights: {weights}.
Licence of the base: {licence(settings).words}
`config.yaml` has every setting and prompt.
"""
