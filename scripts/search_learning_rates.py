"""Search the default learning rate of every method, with equal effort for each.

    python scripts/search_learning_rates.py --out rates.json

Every method gets the same number of rates, around its present default, on the same data and seeds.
Only training images are used: some of each class to train on, and others to validate. The results
are written after every run, and the same command goes on where it was stopped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

import clip_randlora as cr
from clip_randlora.adapters import HeadConfig
from clip_randlora.data import Split
from clip_randlora.data.sampling import draw_shots
from clip_randlora.training.config import default_learning_rate
from clip_randlora.utils.outputs import write_json

_METHODS = [
    name
    for name, config in cr.METHODS.items()
    if name != "zero_shot" and not issubclass(config, HeadConfig)
]
_MOST_VALIDATED = 20  # images of each class


def main(
    out: Annotated[Path, typer.Option(help="JSON of all runs; goes on if it is there.")],
    data: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Default: clipart and digits.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated. Default: {', '.join(_METHODS)}.")
    ] = None,
    rates: Annotated[int, typer.Option(min=1, help="Learning rates for each method.")] = 5,
    centre: Annotated[
        float | None, typer.Option(help="The middle rate. Default: the method's default rate.")
    ] = None,
    step: Annotated[float, typer.Option(min=1.01, help="Factor between two rates.")] = 10**0.5,
    beta2: Annotated[
        float | None, typer.Option(help="AdamW's. Default: the method's default.")
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Images per class to train on.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1 to this number.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. Default: by images.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="And alpha. Default: those of the method.")
    ] = None,
    model: Annotated[str, typer.Option(help="As for `clip-randlora train`.")] = "lite0",
) -> None:
    """Run what is missing, and print a table and where the results are."""
    settings = {"model": model, "shots": shots, "steps": steps, "rank": rank}
    if beta2 is not None:
        settings["beta2"] = beta2
    results = _read(out, settings)
    sources = {source: cr.load_data(source) for source in data or ("clipart", "digits")}
    for name in method or _METHODS:
        if name not in _METHODS:
            raise typer.BadParameter(f"{name}: choose of {', '.join(_METHODS)}")
        middle = centre or default_learning_rate(model, name, 16)
        for rate in (middle * step ** (i - (rates - 1) / 2) for i in range(rates)):
            for source, labelled in sources.items():
                for seed in range(1, seeds + 1):
                    key = {"method": name, "rate": float(f"{rate:.3g}"), "data": source}
                    key["seed"] = seed
                    if not any(key.items() <= done.items() for done in results):
                        results.append(key | run(labelled, key, settings))
                        write_json(out, {"settings": settings, "runs": results})
    print(table(results))
    print(f"\nWritten to {out}")


def run(data: cr.Data, key: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; return the accuracy on the validation images.

    The rate is the one for 16 shots, scaled for fewer as `default_learning_rate` scales it.
    """
    shots, rank = settings["shots"], settings["rank"]
    config = cr.TrainConfig.parse(
        {
            "method": {"method": key["method"], **({"rank": rank, "alpha": rank} if rank else {})},
            "learning_rate": key["rate"] * min(1.0, shots / 16) ** 0.5,
            "seed": key["seed"],
            "shots": shots,
            "steps": settings["steps"],
            "beta2": settings.get("beta2"),
        }
    )
    split = validation_split(data, shots, key["seed"])
    try:
        metrics = cr.fit(cr.load_model(settings["model"]), split, config).metrics
    except cr.UserError as error:  # the rate is too high, and the loss NaN or infinite
        return {"failed": str(error)}
    return {
        "top1": metrics["tuned"]["top1"],
        "zero_shot": metrics["zero_shot"]["top1"],
        "train_seconds": metrics["train_seconds"],
    }


def validation_split(data: cr.Data, shots: int, seed: int) -> cr.Data:
    """Split the training images: ``shots`` of each class to train on, up to 20 others to test on.

    Raises:
        UserError: a class has no image left to test on.
    """
    order = draw_shots(data.train, None, seed)
    if min(map(len, order.values())) <= shots:
        raise cr.UserError(f"{data.name}: has no class with more than {shots} training images left")
    train, test = (
        Split(tuple(item for items in order.values() for item in items[part]), data.classes)
        for part in (slice(shots), slice(shots, shots + _MOST_VALIDATED))
    )
    return cr.Data(
        data.name, data.classes, train, test, templates=data.templates, prompts=data.prompts
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: for each method and rate the mean accuracy over data and seeds."""
    lines = [
        "| method | learning rate | validation top-1 | runs | failed |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["method"] for row in results):
        of_method = [row for row in results if row["method"] == name]
        found = {}
        for rate in sorted({row["rate"] for row in of_method}):
            rows = [row for row in of_method if row["rate"] == rate]
            # a run that diverged counts as 0
            found[rate] = (mean(row.get("top1", 0.0) for row in rows), rows)
        best = max(found, key=lambda rate: found[rate][0])
        for rate, (top1, rows) in found.items():
            mark = "**" if rate == best else ""
            failed = sum("failed" in row for row in rows)
            lines.append(f"| {name} | {mark}{rate:g}{mark} | {top1:.1%} | {len(rows)} | {failed} |")
    return "\n".join(lines)


def _read(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    stored = json.loads(out.read_text(encoding="utf-8"))
    if stored["settings"] != settings:
        raise typer.BadParameter(
            f"--out {out}: begun with {stored['settings']}; choose another file"
        )
    return stored["runs"]


if __name__ == "__main__":
    typer.run(main)
