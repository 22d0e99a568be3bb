"""What a sweep runs: its YAML file, and the cells that it unfolds into."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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
from clip_randlora.adapters.methods import Method, parse_method
from clip_randlora.clip.models import DEFAULT_TAG
from clip_randlora.data.dataset_spec import SUFFIXES, packaged_specs, read_dataset_spec
from clip_randlora.data.registry import DATASETS
from clip_randlora.errors import UserError
from clip_randlora.training.config import TrainConfig
from clip_randlora.utils.paths import configs_folder
from clip_randlora.utils.yaml_files import read_mapping

ZERO_SHOT = "zero_shot"
_OF_THE_GRID = ("method", "shots", "seed")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Settings):
    """A model of a sweep.

    Attributes:
        name: as `load_model` takes it.
        pretrained: a tag or file, None or ``none`` for random weights; by default the model's
            default tag.
        label: what tables call it; by default its name.
    """

    name: str
    pretrained: str | None = DEFAULT_TAG
    label: str = ""

    @field_validator("pretrained")
    @classmethod
    def _random_weights(cls, value: str | None) -> str | None:
        return None if value == "none" else value


class MethodEntry(_Settings):
    """A method of a sweep.

    Attributes:
        settings: the method's own.
        label: what tables call it; by default the method's name.
        training: settings of `TrainConfig` that only this method gets.
    """

    settings: Method
    label: str
    training: dict[str, Any] = Field(default_factory=dict)

    @field_serializer("settings")
    def _dump_settings(self, settings: BaseModel) -> dict[str, Any]:
        return settings.model_dump(mode="json")


class Resources(_Settings):
    """What one cell takes of a Ray cluster.

    Attributes:
        cpus: CPU cores, and threads.
        gpus: GPUs; a fraction lets several cells share one.
    """

    cpus: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)


class Cell(_Settings):
    """One training of a sweep.

    Attributes:
        model: what is tuned.
        data: a data set's name, or the absolute path of one.
        data_label: what tables call it.
        method: how.
        shots: images per class, ``all``, or None for zero-shot, which has no shots and no seed.
        seed: of the training.
        training: settings of `TrainConfig`, less method, shots and seed.
    """

    model: ModelEntry
    data: str
    data_label: str
    method: MethodEntry
    shots: int | Literal["all"] | None
    seed: int | None
    training: dict[str, Any]

    @property
    def id(self) -> str:
        """The name of its run folder."""
        parts = [self.model.label, self.data_label, self.method.label]
        if self.shots is not None:
            parts += [f"{self.shots}-shots", f"seed-{self.seed}"]
        return "--".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)

    def train_config(self) -> TrainConfig:
        """Return the settings of its training.

        Raises:
            UserError: one is unknown or wrong.
        """
        grid: dict[str, Any] = {"method": self.method.settings}
        if self.shots is not None:
            grid |= {"shots": None if self.shots == "all" else self.shots, "seed": self.seed}
        return TrainConfig.parse(self.training | grid)


class SweepConfig(_Settings):
    """A sweep: every data set x model x method x shots x seed is a cell.

    Attributes:
        datasets: names, folders, zips or YAML files, as `load_data` takes them; paths are looked
            for from the sweep's file.
        models: names, or mappings with ``name``, ``pretrained`` and ``label``. ``model`` and
            ``pretrained`` are short for a single one.
        methods: names, or mappings with ``method``, its settings, and optionally a ``label`` and
            settings of the ``training`` for this method alone.
        shots: images per class, or ``all``.
        seeds: of the trainings, and so of the methods' random start and bases, but for those
            methods whose settings have a ``seed``.
        training: settings of `TrainConfig` for every cell.
        resources: what a cell takes of a Ray cluster.
    """

    datasets: tuple[str, ...] = Field(min_length=1)
    models: tuple[ModelEntry, ...] = (ModelEntry(name="lite0", label="lite0"),)
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    shots: tuple[int | Literal["all"], ...] = (16,)
    seeds: tuple[int, ...] = (1,)
    training: dict[str, Any] = Field(default_factory=dict)
    resources: Resources = Resources()

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

    @field_validator("models", mode="before")
    @classmethod
    def _name_models(cls, value: Any) -> Any:
        return [_labelled(entry, "name") for entry in _listed(value, "models")]

    @field_validator("methods", mode="before")
    @classmethod
    def _name_methods(cls, value: Any) -> Any:
        return [_method_entry(entry) for entry in _listed(value, "methods")]

    @field_validator("training")
    @classmethod
    def _check_training(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _check_not_of_the_grid("training", value)

    @field_validator("shots")
    @classmethod
    def _check_shots(cls, value: tuple[int | str, ...]) -> tuple[int | str, ...]:
        for shots in value:
            if shots != "all" and shots < 1:
                raise UserError(f"shots: {shots}; give numbers of images per class, or all")
        return value

    @model_validator(mode="after")
    def _check_every_cell(self) -> SweepConfig:
        seen: dict[str, Cell] = {}
        for cell in self.cells():
            if cell.id in seen:
                raise UserError(
                    f"two cells would be called {cell.id}; take out what is listed twice, or give "
                    f"the methods, models or data sets different labels or names"
                )
            seen[cell.id] = cell
            cell.train_config()
        return self

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, those of one model and data set together."""
        for model in self.models:
            for data in self.datasets:
                label = _data_label(data)
                for method in self.methods:
                    training = self.training | method.training
                    for shots, seed in self._grid(method):
                        yield Cell(
                            model=model,
                            data=data,
                            data_label=label,
                            method=method,
                            shots=shots,
                            seed=seed,
                            training=training,
                        )

    def _grid(self, method: MethodEntry) -> Sequence[tuple[int | str | None, int | None]]:
        if method.settings.method == ZERO_SHOT:
            return [(None, None)]
        return [(shots, seed) for shots in self.shots for seed in self.seeds]


