"""Folders of sweeps with numbers of our own in place of trainings."""

import json
from pathlib import Path

from clip_randlora.sweep import SweepConfig, SweepFolder


def plant(
    out: Path,
    numbers: dict[str, tuple[float, float, int, float]],
    datasets=("clipart", "digits"),
    further: dict[str, dict[str, float]] | None = None,
    **grid,
) -> Path:
    """Make a sweep's folder of cells with these numbers: tuned, zero-shot, trained, seconds.

    ``further`` has the accuracies of a cell's further tests by the cell's id and their names.
    """
    config = SweepConfig(datasets=datasets, **grid)
    folder = SweepFolder(out)
    with folder.lock():
        for cell in folder.begin(list(config.cells()), config.reference):
            if cell.id not in numbers:
                continue
            tuned, zero_shot, parameters, seconds = numbers[cell.id]
            folder.running(cell).mkdir(parents=True)
            metrics = {
                "tuned": {"top1": tuned},
                "zero_shot": {"top1": zero_shot},
                "per_class": {},
                "trainable_parameters": parameters,
                "train_seconds": seconds,
            }
            others = (further or {}).get(cell.id, {})
            metrics["also_test"] = {name: {"tuned": {"top1": x}} for name, x in others.items()}
            (folder.running(cell) / "metrics.json").write_text(json.dumps(metrics))
            folder.finish(cell, seconds)
    return out


def plant_accuracies(out: Path, accuracies: dict[str, float], **grid) -> Path:
    """Make a sweep's folder of cells with these accuracies, by the id of the cell."""
    return plant(out, {name: (top1, 0.5, 1000, 1.0) for name, top1 in accuracies.items()}, **grid)
