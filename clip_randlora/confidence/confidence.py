"""What a run knows of how sure its answers are."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from clip_randlora.confidence.temperature import LEAST, MOST


class Threshold(BaseModel):
    """Scores below which an image is of none of the classes.

    Attributes:
        zero_shot, tuned: of `clip_randlora.confidence.unknown`, at strength 0 and 1.
        zero_shot_margin, tuned_margin: of the logits' margin alone, for an export, which has one
            encoder.
        kept: share of the good answers that are not below.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    zero_shot: float
    tuned: float
    zero_shot_margin: float
    tuned_margin: float
    kept: float = Field(gt=0, lt=1)

    def score_at(self, strength: float) -> float:
        """Return the score at a strength from 0 to 1."""
        return self.zero_shot + strength * (self.tuned - self.zero_shot)

    def margin_at(self, strength: float) -> float:
        """Return the margin at a strength from 0 to 1, of logits at temperature 1."""
        return self.zero_shot_margin + strength * (self.tuned_margin - self.zero_shot_margin)


class Confidence(BaseModel):
    """The temperatures of a run's answers. By default 1: the answers of the network itself.

    Attributes:
        zero_shot, tuned: temperatures of the answers at strength 0 and 1.
        fitted_on: the images that they were fitted on, in words; "" if they were not fitted.
        unknown: below which an image is of none of the classes; None if it was not estimated.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    zero_shot: float = Field(default=1.0, ge=LEAST, le=MOST)
    tuned: float = Field(default=1.0, ge=LEAST, le=MOST)
    fitted_on: str = ""
    unknown: Threshold | None = None

    def at(self, strength: float) -> Confidence:
        """Return the confidence of an update that is this one's at a strength from 0 to 1."""
        unknown = self.unknown and self.unknown.model_copy(
            update={
                "tuned": self.unknown.score_at(strength),
                "tuned_margin": self.unknown.margin_at(strength),
            }
        )
        return self.model_copy(update={"tuned": self.temperature_at(strength), "unknown": unknown})

    def temperature_at(self, strength: float) -> float:
        """Return the temperature at a strength from 0 to 1: the geometric mean, weighted by it.

        The logits change about linearly between zero-shot and tuned, and so does the factor in
        front of them in its logarithm.
        """
        if self.zero_shot == self.tuned:
            return self.tuned
        return float(self.zero_shot ** (1 - strength) * self.tuned**strength)
