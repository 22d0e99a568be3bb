"""The hub's rules for the metadata of a model card, as its documentation states them.

Written from hub-docs: ``modelcard.md`` (the specification), ``docs/hub/model-cards.md``,
``docs/hub/repositories-licenses.md``, ``docs/hub/models-widgets.md``. Stricter than the hub in one
thing: a field that is not documented is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

LICENCES = re.findall(
    r"\S+",
    """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0
isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr unknown other
""",
)
TASKS = ("image-classification", "zero-shot-image-classification", "image-feature-extraction")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_URL = re.compile(r"https://[\w.-]+/\S+")
_TEXTS = ("library_name", "license", "license_name", "license_link", "pipeline_tag")
_LISTS = ("tags", "datasets", "metrics")
_FIELDS = {*_TEXTS, *_LISTS, "base_model", "base_model_relation", "widget", "model-index"}
_RESULT = {
    "task": ({"type"}, {"name"}),
    "dataset": ({"type", "name"}, {"config", "split", "revision", "args"}),
}
_METRIC = ({"type", "value"}, {"name", "config", "args", "verified"})


def problems(card: str) -> list[str]:
    """Return what the hub would refuse of a README.md."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.S)
    if found is None:
        return ["no metadata between two lines of --- at the top"]
    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(fields, dict):
        return ["the metadata is not a mapping"]
    return list(_problems(fields))


def _problems(fields: dict[str, Any]) -> Iterator[str]:
    for name in fields.keys() - _FIELDS:
        yield f'"{name}" is not documented'
    for name in _TEXTS:
        if name in fields and not (isinstance(fields[name], str) and fields[name]):
            yield f'"{name}" must be a string'
    for name in _LISTS:
        value = fields.get(name, ["a"])
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            yield f'"{name}" must be a list of strings'
        elif name == "datasets" and name in fields and not all(map(_ID.fullmatch, value)):
            yield f'"datasets" must be ids of the hub, not {value}'
    yield from _licence(fields)
    base = fields.get("base_model", "a/b")
    for name in base if isinstance(base, list) else [base]:
        if not (isinstance(name, str) and _ID.fullmatch(name)):
            yield f'"base_model" must be an id of the hub, not {name!r}'
    if fields.get("base_model_relation", "adapter") not in RELATIONS:
        yield f'"base_model_relation" must be one of {RELATIONS}'
    if "base_model_relation" in fields and "base_model" not in fields:
        yield '"base_model_relation" needs "base_model"'
    if fields.get("pipeline_tag", TASKS[0]) not in TASKS:
        yield f'"pipeline_tag" must be one of {TASKS}'
    for example in fields.get("widget", []):
        yield from _widget(example)
    if "model-index" in fields:
        yield from _model_index(fields["model-index"])


def _licence(fields: dict[str, Any]) -> Iterator[str]:
    if fields.get("license") not in LICENCES:
        yield f'"license" must be one of the hub\'s identifiers, not {fields.get("license")!r}'
    is_other = fields.get("license") == "other"
    if is_other != ("license_name" in fields):
        yield '"license_name" goes with "license: other"'
    if is_other and not re.fullmatch(r"[a-z0-9.-]+", str(fields.get("license_name"))):
        yield '"license_name" must be of small letters, digits, "-" and "."'
    link = fields.get("license_link")
    if is_other and link not in ("LICENSE", "LICENSE.md") and not _URL.fullmatch(str(link)):
        yield '"license_link" must be a URL or LICENSE'


def _widget(example: Any) -> Iterator[str]:
    if not isinstance(example, dict) or example.keys() - {
        "src",
        "candidate_labels",
        "example_title",
    }:
        yield '"widget" must be a list of src, candidate_labels and example_title'
        return
    if not _URL.fullmatch(str(example.get("src"))):
        yield '"widget" needs an image as src'
    labels = example.get("candidate_labels")
    if not isinstance(labels, str) or not all(label.strip() for label in labels.split(",")):
        yield '"candidate_labels" must be a string of names with commas between'


def _model_index(index: Any) -> Iterator[str]:
    if not isinstance(index, list) or not index:
        yield '"model-index" must be a list'
        return
    for model in index:
        if not isinstance(model.get("name"), str) or not model["name"]:
            yield '"model-index[].name" is required'
        if not isinstance(model.get("results"), list) or model.keys() - {"name", "results"}:
            yield '"model-index[].results" must be a list'
            continue
        for result in model["results"]:
            for part, (required, optional) in _RESULT.items():
                yield from _check_keys(f"results[].{part}", result.get(part), required, optional)
            for metric in result.get("metrics") or [None]:
                yield from _check_keys("results[].metrics[]", metric, *_METRIC)
                if metric and not isinstance(metric.get("value"), float | int):
                    yield '"results[].metrics[].value" must be a number'


def _check_keys(what: str, got: Any, required: set[str], optional: set[str]) -> Iterator[str]:
    if not isinstance(got, dict):
        yield f'"{what}" is required'
        return
    for name in required - got.keys():
        yield f'"{what}.{name}" is required'
    for name in got.keys() - required - optional:
        yield f'"{what}.{name}" is not documented'
    for name in required & got.keys() - {"value"}:
        if not isinstance(got[name], str) or not got[name]:
            yield f'"{what}.{name}" must be a string'
