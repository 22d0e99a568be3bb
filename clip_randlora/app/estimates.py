"""About how long a training or an export will take, from how long others took before."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import NamedTuple

import clip_randlora as cr
from clip_randlora.training.config import default_steps
from clip_randlora.utils.outputs import write_json

# Time of an image in a training step, in times of its encoding, before a training was timed: a step
# is a forward and a backward pass of smaller crops (lite0: 0.6 to 1.1).
_STEP_PER_ENCODING = 1.0
_SECONDS_AROUND = 3  # of preparing and writing
_IMAGES_TIMED = 16
_BYTES_PER_PARAMETER = {"open_clip": 4, "transformers": 4, "onnx": 6, "web": 0.6, "peft": 1}
_SECONDS_OF_AN_EXPORT, _EXPORTED_BYTES_PER_SECOND = 5, 20e6  # before one was timed
_SECONDS_OF_A_REPEAT = 0.5
_WEIGHT = 0.5  # of the newest training in the running mean


class ExportCost(NamedTuple):
    """About what an export costs: bytes of the file, and seconds."""

    bytes: int
    seconds: float


class Estimates:
    """Seconds per training step by model, method and device, kept in a file.

    Until a training has ended, they rest on how fast the model encodes images.
    """

    def __init__(self, file: Path):
        self._file = file
        self._lock = threading.Lock()
        try:
            self._known: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def measure(self, model: cr.Model) -> None:
        """Time the encoding of a few images, if nothing is known of a model yet."""
        if f"encode {model.name}" not in self._known:
            import torch

            size = model.image_size
            images = torch.zeros(_IMAGES_TIMED, 3, size, size, dtype=torch.uint8)
            with torch.inference_mode():
                model.encode_image(images[:1].to(model.device))
                started = time.perf_counter()
                model.encode_image(images.to(model.device))
            self._note(f"encode {model.name}", (time.perf_counter() - started) / _IMAGES_TIMED)

    def record(self, model: str, method: str, steps: int, images: int, seconds: float) -> None:
        """Note how long the steps of a training took; ``images`` are those of one step."""
        if steps and images:
            self._note(f"step {model} {method}", seconds / steps / images)

    def seconds(
        self, model: str, method: str, config: cr.TrainConfig, images: int, tested: int
    ) -> float | None:
        """Return the seconds of a training; None if nothing is known of the model yet.

        Args:
            model, method, config: what is trained, and how.
            images: number of training images.
            tested: number of test images, which are encoded before and after.
        """
        known = self._known
        encode = known.get(f"encode {model}")
        per_image = known.get(f"step {model} {method}", encode and _STEP_PER_ENCODING * encode)
        if not per_image or not images:
            return None
        steps = config.steps or default_steps(
            images, config.batch_size, config.epochs, config.min_steps, config.max_steps
        )
        testing = 2 * tested * (encode or 0)
        return steps * min(images, config.batch_size) * per_image + testing + _SECONDS_AROUND

    def record_export(self, model: str, format: str, size: int, seconds: float) -> None:
        """Note how large an export was, in bytes, and how long it took."""
        if seconds > _SECONDS_OF_A_REPEAT:  # else the file was there already
            self._note(f"export {model} {format} seconds", seconds)
        self._note(f"export {model} {format} bytes", size)

    def export_cost(self, model: str, format: str, parameters: int) -> ExportCost:
        """Return about how large an export will be, and how long it will take."""
        guess = _BYTES_PER_PARAMETER.get(format, 0) * parameters
        size = self._known.get(f"export {model} {format} bytes", guess)
        usual = _SECONDS_OF_AN_EXPORT + size / _EXPORTED_BYTES_PER_SECOND
        return ExportCost(round(size), self._known.get(f"export {model} {format} seconds", usual))

    def _note(self, key: str, value: float) -> None:
        with self._lock:
            known = self._known.get(key)
            self._known[key] = value if known is None else known + _WEIGHT * (value - known)
            write_json(self._file, self._known)
