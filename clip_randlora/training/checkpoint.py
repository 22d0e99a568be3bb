"""The state of an unfinished training in its run folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LRScheduler

from clip_randlora.adapters import Adapter
from clip_randlora.data import Skipped, StreamedImages, TrainingImages
from clip_randlora.errors import UserError
from clip_randlora.training.logger import is_finite
from clip_randlora.training.state import TrainState
from clip_randlora.utils import formats
from clip_randlora.utils.outputs import atomic_write

FILE_NAME = "checkpoint.pt"


class Checkpoint:
    """Saves what a training needs to go on, and restores it."""

    def __init__(
        self,
        folder: Path,
        images: TrainingImages,
        state: TrainState,
        adapter: Adapter,
    ):
        """Take what `save` reads and `restore` changes; `follow` has to give it the optimiser.

        ``folder`` is the run folder. A training goes on only with images of the same names; those
        of streamed ones that turned out broken are saved with it.
        """
        self.folder, self.state = folder, state
        self._adapter = adapter
        self._images = images
        self._drawn = hashlib.sha256("\n".join(images.names).encode()).hexdigest()

    def follow(self, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
        """Save and restore this optimiser and this schedule from now on."""
        self._optimizer, self._schedule = optimizer, schedule

    def save(self) -> None:
        """Write the checkpoint, unless a trainable parameter is NaN or infinite."""
        if not is_finite(self._adapter):
            return
        state = {
            "format": formats.CHECKPOINT,
            "step": self.state.step,
            "seconds": self.state.seconds,
            "step_seconds": self.state.step_seconds,
            "history": self.state.history,
            "accumulate": self.state.accumulate,
            "drawn": self._drawn,
            "skipped": [[entry.name, entry.reason] for entry in self._images.skipped],
            "adapter": {key: value.detach() for key, value in self._adapter.named_parameters()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        with atomic_write(self.folder / FILE_NAME) as temporary:
            torch.save(state, temporary)

    def restore(self, device: torch.device) -> None:
        """Go back to the checkpoint, if the training got as far as writing one.

        Raises:
            UserError: it is damaged, of another version, or of other training images.
        """
        path = self.folder / FILE_NAME
        if not path.exists():
            return
        damaged = UserError(f"{path}: damaged; start again with another --out")
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise damaged from error
        if not isinstance(state, dict):
            raise damaged
        if state.get("format") != formats.CHECKPOINT:  # its bases differ for the same parameters
            raise UserError(
                f"{self.folder}: cannot resume, its checkpoint was written by another version of "
                f"clip-randlora; resume with that version or start again with another --out"
            )
        if state.get("drawn") != self._drawn:
            raise UserError(
                f"{self.folder}: cannot resume, the training images are not those that the run "
                f"began with; restore them or start again with another --out"
            )
        try:
            with torch.no_grad():
                for key, parameter in self._adapter.named_parameters():
                    parameter.copy_(state["adapter"][key])
            self._optimizer.load_state_dict(state["optimizer"])
            for group in self._optimizer.param_groups:  # the checkpoint may be another device's
                group.update(
                    lr=float(group["lr"]),
                    capturable=False,
                    fused=True if device.type == "cuda" else None,
                )
            self._schedule.load_state_dict(state["schedule"])
            self.state.step, self.state.seconds = state["step"], state["seconds"]
            self.state.step_seconds, self.state.history = state["step_seconds"], state["history"]
            self.state.accumulate = state.get("accumulate")  # another number would round otherwise
            if isinstance(self._images, StreamedImages):
                self._images.leave_out(Skipped(*entry) for entry in state.get("skipped", ()))
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise damaged from error
