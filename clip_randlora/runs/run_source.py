"""Where a run is: a folder, its adapter file, or a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.errors import UserError
from clip_randlora.runs.confidence_file import FILE_NAME as CONFIDENCE
from clip_randlora.runs.confidence_file import KNOWN
from clip_randlora.runs.image_record import FILE_NAME as IMAGES
from clip_randlora.runs.metrics_file import METRICS
from clip_randlora.runs.run_config import CONFIG
from clip_randlora.utils.hub import HubName, download, is_hub_name

LOADED = {
    CONFIG: 2**24,
    METRICS: 2**28,
    CONFIDENCE: 2**20,
    IMAGES: 2**31,
    KNOWN: 2**33,
    ADAPTER: 2**35,
}
"""The files of a run that are read, and how many bytes of each are fetched at most."""


def local_run(run: str | Path, token: str | None = None) -> Path:
    """Return the path of a run: a folder, or an adapter file.

    Args:
        run: a path, which is returned as it is, or ``hf-hub:ORG/NAME[@REVISION]``, a run or an
            exported adapter on the hub. Of that only YAML, JSON, CSV and safetensors files with
            the names of a run's are fetched, into the hub's cache.
        token: for the hub; by default that of ``hf auth login`` or HF_TOKEN.

    Raises:
        UserError: the repository holds no run, or cannot be had: see `download`.
    """
    if not is_hub_name(run):
        return Path(run)
    name = HubName.parse(run)
    folder = download(name, LOADED, token)
    if not (folder / ADAPTER).is_file():
        raise UserError(
            f"{name}: has no {ADAPTER}, so it is no run; if it is a model of open_clip, give it as "
            f"--model {name}"
        )
    return folder if (folder / CONFIG).is_file() else folder / ADAPTER
