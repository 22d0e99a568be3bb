"""Methods that update no weight of the model: zero-shot, and a linear probe on its features."""

from typing import Literal

from pydantic import Field

from clip_randlora.adapters.config import MethodConfig


class LinearProbe(MethodConfig):
    """Logistic regression on the frozen image features (Radford et al., arXiv 2103.00020, 3.2).

    Attributes:
        C: inverse strength of the L2 penalty; None chooses it by cross-validation.
    """

    method: Literal["linear_probe"] = "linear_probe"
    C: float | None = Field(default=None, gt=0)


class ZeroShot(MethodConfig):
    """No training: the tuned answers are the zero-shot ones."""

    method: Literal["zero_shot"] = "zero_shot"
