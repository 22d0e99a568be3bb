"""What the cards of a run say in its folder and on the hub alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clip_randlora.utils.wording import shots_in_words


def results(metrics: Mapping[str, Any]) -> str:
    """Return a table of the results, and how they were measured."""
    zero_shot, tuned = metrics["zero_shot"], metrics["tuned"]
    return f"""| | top-1 | expected calibration error |
|---|---|---|
| zero-shot | {zero_shot["top1"]:.1%} | {zero_shot["ece"]:.3f} |
| tuned | {tuned["top1"]:.1%} | {tuned["ece"]:.3f} |

Measured on {metrics["images"]["test"]} test images; trained on {metrics["images"]["train"]}
({shots_in_words(metrics["shots"])}, seed {metrics["seed"]}) with {metrics["method"]}:
{metrics["trainable_parameters"]:,} trainable parameters, {metrics["steps"]} steps,
{metrics["train_seconds"]:.0f} s on {metrics["device"]}."""


def results_per_class(metrics: Mapping[str, Any]) -> str:
    """Return a table of the results for each class."""
    rows = (
        f"| {name} | {row['images']} | {row['zero_shot']:.1%} | {row['tuned']:.1%} |"
        for name, row in metrics["per_class"].items()
    )
    return "\n".join(["| class | test images | zero-shot | tuned |", "|---|---|---|---|", *rows])


def bullets(lines: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {line}" for line in lines)
