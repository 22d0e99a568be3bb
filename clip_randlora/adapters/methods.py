"""The methods by name, and how their settings are read."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import mul
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError
from torch import Tensor, nn
from typing_extensions import Self

from clip_randlora.adapters.config import MethodConfig, one_line
from clip_randlora.adapters.delta import Delta, Shape
from clip_randlora.adapters.dora import DoRA
from clip_randlora.adapters.full import Full
from clip_randlora.adapters.heads import GDA, AnchoredHead, LinearProbe, TipAdapterF
from clip_randlora.adapters.kradapter import KRAdapter
from clip_randlora.adapters.lora import CLIPLoRA, LoRA
from clip_randlora.adapters.nola import NoLA
from clip_randlora.adapters.norm_tuning import NormTuning
from clip_randlora.adapters.randlora import RandLoRA
from clip_randlora.adapters.vera import VeRA
from clip_randlora.adapters.zero_shot import ZeroShot
from clip_randlora.errors import UserError

METHODS: dict[str, type[MethodConfig]] = {
    "randlora": RandLoRA,
    "lora": LoRA,
    "clip_lora": CLIPLoRA,
    "vera": VeRA,
    "nola": NoLA,
    "dora": DoRA,
    "kradapter": KRAdapter,
    "norm_tuning": NormTuning,
    "full": Full,
    "linear_probe": LinearProbe,
    "anchored_head": AnchoredHead,
    "tip_adapter_f": TipAdapterF,
    "gda": GDA,
    "zero_shot": ZeroShot,
}
"""The methods by the name that commands and files call them. A new method is one more line."""


def parse_method(value: object) -> MethodConfig:
    """Read a method from its name, a mapping with ``method`` and settings, or a configuration.

    Raises:
        UserError: the method is unknown or a setting is wrong; the line names it.
    """
    if isinstance(value, MethodConfig):
        return value
    settings = {"method": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or "method" not in settings:
        raise UserError(f"method: give a name ({', '.join(METHODS)}), or settings with `method`")
    name = settings["method"]
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"method: {name!r} is unknown; choose {', '.join(METHODS)}")
    try:
        return METHODS[name].model_validate(settings)
    except ValidationError as error:
        raise UserError(f"method {name}.{one_line(error, METHODS[name].model_fields)}") from error


Method = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(parse_method)]
"""A field that takes what `parse_method` takes."""


class Sum(MethodConfig):
    """The weighted sum of several adapters' updates (Ilharco et al., arXiv 2212.04089).

    Attributes:
        terms: the settings of each update; all adapt the same weights.
        weights: one factor for each.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)  # older files repeat terms[0]'s settings

    method: Literal["sum"] = "sum"
    terms: tuple[Method, ...] = Field(min_length=1)
    weights: tuple[float, ...]

    def make_deltas(self, shapes: Sequence[Shape]) -> list[Delta]:
        """Make a fresh update for each weight shape (out, in)."""
        updates = zip(*(term.make_deltas(shapes) for term in self.terms), strict=True)
        return [
            SumDelta(shape, terms, self.weights)
            for shape, terms in zip(shapes, updates, strict=True)
        ]

    def with_seed(self, seed: int) -> Self:
        """Return the settings with this seed where a term leaves it open."""
        terms = tuple(term.with_seed(seed) for term in self.terms)
        return self.model_copy(update={"terms": terms})


class SumDelta(Delta):
    """Updates of one weight, added with fixed factors."""

    def __init__(self, shape: Shape, terms: Iterable[Delta], weights: Sequence[float]):
        super().__init__(shape)
        self.terms, self.weights = nn.ModuleList(terms), tuple(weights)

    def update_of(self, weight: Tensor) -> Tensor:
        """Return dW, (out, in), for a frozen weight (out, in)."""
        updates = [term.update_of(weight) for term in self.terms if isinstance(term, Delta)]
        return reduce(torch.add, map(mul, self.weights, updates))


def parse_stored(value: object) -> MethodConfig:
    """Read the settings in an adapter file, which may be those of a `Sum`.

    Raises:
        UserError: they are damaged, or of a later version; the line names what is wrong.
    """
    if not isinstance(value, Mapping) or value.get("method") != "sum":
        return parse_method(value)
    try:
        return Sum.model_validate(value)
    except ValidationError as error:
        raise UserError(f"method sum.{one_line(error, Sum.model_fields)}") from error
