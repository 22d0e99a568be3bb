"""A run's model card, ``README.md``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_randlora.clip.prompts import list_prompts, recorded_prompts
from clip_randlora.data import summarize_skipped
from clip_randlora.runs.card_text import bullets, results, results_per_class
from clip_randlora.runs.run import Run


def model_card(run: Run, folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the Markdown: results, remarks, prompts, and how to load the run.

    Args:
        run: the finished run.
        folder: its folder, with the figures that could be drawn.
        settings: what ``config.yaml`` records.
    """
    metrics = run.metrics
    remarks = [*run.notes, *([summarize_skipped(run.skipped)] if run.skipped else [])]
    prompts = recorded_prompts(settings["classes"], settings["templates"], settings["prompts"])
    examples = "![examples](examples.png)\n\n" if (folder / "examples.png").exists() else ""
    return f"""# {metrics["model"]} tuned on {settings["data"]["data"]}

{examples}{results(metrics)}

{results_per_class(metrics)}

{bullets(remarks)}

## Prompts

{bullets(list_prompts(prompts, most=3))}

## Use it

```python
import clip_randlora as cr

classifier = cr.Classifier.load("{folder.name}")
classifier.predict(["image.jpg"])
```

Base model: {metrics["model"]}, weights: {metrics["pretrained"]}; its licence applies.
`config.yaml` has every setting and prompt.
"""
