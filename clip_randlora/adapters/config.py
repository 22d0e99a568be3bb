"""Settings that methods share; each method's own settings are on its page."""

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import Self

from clip_randlora.adapters.delta import Delta, Shape
from clip_randlora.errors import UserError, unknown_setting

Tower = Literal["vision", "text"]
Target = Literal["q", "k", "v", "qkv", "out", "mlp", "conv"]


class MethodConfig(BaseModel):
    """Settings of a method; ``method`` is its name in commands and files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in); a method without updates, none.

        Raises:
            UserError: a setting does not fit the shapes.
        """
        return []

    def with_seed(self, seed: int) -> Self:
        """Return the settings with this seed where they leave it open."""
        return self


class AdapterConfig(MethodConfig):
    """Settings that every method shares which updates chosen weights.

    Attributes:
        towers: the encoders to adapt.
        targets: the kinds of weight to adapt: the attention's q, k, v and out projections, the
            MLP's linear layers, the 1x1 convolutions. ``qkv`` adapts q, k and v as one weight
            (3 d, d), where the model holds them as one.
        blocks: adapt only the last K blocks of each tower; None adapts all.
        seed: of the frozen bases and of the random start. None takes the training's seed, and 0
            where there is no training.
    """

    towers: tuple[Tower, ...] = Field(default=("vision", "text"), min_length=1)
    targets: tuple[Target, ...] = Field(default=("q", "k", "v", "out", "mlp", "conv"), min_length=1)
    blocks: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        twice = {"q", "k", "v"} & set(value)
        if "qkv" in value and twice:
            raise ValueError(f"qkv has {min(twice)} already; give qkv, or q, k and v")
        return value

    @property
    def has_chosen_targets(self) -> bool:
        """Whether the targets are others than the method's own."""
        return self.targets != type(self).model_fields["targets"].default

    def with_seed(self, seed: int) -> Self:
        """Return the settings with this seed where they leave it open."""
        return self if self.seed is not None else self.model_copy(update={"seed": seed})


class RankedConfig(AdapterConfig):
    """Settings of a method whose update has a rank r and a factor alpha / r."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / self.rank

    def check_rank(self, shapes: Sequence[Shape]) -> None:
        """Refuse a rank above that of every weight: more of it adds nothing but memory."""
        most = max(min(shape) for shape in shapes)
        if self.rank > most:
            raise UserError(
                f"rank: {self.rank}, but no adapted weight has a rank above {most}; give at most "
                f"{most}"
            )


def one_line(error: ValidationError, known: Iterable[str] = ()) -> str:
    """Return pydantic's first complaint as ``field: what is wrong``.

    ``known`` are the settings that exist: a misspelt one is answered with the nearest of them.
    """
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # our own checks write the whole message
        return str(cause)
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = unknown_setting(str(first["loc"][-1]), known)
    return f"{field or 'settings'}: {message}{more}"
