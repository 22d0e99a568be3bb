"""Trainings that go through, are interrupted, and go on."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clip_randlora as cr

STEPS = 100
"""Steps of a training that is killed: about as many seconds as a process takes to start."""


def straight_and_resumed(model_folder: Path, data, config, out: Path) -> tuple[cr.Run, cr.Run]:
    """Train in one go, and again with a Ctrl-C after step 3 and a resumption."""

    def stop(step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    straight = cr.fit(cr.load_model(str(model_folder)), data, config)
    model = cr.load_model(str(model_folder))
    with pytest.raises(cr.Interrupted):
        cr.fit(model, data, config, out=out, on_step=stop)
    return straight, cr.fit(model, data, config, out=out, resume=True)


ADAPTER = "adapter.safetensors"


def arguments(colors: Path, model: Path, out: Path, steps: int = STEPS) -> list:
    return [
        "train", colors, "--model", model, "--steps", steps, "--rank", 4, "--precision", "fp32",
        "--out", out,
    ]  # fmt: skip


def check_same(folder: Path, expected: Path) -> None:
    """Check that a run has the files of another, and its weights bit for bit."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())
    if not (expected / ADAPTER).exists():
        return
    got, weights = load_file(folder / ADAPTER), load_file(expected / ADAPTER)
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[key], weights[key]) for key in weights)


def contents(folder: Path) -> tuple:
    """The inode, the time and the hash of each file of a folder."""
    return tuple(
        (path.name, path.stat().st_ino, path.stat().st_mtime_ns, sha256(path.read_bytes()).digest())
        for path in sorted(folder.iterdir())
    )
