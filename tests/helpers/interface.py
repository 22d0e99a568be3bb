"""What users call: names, signatures, commands, settings and endpoints, as plain lists."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import typer
from pydantic import BaseModel

Parameters = dict[str, str]
"""For each parameter its kind, and its default if it has one."""

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "any",
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "**",
}
_PLAIN = (bool, int, float, str, type(None))


def parameters(function: Any) -> Parameters:
    """The parameters of a function in their order."""
    return {
        name: _KINDS[parameter.kind] + _default(parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return f" = {value!r}" if isinstance(value, _PLAIN) else " = ..."


def public_names(package: Any) -> dict[str, Any]:
    """For each public name its parameters, or its attributes and the parameters of its methods."""
    return {name: _describe(getattr(package, name)) for name in sorted(package.__all__)}


def _describe(value: Any) -> Any:
    if isinstance(value, type):
        return _members(value)
    if callable(value):
        return parameters(value)
    return sorted(value) if isinstance(value, Mapping) else type(value).__name__


def _members(of: type) -> dict[str, Parameters | None]:
    """A class's public attributes (None) and methods, without those of pydantic and exceptions."""
    known = dir(BaseModel) if issubclass(of, BaseModel) else dir(Exception)
    if issubclass(of, BaseModel):
        fields = list(of.model_fields)
    else:
        fields = [name for base in of.__mro__ for name in getattr(base, "__annotations__", ())]
        if not is_dataclass(of) and inspect.isfunction(of.__init__):
            fields += re.findall(r"\bself\.([a-z]\w*)", inspect.getsource(of.__init__))
    members: dict[str, Parameters | None] = {
        name: None for name in fields if not name.startswith("_")
    }
    if not issubclass(of, BaseModel | Exception):
        members["__init__"] = parameters(of)
    for name in dir(of):
        if name.startswith("_") or name in known or name in members:
            continue
        member = inspect.getattr_static(of, name)
        member = getattr(member, "__func__", member)
        members[name] = parameters(member) if inspect.isfunction(member) else None
    return dict(sorted(members.items()))


def commands(app: typer.Typer) -> dict[str, dict[str, str]]:
    """For each command its arguments and options, with what they take and their defaults."""
    return {str(command.name): _options(command.callback) for command in app.registered_commands}


def _options(function: Any) -> dict[str, str]:
    found, hints = {}, get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        takes, info = get_args(hints[name])[:2]
        words = getattr(info, "param_decls", None) or ["--" + name.replace("_", "-")]
        label = "/".join(words) if isinstance(info, typer.models.OptionInfo) else name
        found[label] = (
            f"{takes.__name__ if isinstance(takes, type) else takes}{_default(parameter.default)}"
        )
    return found


def settings(models: Mapping[str, type[BaseModel]]) -> dict[str, dict[str, str]]:
    """For each kind of settings its fields and their defaults."""
    return {
        name: {
            key: "required" if field.is_required() else _default(field.default).removeprefix(" = ")
            for key, field in sorted(model.model_fields.items())
        }
        for name, model in sorted(models.items())
    }


def endpoints(blocks: Any) -> dict[str, list[str]]:
    """For each named endpoint of a Gradio page its parameters."""
    return {
        name: [parameter["parameter_name"] for parameter in entry["parameters"]]
        for name, entry in sorted(blocks.get_api_info()["named_endpoints"].items())
    }