def read_sweep(path: str | Path, more_data: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep's YAML file.

    Args:
        path: of the file, or the name of one of ``configs/sweeps`` (``offline``, say).
        more_data: data sets beside the file's own; paths from the working directory.

    Raises:
        UserError: it cannot be read, or a setting is unknown or wrong; the line names it.
    """
    path = Path(path).expanduser()
    packaged = configs_folder() / "sweeps" / f"{path}.yaml"
    if not path.exists() and not path.suffix and packaged.is_file():
        path = packaged
    settings = read_mapping(path, "`setting: value` lines, as in configs/sweeps")
    added = [_locate(name, Path(), "--data") for name in more_data]
    try:
        names = _listed(settings.get("datasets", []), "datasets")
        located = [_locate(str(name), path.parent, "datasets:") for name in names]
        settings["datasets"] = [*located, *added]
        return SweepConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{path}: {_complaint(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _locate(name: str, base: Path, where: str) -> str:
    """Return a data set's name, or the absolute path of one; ``where`` it was asked for."""
    path = base / Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    if name not in DATASETS and name not in packaged_specs():
        raise UserError(
            f"{where} {name}: neither a path from {base.resolve()} nor a name that "
            f"`clip-randlora datasets` lists"
        )
    return name


def _data_label(data: str) -> str:
    path = Path(data)
    if path.suffix in SUFFIXES and path.is_file():
        return read_dataset_spec(path).name
    if not path.is_absolute():
        return data
    return path.name if path.is_dir() else path.stem


def _listed(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{field}: give a list, as [{value}]")
    return list(value)


def _labelled(entry: Any, name: str) -> Any:
    """Spell a name out as a mapping, and label what has no label by its name."""
    if isinstance(entry, BaseModel):
        return entry
    mapping = {name: entry} if isinstance(entry, str) else entry
    if isinstance(mapping, Mapping) and name in mapping:
        return {"label": str(mapping[name]), **mapping}
    raise UserError(f"{name}s: give a name or a mapping with {name}, not {entry}")


def _method_entry(entry: Any) -> MethodEntry:
    if isinstance(entry, MethodEntry):
        return entry
    if isinstance(entry, Mapping) and "settings" in entry:  # as a sweep's record spells it
        return MethodEntry(**entry)
    mapping = _labelled(entry, "method")
    own = {key: value for key, value in mapping.items() if key not in ("label", "training")}
    training = mapping.get("training") or {}
    if not isinstance(training, Mapping):
        raise UserError(f"methods: training: give `setting: value` lines, not {training}")
    return MethodEntry(
        settings=parse_method(own),
        label=str(mapping["label"]),
        training=_check_not_of_the_grid("methods: training", dict(training)),
    )


def _check_not_of_the_grid(field: str, training: dict[str, Any]) -> dict[str, Any]:
    for key in _OF_THE_GRID:
        if key in training:
            raise UserError(f"{field}: {key}: not here; use methods, shots and seeds")
    return training


def _complaint(error: ValidationError) -> str:
    """Return the first complaint, and the settings that there are where one is unknown."""
    is_of_the_file = len(error.errors()[0]["loc"]) == 1
    return one_line(
        error, ["model", "pretrained", *SweepConfig.model_fields] if is_of_the_file else ()
    )
