"""What a shell completes, found without the libraries that take seconds to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from clip_randlora.utils.paths import configs_folder

_METHODS = (
    "randlora", "lora", "clip_lora", "vera", "nola", "dora", "kradapter", "norm_tuning", "full",
    "anchored_head", "linear_probe", "tip_adapter_f", "gda", "zero_shot",
)  # fmt: skip
_BUNDLED_DATASETS = ("clipart", "digits")


def _completer(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what typer asks for the names that begin as the word on the command line does.

    If there is none, the shell completes the names of files.
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def _configs(folder: str) -> list[str]:
    return sorted(path.stem for path in (configs_folder() / folder).glob("*.yaml"))


def _datasets() -> list[str]:
    return [*_BUNDLED_DATASETS, *_configs("datasets")]


def _formats() -> list[str]:
    modules = (Path(__file__).parent.parent / "export").glob("*_format.py")
    return sorted(path.stem.removesuffix("_format") for path in modules)


def _models() -> list[str]:
    found = find_spec("open_clip")  # open_clip itself is not imported by this
    assert found is not None and found.origin is not None
    configs = (Path(found.origin).parent / "model_configs").glob("*.json")
    return ["lite0", *sorted(path.stem for path in configs)]


def _trackers() -> Iterable[str]:
    from clip_randlora.runs.tracking import TRACKERS

    return TRACKERS


complete_dataset = _completer(_datasets)
complete_format = _completer(_formats)
complete_method = _completer(lambda: _METHODS)
complete_model = _completer(_models)
complete_preset = _completer(lambda: _configs("presets"))
complete_sweep = _completer(lambda: _configs("sweeps"))
complete_tracker = _completer(_trackers)
