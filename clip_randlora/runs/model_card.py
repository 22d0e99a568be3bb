"""A run's model card, ``README.md``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_randlora.clip.prompts import list_prompts, recorded_prompts
from clip_randlora.data import summarize_skipped
from clip_randlora.runs.run import Run
from clip_randlora.utils.wording import shots_in_words


def model_card(run: Run, folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the Markdown: results, remarks, prompts, and how to load the run.

    Args:
        run: the finished run.
        folder: its folder, with the figures that could be drawn.
        settings: what ``config.yaml`` records.
    """
    metrics = run.metrics
    zero_shot, tuned = metrics["zero_shot"], metrics["tuned"]
    per_class = "\n".join(
        f"| {name} | {row['images']} | {row['zero_shot']:.1%} | {row['tuned']:.1%} |"
        for name, row in metrics["per_class"].items()
    )
    remarks = [*run.notes, *([summarize_skipped(run.skipped)] if run.skipped else [])]
    prompts = recorded_prompts(settings["classes"], settings["templates"], settings["prompts"])
    examples = "![examples](examples.png)\n\n" if (folder / "examples.png").exists() else ""
    return f"""# {metrics["model"]} tuned on {settings["data"]["data"]}

{examples}| | top-1 | expected calibration error |
|---|---|---|
| zero-shot | {zero_shot["top1"]:.1%} | {zero_shot["ece"]:.3f} |
| tuned | {tuned["top1"]:.1%} | {tuned["ece"]:.3f} |

Measured on {metrics["images"]["test"]} test images; trained on {metrics["images"]["train"]}
({shots_in_words(metrics["shots"])}, seed {metrics["seed"]}) with {metrics["method"]}:
{metrics["trainable_parameters"]:,} trainable parameters, {metrics["steps"]} steps,
{metrics["train_seconds"]:.0f} s on {metrics["device"]}.

| class | test images | zero-shot | tuned |
|---|---|---|---|
{per_class}

{_list(remarks)}

## Prompts

{_list(list_prompts(prompts, most=3))}

## Use it

```python
import clip_randlora as cr

classifier = cr.Classifier.load("{folder.name}")
classifier.predict(["image.jpg"])
```

Base model: {metrics["model"]}, weights: {metrics["pretrained"]}; its licence applies.
`config.yaml` has every setting and prompt.
"""


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
