"""Base-to-novel and transfer in the report, with numbers that are checked by hand."""

import csv
from pathlib import Path

import pytest
from helpers.sweeps import plant

from clip_randlora.report import write_report

GRID = {"methods": ["zero_shot", "lora"], "shots": [4], "seeds": [1, 2]}


def accuracies(**by_data: dict[str, tuple]) -> tuple[dict, dict]:
    """Numbers of cells from ``{data set: {test: (zero-shot, LoRA of seed 1, LoRA of seed 2)}}``."""
    numbers, further = {}, {}
    for data, tests in by_data.items():
        cells = ["zero_shot", *(f"lora--4-shots--seed-{seed}" for seed in (1, 2))]
        for place, cell in enumerate(cells):
            own, *others = ((name, row[place]) for name, row in tests.items())
            numbers[f"lite0--{data}--{cell}"] = (own[1], 0.5, 1000, 1.0)
            further[f"lite0--{data}--{cell}"] = dict(others)
    return numbers, further


def table(lines: list[str], title: str) -> list[str]:
    start = lines.index(f"### lite0: {title}") + 2
    return lines[start : lines.index("", start)]


def rows(out: Path) -> dict[tuple[str, str, str], float]:
    with open(out / "transfer.csv", newline="") as file:
        return {
            (row["data"], row["method"], row["tested_on"]): float(row["top1_mean"] or "nan")
            for row in csv.DictReader(file)
        }


def test_harmonic_means_by_hand(tmp_path):
    numbers, further = accuracies(
        clipart={"base": (0.6, 0.9, 0.9), "novel": (0.3, 0.5, 0.4)},
        digits={"base": (0.2, 0.7, 0.7), "novel": (0.1, 0.15, 0.15)},
    )
    out = plant(tmp_path / "out", numbers, further=further, classes="base", **GRID)
    lines = write_report(out).read_text().splitlines()
    head = ["| method | shots | base | novel | harmonic mean |", "| --- | --- | --- | --- | --- |"]
    assert table(lines, "clipart") == [
        *head,
        "| zero_shot |  | 60.0 | 30.0 | 40.0 |",  # 2 * 60 * 30 / 90
        "| lora | 4 | 90.0 ± 0.0 | 45.0 ± 7.1 | 60.0 |",  # 2 * 90 * 45 / 135
    ]
    # of the averages: base 80, novel 30: 2 * 80 * 30 / 110 = 43.6, not the mean of 60.0 and 24.7
    assert table(lines, "average over the data sets") == [
        *head,
        "| zero_shot |  | 40.0 | 20.0 | 26.7 |",
        "| lora | 4 | 80.0 | 30.0 | 43.6 |",
    ]
    assert rows(out)["average", "lora", "harmonic mean"] == pytest.approx(4.8 / 11)
    assert "## Other data sets" not in lines


def test_a_column_for_each_data_set_and_their_average(tmp_path):
    tests = {"imagenet": (0.6, 0.7, 0.7), "dtd": (0.4, 0.5, 0.4), "eurosat": (0.4, 0.6, 0.7)}
    numbers, further = accuracies(imagenet=tests)
    out = plant(
        tmp_path / "out", numbers, ["imagenet"], further, also_test=["dtd", "eurosat"], **GRID
    )
    lines = write_report(out).read_text().splitlines()
    assert table(lines, "trained on imagenet") == [
        "| method | shots | imagenet | dtd | eurosat | average |",
        "| --- | --- | --- | --- | --- | --- |",
        "| zero_shot |  | 60.0 | 40.0 | 40.0 | 40.0 |",
        "| lora | 4 | 70.0 ± 0.0 | 45.0 ± 7.1 | 65.0 ± 7.1 | 55.0 |",  # without imagenet
    ]
    assert rows(out)["imagenet", "lora", "average"] == pytest.approx(0.55)
    assert "## Base and novel classes" not in lines


def test_what_is_missing_is_said_and_not_averaged(tmp_path):
    numbers, further = accuracies(
        clipart={"base": (0.6, 0.9, 0.9), "novel": (0.3, 0.5, 0.4)},
        digits={"base": (0.2, 0.7, 0.7), "novel": (0.1, 0.15, 0.15)},
    )
    del numbers["lite0--digits--lora--4-shots--seed-2"], numbers["lite0--clipart--zero_shot"]
    out = plant(tmp_path / "out", numbers, further=further, classes="base", **GRID)
    lines = write_report(out).read_text().splitlines()
    assert "| lora | 4 | 70.0 (1 of 2) | 15.0 (1 of 2) | 24.7 (2 of 4) |" in table(lines, "digits")
    assert table(lines, "average over the data sets")[2:] == [
        "| zero_shot |  | missing | missing | missing |",
        "| lora | 4 | missing | missing | missing |",
    ]


def test_a_sweep_without_such_tests_has_no_such_tables(tmp_path):
    out = plant(tmp_path / "out", {"lite0--clipart--zero_shot": (0.5, 0.5, 0, 0.0)}, **GRID)
    text = write_report(out).read_text()
    assert "novel" not in text and not (out / "transfer.csv").exists()
