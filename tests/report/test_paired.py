"""Paired differences: pairs, means, intervals and verdicts that a person can check."""

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.sweeps import plant_accuracies
from scipy import stats

from clip_randlora.report import write_report
from clip_randlora.report.paired import bootstrap_interval

SEEDS = (1, 2, 3)


def cells(data: str, method: str, shots: int, *top1: float) -> dict[str, float]:
    """Accuracies of one method at one number of shots: seed 1, seed 2, ..."""
    return {
        f"lite0--{data}--{method}--{shots}-shots--seed-{seed}": value
        for seed, value in enumerate(top1, 1)
    }


def paired(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of ``paired.csv`` by method and shots."""
    write_report(out)
    with open(out / "paired.csv", newline="") as file:
        return {(row["method"], row["shots"]): row for row in csv.DictReader(file)}


def interval(row: dict[str, str]) -> list[float]:
    return [float(row[name]) for name in ("low", "difference", "high")]


def test_a_constant_difference_has_an_interval_without_width(tmp_path):
    numbers = {}
    for data, shots in product(("clipart", "digits"), (1, 4)):
        start = np.array([0.5, 0.6, 0.7])
        numbers |= cells(data, "randlora", shots, *start)
        numbers |= cells(data, "lora", shots, *(start + (0.02 if shots == 4 else 0)))
        numbers |= cells(data, "vera", shots, *(start - 0.01))
    out = plant_accuracies(
        tmp_path / "out", numbers, methods=["lora", "randlora", "vera"], shots=[1, 4], seeds=SEEDS
    )
    rows = paired(out)
    assert {row["reference"] for row in rows.values()} == {"randlora"}
    assert interval(rows["lora", "1"]) == [0, 0, 0]
    assert interval(rows["lora", "4"]) == pytest.approx([2, 2, 2])
    assert interval(rows["vera", "average"]) == pytest.approx([-1, -1, -1])
    assert [rows["lora", shots]["verdict"] for shots in ("1", "4")] == ["no difference", "ahead"]
    assert rows["vera", "1"]["verdict"] == "behind"
    assert (rows["lora", "4"]["pairs"], rows["lora", "average"]["pairs"]) == ("6", "12")
    # over both numbers of shots: half of the differences are 0, half are 2
    low, mean, high = interval(rows["lora", "average"])
    assert mean == pytest.approx(1) and 0 < low < 1 < high < 2
    text = (out / "report.md").read_text()
    assert "### lite0: difference from randlora" in text
    assert "| method | 1 shot | 4 shots | all numbers of shots |" in text
    assert "+0.0 (+0.0 to +0.0) no difference, 6 pairs" in text
    assert "+2.0 (+2.0 to +2.0) **ahead**, 6 pairs" in text
    assert "-1.0 (-1.0 to -1.0) **behind**, 12 pairs" in text


def test_the_interval_is_scipys():
    groups = [np.array([1.0, 2.0, 6.0, 3.0]), np.array([-4.0, 0.0, 1.0])]
    expected = stats.bootstrap(
        groups,
        lambda *samples, axis: np.concatenate(samples, axis=axis).mean(axis=axis),
        n_resamples=200_000,
        batch=20_000,
        method="percentile",
    ).confidence_interval
    assert bootstrap_interval(groups) == pytest.approx(expected, abs=0.06)


def test_pairs_are_resampled_within_each_data_set(tmp_path):
    """Data sets that differ from each other, and not between seeds, give no width."""
    numbers = cells("clipart", "randlora", 4, 0.5, 0.6, 0.7)
    numbers |= cells("clipart", "lora", 4, 0.6, 0.7, 0.8)  # 10 points ahead
    numbers |= cells("digits", "randlora", 4, 0.5, 0.6, 0.7)
    numbers |= cells("digits", "lora", 4, 0.46, 0.56, 0.66)  # 4 points behind
    grid = {"methods": ["randlora", "lora"], "shots": [4], "seeds": SEEDS}
    row = paired(plant_accuracies(tmp_path / "out", numbers, **grid))["lora", "4"]
    assert interval(row) == pytest.approx([3, 3, 3])
    assert row["verdict"] == "ahead"


def test_zero_shot_is_paired_with_every_seed(tmp_path):
    numbers = {"lite0--clipart--zero_shot": 0.5}
    numbers |= cells("clipart", "randlora", 1, 0.5, 0.6, 0.7)
    numbers |= cells("clipart", "randlora", 4, 0.8, 0.8, 0.8)
    grid = {"datasets": ["clipart"], "shots": [1, 4], "seeds": SEEDS}
    methods = ["zero_shot", "randlora"]
    rows = paired(plant_accuracies(tmp_path / "a", numbers, methods=methods, **grid))
    # -0, -10 and -20; each may be drawn three times: with 1/27 > 2.5 %, the ends are theirs
    assert interval(rows["zero_shot", "1"]) == pytest.approx([-20, -10, 0])
    assert interval(rows["zero_shot", "4"]) == pytest.approx([-30, -30, -30])
    assert rows["zero_shot", "average"]["pairs"] == "6"

    named = {"methods": methods, "reference": "zero_shot", **grid}
    rows = paired(plant_accuracies(tmp_path / "b", numbers, **named))
    assert interval(rows["randlora", "1"]) == pytest.approx([0, 10, 20])
    assert rows["randlora", "1"]["verdict"] == "no difference"
    assert rows["randlora", "4"]["verdict"] == "ahead"


def test_too_few_pairs_have_no_interval_and_the_report_says_so(tmp_path):
    numbers = cells("clipart", "lora", 4, 0.5, 0.6, 0.7) | cells("digits", "lora", 4, 0.5)
    numbers |= cells("clipart", "full", 4, 0.6, 0.7) | cells("digits", "full", 4, 0.5)
    numbers |= cells("clipart", "nola", 4, 0.6, 0.8)
    grid = {"methods": ["lora", "full", "nola", "vera"], "shots": [4], "seeds": SEEDS}
    out = plant_accuracies(tmp_path / "out", numbers, **grid)
    rows = paired(out)
    assert {row["reference"] for row in rows.values()} == {"lora"}  # the first that trains
    assert float(rows["full", "4"]["difference"]) == pytest.approx(20 / 3)
    # three pairs, of which digits has one
    assert [rows["full", "4"][name] for name in ("pairs", "low", "high", "verdict")] == [
        "3", "", "", "",
    ]  # fmt: skip
    text = (out / "report.md").read_text().partition("## Paired differences")[2]
    assert "| method | 4 shots |" in text
    assert "| full | +6.7, 3 pairs: too few for an interval |" in text
    assert "| nola | +15.0, 2 pairs: too few for an interval |" in text
    assert "| vera | no pairs |" in text


def test_the_last_reference_that_a_sweep_named_is_kept(tmp_path):
    numbers = cells("clipart", "randlora", 4, 0.5) | cells("clipart", "lora", 4, 0.6)
    grid = {"datasets": ["clipart"], "methods": ["randlora", "lora"], "shots": [4]}
    out = plant_accuracies(tmp_path / "out", numbers, reference="lora", **grid)
    plant_accuracies(out, {}, **grid)  # a start that names none
    assert {row["reference"] for row in paired(out).values()} == {"lora"}
    plant_accuracies(out, {}, reference="randlora", **grid)
    assert {row["reference"] for row in paired(out).values()} == {"randlora"}
