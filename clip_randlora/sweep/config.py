"""A sweep's YAML file, and the cells that it asks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from clip_randlora.adapters.config import one_line
from clip_randlora.adapters.heads import HeadConfig
from clip_randlora.adapters.methods import Method, parse_method
from clip_randlora.clip.models import DEFAULT_TAG
from clip_randlora.data.dataset_spec import SPEC_SUFFIXES, packaged_specs, read_dataset_spec
from clip_randlora.data.parts import is_pattern
from clip_randlora.data.registry import DATASETS
from clip_randlora.data.sampling import parse_shots
from clip_randlora.errors import UserError
from clip_randlora.training.config import TrainConfig
from clip_randlora.utils.paths import configs_folder
from clip_randlora.utils.yaml_files import read_mapping

ZERO_SHOT = "zero_shot"
NOVEL = "novel"
_GRID = ("method", "shots", "seed")
Classes = Literal["all", "base"]


def _with_label(entry: Any, name: str) -> dict[str, Any]:
    """Return an entry as a mapping; its label is by default what ``name`` says."""
    mapping = {name: entry} if isinstance(entry, str) else entry
    if isinstance(mapping, Mapping) and name in mapping:
        return {"label": str(mapping[name]), **mapping}
    raise UserError(f"{name}s: give a name or a mapping with {name}, not {entry}")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Settings):
    """A model of a sweep: a name, or a mapping of these settings.

    Attributes:
        name: as `load_model` takes it.
        pretrained: a tag or file; None or ``none`` for random weights; by default the model's
            default tag.
        label: its name in tables; by default ``name``.
    """

    name: str
    pretrained: str | None = DEFAULT_TAG
    label: str = ""

    @model_validator(mode="before")
    @classmethod
    def _add_label(cls, value: Any) -> Any:
        return value if isinstance(value, cls) else _with_label(value, "name")

    @field_validator("pretrained")
    @classmethod
    def _random_weights(cls, value: str | None) -> str | None:
        return None if value == "none" else value


class MethodEntry(_Settings):
    """A method of a sweep: a name, or a mapping with ``method``, its settings and optional entries.

    Attributes:
        settings: the method's own.
        label: its name in tables; by default the method's name.
        training: settings of `TrainConfig` for this method alone.
        models: labels of the models that it is run on; by default all. Entries for different models
            may share a label, so that they are one row of the tables: ranks by model, say.
    """

    settings: Method
    label: str
    training: dict[str, Any] = Field(default_factory=dict)
    models: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, cls) or (isinstance(value, Mapping) and "settings" in value):
            return value  # parsed before: the record of a sweep has `settings`
        mapping = _with_label(value, "method")
        rest = ("label", "training", "models")
        own = {key: entry for key, entry in mapping.items() if key not in rest}
        training = mapping.get("training") or {}
        if not isinstance(training, Mapping):
            raise UserError(f"methods: training: give `setting: value` lines, not {training}")
        _refuse_grid_settings("methods: training", training)
        settings = parse_method(own)
        entry = {"settings": settings, "label": mapping["label"], "training": dict(training)}
        return entry | {"models": mapping.get("models")}

    @field_serializer("settings")
    def _dump_settings(self, settings: BaseModel) -> dict[str, Any]:
        return settings.model_dump(mode="json")


class Resources(_Settings):
    """What one cell takes of a Ray cluster.

    Attributes:
        cpus: CPU cores, and threads.
        gpus: GPUs; with a fraction several cells share one.
    """

    cpus: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)


class Splits(_Settings):
    """How a data set is split, where it does not say so itself.

    Attributes:
        validation: number of training images that are held back for validation.
        held_out: share of each class that is held out for testing if there is no test split.
    """

    validation: int | None = Field(default=None, ge=1)
    held_out: float = Field(default=0.3, gt=0, lt=1)


class Rule(_Settings):
    """Settings for some cells: those that every list which is given has the label of.

    Attributes:
        datasets, models, methods: labels.
        shots: as in `SweepConfig`.
        training: settings of `TrainConfig` for these cells.
        splits: of the data sets; for all cells of a data set, so with ``datasets`` alone.
    """

    datasets: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    shots: tuple[int | str, ...] | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    splits: Splits | None = None

    @field_validator("training")
    @classmethod
    def _check_training(cls, value: dict[str, Any]) -> dict[str, Any]:
        _refuse_grid_settings("where: training", value)
        return value

    @field_validator("shots", mode="before")
    @classmethod
    def _parse_shots(cls, value: Any) -> Any:
        return None if value is None else _parse_all_shots(value, "where: shots")

    @model_validator(mode="after")
    def _check_splits(self) -> Rule:
        if self.splits and (self.models or self.methods or self.shots):
            raise UserError("where: splits: of data sets; give datasets alone beside it")
        return self

    def holds(self, data: str, model: str, method: str, shots: int | str | None) -> bool:
        """Return whether it is for the cell of these labels."""
        asked = (self.datasets, data), (self.models, model), (self.methods, method)
        return all(
            labels is None or label in labels for labels, label in (*asked, (self.shots, shots))
        )


class Cell(_Settings):
    """One training of a sweep.

    Attributes:
        model: the model to tune.
        data: a data set's name, or its absolute path.
        data_label: the data set's name in tables.
        method: the method and its settings.
        shots: images per class, a share of them such as ``50%``, or ``all``; None for zero-shot,
            which has no shots and no seed.
        seed: of the training.
        training: settings of `TrainConfig` other than method, shots and seed.
        classes: ``base``: the base classes alone, and a test on the novel ones.
        also_test: ``{name in tables: data set}`` to test on, too.
        splits: of the data set.
    """

    model: ModelEntry
    data: str
    data_label: str
    method: MethodEntry
    shots: int | str | None
    seed: int | None
    training: dict[str, Any]
    classes: Classes = "all"
    also_test: dict[str, str] = Field(default_factory=dict)
    splits: Splits = Splits()

    @property
    def id(self) -> str:
        """The name of its run folder."""
        parts = [self.model.label, self.data_label, self.method.label]
        if self.shots is not None:
            parts += [_file_name_of(self.shots), f"seed-{self.seed}"]
        return "--".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)

    def train_config(self) -> TrainConfig:
        """Return the settings of its training.

        Raises:
            UserError: a setting is unknown or wrong.
        """
        grid: dict[str, Any] = {"method": self.method.settings}
        if self.shots is not None:
            grid |= {"shots": self.shots, "seed": self.seed}
        return TrainConfig.parse(self.training | grid)


class SweepConfig(_Settings):
    """A sweep: each combination of data set, model, method, shots and seed is a cell.

    Attributes:
        datasets: names, folders, zips or YAML files, as `load_data` takes them; paths are relative
            to the sweep's file.
        models: names, or mappings with ``name``, ``pretrained`` and ``label``. For a single model,
            ``model`` and ``pretrained`` may be given instead.
        methods: names, or mappings with ``method``, its settings, and optionally a ``label``,
            ``training`` settings for this method alone, and the ``models`` that it is run on.
        shots: images per class, a share of them such as ``50%``, or ``all``.
        seeds: of the trainings. They also seed the methods' random start and bases, unless a
            method's settings have a ``seed``.
        training: settings of `TrainConfig` for every cell.
        where: settings for some cells, see `Rule`. They replace a method's own, and those of a
            later rule those of an earlier one.
        reference: the label of the method that the report compares the others with.
        classes: ``base`` trains on the first half of each data set's classes and tests on it, and
            also on the other half, among the names of its own classes (base-to-novel).
        also_test: data sets, given as in ``datasets``, whose test images every training is tested
            on, among their own classes; one that a training is on is tested on anyway.
        resources: what a cell takes of a Ray cluster.
    """

    datasets: tuple[str, ...] = Field(min_length=1)
    models: tuple[ModelEntry, ...] = (ModelEntry(name="lite0"),)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    shots: tuple[int | str, ...] = (16,)
    seeds: tuple[int, ...] = (1,)
    training: dict[str, Any] = Field(default_factory=dict)
    where: tuple[Rule, ...] = ()
    reference: str | None = None
    classes: Classes = "all"
    also_test: tuple[str, ...] = ()
    resources: Resources = Resources(cpus=1, gpus=0)

    @model_validator(mode="before")
    @classmethod
    def _single_model(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not {"model", "pretrained"} & value.keys():
            return value
        if "models" in value or "model" not in value:
            raise UserError("give either models, or model and pretrained")
        rest = {key: entry for key, entry in value.items() if key not in ("model", "pretrained")}
        single = {"name": value["model"]}
        if "pretrained" in value:
            single["pretrained"] = value["pretrained"]
        return rest | {"models": [single]}

    @field_validator("training")
    @classmethod
    def _check_training(cls, value: dict[str, Any]) -> dict[str, Any]:
        _refuse_grid_settings("training", value)
        return value

    @field_validator("shots", mode="before")
    @classmethod
    def _parse_shots(cls, value: Any) -> Any:
        return _parse_all_shots(value, "shots")

    @model_validator(mode="after")
    def _check_reference(self) -> SweepConfig:
        labels = [method.label for method in self.methods]
        if self.reference is not None and self.reference not in labels:
            raise UserError(
                f"reference: {self.reference}: no such method; choose {', '.join(labels)}"
            )
        return self

    @model_validator(mode="after")
    def _check_further_tests(self) -> SweepConfig:
        if self.classes == "all" and not self.also_test:
            return self
        for method in self.methods:
            if isinstance(method.settings, HeadConfig):
                raise UserError(
                    f"methods: {method.label}: its head answers only for the classes it was "
                    f"trained on; take it out, or classes: base and also_test"
                )
        labels = [_data_label(data) for data in self.also_test]
        for label, count in Counter(labels).items():
            if count > 1 or label == NOVEL:
                raise UserError(f"also_test: two tests would be called {label}; rename a data set")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> SweepConfig:
        """Refuse a label that no cell has: its settings would be for nothing."""
        known: dict[str, list[Any]] = {
            "datasets": [_data_label(data) for data in self.datasets],
            "models": [model.label for model in self.models],
            "methods": [method.label for method in self.methods],
            "shots": list(self.shots),
        }
        asked = [("methods", "models", method.models) for method in self.methods]
        asked += [("where", key, getattr(rule, key)) for rule in self.where for key in known]
        for where, key, labels in asked:
            for label in labels or ():
                if label not in known[key]:
                    choices = ", ".join(map(str, known[key]))
                    raise UserError(f"{where}: {key}: {label}: not in {key}; choose {choices}")
        return self

    @model_validator(mode="after")
    def _check_every_cell(self) -> SweepConfig:
        seen: set[str] = set()
        for cell in self.cells():
            if cell.id in seen:
                raise UserError(
                    f"two cells would be called {cell.id}; take out what is listed twice, or give "
                    f"the methods, models or data sets different labels or names"
                )
            seen.add(cell.id)
            cell.train_config()
        return self

    def cells(self) -> Iterator[Cell]:
        """Yield every cell; the cells of one model and data set follow each other."""
        grid = list(product(self.shots, self.seeds))
        further = {_data_label(data): data for data in self.also_test}
        for model, data in product(self.models, self.datasets):
            label = _data_label(data)
            others = {name: other for name, other in further.items() if other != data}
            for entry in self.methods:
                if entry.models is not None and model.label not in entry.models:
                    continue
                method = entry.model_copy(update={"models": None})  # a cell has one model
                is_zero_shot = method.settings.method == ZERO_SHOT
                for shots, seed in [(None, None)] if is_zero_shot else grid:
                    training, splits = self.training | method.training, Splits()
                    for rule in self.where:
                        if rule.holds(label, model.label, method.label, shots):
                            training = training | rule.training
                            splits = rule.splits or splits
                    yield Cell(
                        model=model,
                        data=data,
                        data_label=label,
                        method=method,
                        shots=shots,
                        seed=seed,
                        training=training,
                        splits=splits,
                        classes=self.classes,
                        also_test=others,
                    )


def read_sweep(path: str | Path, more_data: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep's YAML file.

    Args:
        path: of the file, or the name of a file in ``configs/sweeps`` such as ``offline``.
        more_data: data sets to add to the file's; paths are relative to the working directory.

    Raises:
        UserError: the file cannot be read, or a setting is unknown or wrong; the line names it.
    """
    path = Path(path).expanduser()
    packaged = configs_folder() / "sweeps" / f"{path}.yaml"
    if not path.exists() and not path.suffix and packaged.is_file():
        path = packaged
    settings = read_mapping(path, "`setting: value` lines, as in configs/sweeps")
    added = [_locate(name, Path(), "--data") for name in more_data]
    try:
        located = {}
        for key in ("datasets", "also_test"):
            names = settings.get(key, [])
            if not isinstance(names, list):
                raise UserError(f"{key}: give a list, as [{names}]")
            located[key] = [_locate(str(name), path.parent, f"{key}:") for name in names]
        located["datasets"] += added
        return SweepConfig.model_validate(settings | located)
    except ValidationError as error:
        is_top_level = len(error.errors()[0]["loc"]) == 1
        known = ["model", "pretrained", *SweepConfig.model_fields] if is_top_level else []
        raise UserError(f"{path}: {one_line(error, known)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _locate(name: str, base: Path, where: str) -> str:
    """Return the name of a data set, or its absolute path.

    Args:
        name: a name, or a path relative to ``base``.
        base: a folder.
        where: the setting or option that has the name, for messages.
    """
    path = base / Path(name).expanduser()
    if path.exists() or is_pattern(path):
        return str(path.resolve())
    if name not in DATASETS and name not in packaged_specs():
        raise UserError(
            f"{where} {name}: neither a path from {base.resolve()} nor a name that "
            f"`clip-randlora datasets` lists"
        )
    return name


def _parse_all_shots(value: Any, where: str) -> list[int | str | None]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: give a list, as [{value}]")
    try:
        return ["all" if entry == "all" else parse_shots(entry) for entry in value]
    except ValueError as error:
        raise UserError(f"{where}: {value}; {error}") from None


def _file_name_of(shots: int | str) -> str:
    share = str(shots).removesuffix("%")
    return f"{share}-shots" if share == str(shots) else f"{share}-percent"


def _data_label(data: str) -> str:
    path = Path(data)
    if path.suffix in SPEC_SUFFIXES and path.is_file():
        return read_dataset_spec(path).name
    if not path.is_absolute():
        return data
    return path.name if path.is_dir() else path.stem


def _refuse_grid_settings(field: str, training: Mapping[str, Any]) -> None:
    for key in _GRID:
        if key in training:
            raise UserError(f"{field}: {key}: not here; use methods, shots and seeds")
