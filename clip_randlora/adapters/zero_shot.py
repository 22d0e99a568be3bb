"""Zero-shot: the method that trains nothing."""

from typing import Literal

from clip_randlora.adapters.config import MethodConfig


class ZeroShot(MethodConfig):
    """No training: the tuned answers are the zero-shot ones."""

    method: Literal["zero_shot"] = "zero_shot"
