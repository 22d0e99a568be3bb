"""What to train and where: one configuration class for each method."""

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clip_randlora.adapters.bases import Distribution
from clip_randlora.errors import UserError, unknown_setting

Tower = Literal["vision", "text"]
Target = Literal["q", "k", "v", "out", "mlp", "conv"]


class MethodConfig(BaseModel):
    """Settings of a method; ``method`` is its name in commands and files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: str


class AdapterConfig(MethodConfig):
    """Settings that every method shares which updates chosen weights.

    Attributes:
        towers: the encoders to adapt.
        targets: the kinds of weight to adapt: the attention's q, k, v and out projections, the
            MLP's linear layers, the 1x1 convolutions.
        blocks: adapt only the last K blocks of each tower; None for all.
        seed: of the frozen bases and of the random start; None: the training's seed, and 0 where
            there is no training (see `with_seed`).
    """

    towers: tuple[Tower, ...] = Field(("vision", "text"), min_length=1)
    targets: tuple[Target, ...] = Field(("q", "k", "v", "out", "mlp", "conv"), min_length=1)
    blocks: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)

    @property
    def has_chosen_targets(self) -> bool:
        """Whether the targets are others than the method's own."""
        return self.targets != type(self).model_fields["targets"].default


class RankedConfig(AdapterConfig):
    """Settings of a method whose update has a rank r and a factor alpha / r in front."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)

    @property
    def scale(self) -> float:
        """The factor in front of the update."""
        return self.alpha / self.rank


class RandLoRA(RankedConfig):
    """Full-rank update from frozen random bases (Albert et al., ICLR 2025, arXiv 2502.00987).

    Attributes:
        rank: r, the rank of each base; fewer trained numbers at a higher rank.
        alpha: the update is scaled by alpha / r.
        bases: distribution of the frozen bases, see `adapters.bases.random_bases`.
    """

    method: Literal["randlora"] = "randlora"
    rank: int = Field(6, ge=1)
    alpha: float = Field(1.0, gt=0)
    bases: Distribution = "uniform"


class LoRA(RankedConfig):
    """Low-rank update (Hu et al., ICLR 2022, arXiv 2106.09685).

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / r.
    """

    method: Literal["lora"] = "lora"
    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)


class CLIPLoRA(LoRA):
    """Low-rank update of the attention, as CLIP-LoRA has it (arXiv 2405.18541, section 4).

    The same: rank 2 on q, k and v of all blocks of both towers, the scale alpha / sqrt(r) of the
    authors' code, the start and the learning rate. Not the same: their dropout of 0.25 on the
    inputs of the update has no counterpart here, where the update is added to the weight before
    any input meets it; and number of steps, prompts and augmentation are `TrainConfig`'s.

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / sqrt(r).
    """

    method: Literal["clip_lora"] = "clip_lora"
    targets: tuple[Target, ...] = Field(("q", "k", "v"), min_length=1)
    rank: int = Field(2, ge=1)
    alpha: float = Field(1.0, gt=0)

    @property
    def scale(self) -> float:
        """The factor alpha / sqrt(r) in front of the update."""
        return self.alpha / sqrt(self.rank)


class VeRA(AdapterConfig):
    """Two scaled random matrices, shared by all layers (Kopiczko et al., arXiv 2310.11454).

    Attributes:
        rank: r, of the shared matrices; an update trains r + out numbers.
        alpha: the update is scaled by alpha; the paper has no such factor.
        initial_d: what every entry of the trained vector d starts at.
    """

    method: Literal["vera"] = "vera"
    rank: int = Field(256, ge=1)
    alpha: float = Field(1.0, gt=0)
    initial_d: float = Field(0.1, gt=0)

    @property
    def scale(self) -> float:
        """The factor alpha in front of the update."""
        return self.alpha


class NoLA(RankedConfig):
    """Low-rank factors combined of random ones (Koohpayegani et al., arXiv 2310.02556).

    Attributes:
        rank: r, the rank of the update.
        alpha: the update is scaled by alpha / r.
        number_of_bases: k = l, random matrices that each of the two factors combines; an update
            trains k + l numbers.
    """

    method: Literal["nola"] = "nola"
    rank: int = Field(1, ge=1)
    alpha: float = Field(1.0, gt=0)
    number_of_bases: int = Field(1024, ge=1)


class Full(MethodConfig):
    """Full fine-tuning: every weight of the chosen towers, biases, norms and embeddings too.

    The statistics of batch norms stay as they are, and so does the logit scale, which is neither
    tower's. What is trained is the difference from the weights, so weight decay draws them towards
    their start, not towards zero.

    Attributes:
        towers: the encoders to train.
    """

    method: Literal["full"] = "full"
    towers: tuple[Tower, ...] = Field(("vision", "text"), min_length=1)


class LinearProbe(MethodConfig):
    """Logistic regression on the frozen image features (Radford et al., arXiv 2103.00020, 3.2).

    Attributes:
        C: inverse strength of the L2 penalty; None: chosen by cross-validation.
    """

    method: Literal["linear_probe"] = "linear_probe"
    C: float | None = Field(None, gt=0)


class ZeroShot(MethodConfig):
    """No training: the tuned answers are the zero-shot ones."""

    method: Literal["zero_shot"] = "zero_shot"


METHODS: dict[str, type[MethodConfig]] = {
    "randlora": RandLoRA,
    "lora": LoRA,
    "clip_lora": CLIPLoRA,
    "vera": VeRA,
    "nola": NoLA,
    "full": Full,
    "linear_probe": LinearProbe,
    "zero_shot": ZeroShot,
}
"""The methods by the name that commands and files call them."""

Method = Annotated[
    RandLoRA | LoRA | CLIPLoRA | VeRA | NoLA | Full | LinearProbe | ZeroShot,
    Field(discriminator="method"),
]


class Sum(MethodConfig):
    """Trained updates for one base model, added with weights; made by `add_adapters`.

    Attributes:
        terms: the settings of each update; all adapt the same weights.
        weights: one factor each.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)  # files once named what terms[0] names

    method: Literal["sum"] = "sum"
    terms: tuple[Method, ...] = Field(min_length=1)
    weights: tuple[float, ...]


def with_seed(config: MethodConfig, seed: int) -> MethodConfig:
    """Return the settings with this seed where they leave it open."""
    if isinstance(config, Sum):
        return config.model_copy(
            update={"terms": tuple(with_seed(term, seed) for term in config.terms)}
        )
    if getattr(config, "seed", seed) is None:
        return config.model_copy(update={"seed": seed})
    return config


_METHOD = TypeAdapter(Method)
_STORED = TypeAdapter(Annotated[Method | Sum, Field(discriminator="method")])


def parse_method(value: object) -> Method:
    """Read a method from its name, a mapping with ``method`` and settings, or a configuration.

    Raises:
        UserError: the method is unknown or a setting is wrong; the line names it.
    """
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, Mapping):
        raise UserError(f"method: give a name ({', '.join(METHODS)}), or settings with `method`")
    try:
        return _METHOD.validate_python(value)
    except ValidationError as error:
        raise UserError(f"method {one_line(error, _settings_of(value))}") from error


def parse_stored(value: object) -> Method | Sum:
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
