"""How sure an answer is: temperatures that make probabilities right, and images of no class."""

from clip_randlora.confidence.confidence import Confidence
from clip_randlora.confidence.temperature import change_temperature, fit_temperature

__all__ = ["Confidence", "change_temperature", "fit_temperature"]
