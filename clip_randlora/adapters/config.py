"""What to train and where: one configuration class for each method."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clip_randlora.bases import Distribution
from clip_randlora.errors import UserError, unknown_setting

Tower = Literal["vision", "text"]
Target = Literal["q", "k", "v", "out", "mlp", "conv"]


class AdapterConfig(BaseModel):
    """Settings that every method shares.

    Attributes:
        towers: the encoders to adapt.
        targets: the kinds of weight to adapt: the attention's q, k, v and out projections, the
            MLP's linear layers, the 1x1 convolutions.
        blocks: adapt only the last K blocks of each tower; None for all.
        seed: of the frozen bases and of the random start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    towers: tuple[Tower, ...] = Field(("vision", "text"), min_length=1)
    targets: tuple[Target, ...] = Field(("q", "k", "v", "out", "mlp", "conv"), min_length=1)
    blocks: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)


class RandLoRA(AdapterConfig):
    """Full-rank update from frozen random bases (Albert et al., ICLR 2025, arXiv 2502.00987).

    Attributes:
        rank: r, the rank of each base; fewer trained numbers at a higher rank.
        alpha: the update is scaled by alpha / r.
        bases: distribution of the frozen bases, as `clip_randlora.bases.random_bases` has it.
    """

    method: Literal["randlora"] = "randlora"
    rank: int = Field(6, ge=1)
    alpha: float = Field(1.0, gt=0)
    bases: Distribution = "uniform"

    @property
    def scale(self) -> float:
        """The factor alpha / r in front of the update."""
        return self.alpha / self.rank


class LoRA(AdapterConfig):
    """Low-rank update (Hu et al., ICLR 2022, arXiv 2106.09685).

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / r.
    """

    method: Literal["lora"] = "lora"
    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)

    @property
    def scale(self) -> float:
        """The factor alpha / r in front of the update."""
        return self.alpha / self.rank


METHODS: dict[str, type[AdapterConfig]] = {"randlora": RandLoRA, "lora": LoRA}
"""The methods by the name that commands and files call them."""

Method = Annotated[RandLoRA | LoRA, Field(discriminator="method")]


class Sum(AdapterConfig):
    """Trained updates for one base model, added with weights; made by `add_adapters`.

    Attributes:
        terms: the settings of each update; all adapt the same weights.
        weights: one factor each.
    """

    method: Literal["sum"] = "sum"
    terms: tuple[Method, ...] = Field(min_length=1)
    weights: tuple[float, ...]


_METHOD = TypeAdapter(Method)
_STORED = TypeAdapter(Annotated[RandLoRA | LoRA | Sum, Field(discriminator="method")])


def parse_method(value: object) -> RandLoRA | LoRA:
    """Read a method from its name, a mapping with ``method`` and settings, or a configuration.

    Raises:
        UserError: the method is unknown or a setting is wrong; the line names it.
    """
    if isinstance(value, AdapterConfig):
        return value
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, Mapping):
        raise UserError(f"method: give a name ({', '.join(METHODS)}), or settings with `method`")
    try:
        return _METHOD.validate_python(value)
    except ValidationError as error:
        raise UserError(f"method {one_line(error, _settings_of(value))}") from error


def parse_stored(value: object) -> RandLoRA | LoRA | Sum:
    """Read the settings in an adapter file, which may be a sum's.

    Raises:
        UserError: they are damaged, or of a later version; the line names what is wrong.
    """
    try:
        return _STORED.validate_python(value)
    except ValidationError as error:
        known = _settings_of(value) if isinstance(value, Mapping) else ()
        raise UserError(f"method {one_line(error, known)}") from error


def _settings_of(value: Mapping) -> Iterable[str]:
    """The settings of the method that a mapping names."""
    name = value.get("method")
    return METHODS[name].model_fields if isinstance(name, str) and name in METHODS else ()


def one_line(error: ValidationError, known: Iterable[str] = ()) -> str:
    """Return pydantic's first complaint as ``field: what is wrong``.

    ``known`` are the settings that there are, to name the one that was meant.
    """
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):  # raised by a check of ours, and complete
        return str(cause)
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = unknown_setting(str(first["loc"][-1]), known)
    return f"{field or 'settings'}: {message}{more}"
