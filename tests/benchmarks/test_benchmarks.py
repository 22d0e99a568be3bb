"""The benchmarks: their arithmetic on numbers made by hand, and every row once on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import clip_randlora as cr
from benchmarks import __main__ as command_line
from benchmarks import blocks, fewshot, infer, scale, step
from benchmarks.common.processes import Row, measure_rounds, run_row
from benchmarks.common.ratios import Ratio
from benchmarks.common.report import markdown_table
from benchmarks.common.results import Results, spread
from benchmarks.common.training_steps import (
    FIT,
    ROWS,
    class_names,
    measure_fit,
    measure_step,
)

TINY_STEP = {"images": 2, "classes": 3, "precision": "fp32", "warmup": 1, "steps": 1}


def step_results(folder: Path, **seconds_and_memory) -> Results:
    """Return results of `step` as its rows would have left them: ``row=([[s, ...], ...], GB)``."""
    results = Results("step", folder, {})
    for name, (rounds, gigabytes) in seconds_and_memory.items():
        name = name.replace("_", "-")
        settings = {"row": name, "precision": "fp32", "images": 32}
        for turn, seconds in enumerate(rounds, 1):
            result = {"seconds": seconds, "peak_memory_bytes": gigabytes * 1e9}
            result |= {"trained": 7, "text_tokens": 10, "device": "cpu"}
            answer = {"result": result}
            results.add(f"{name}, fp32, 32 images", turn, settings, answer)
    return results


def test_ratios_of_the_step_are_those_of_the_medians(tmp_path):
    results = step_results(
        tmp_path,
        randlora=([[2.0, 1.0, 9.0], [3.0, 4.0, 8.0]], 4.0),  # median 3.5
        peft_randlora=([[14.0], [14.0], [100.0]], 10.0),
        clip_lora=([[5.0]], 9.0),
        bound=([[2.5]], 2.0),
        randlora_very_sparse=([[3.5]], 4.0),
    )
    found = step.summarize(results)
    assert found["randlora, fp32, 32 images"]["seconds"] == {
        "median": 3.5,
        "min": 1.0,
        "max": 9.0,
        "count": 6,
    }
    compared = [(line, *ratio.cells()[1:]) for line, ratio in step.compare(found) if line]
    assert compared == [
        ("1", "0.250", "0.25 or less", "met"),  # 3.5 / 14
        ("1", "0.400", "0.35 or less", "not met"),  # 4 / 10
        ("2", "0.700", "0.5 or less", "not met"),  # 3.5 / 5
        ("2", "", "1.35 or less", "not measured"),  # this project's LoRA did not run
        ("3", "1.400", "1.7 or less", "met"),  # 3.5 / 2.5
        ("5", "1.000", "1 or less", "met"),
        ("5", "1.000", "below 1", "not met"),  # less memory is wanted, not as much
    ]


def test_a_case_without_a_target_is_reported_without_a_verdict(tmp_path):
    results = step_results(tmp_path, randlora=([[6.0]], 1), full=([[12.0]], 1))
    (ratio,) = [r for _, r in step.compare(step.summarize(results)) if "full" in r.name]
    assert ratio.cells()[1:] == ["0.500", "", ""]


def test_all_rows_run_at_32_images_and_the_bound_s_also_at_128():
    planned = step.plan(None, None, None)
    large = {name for case, name in planned if case == step.Case("fp32", 128)}
    assert {"randlora", "bound"} <= large < set(step.LABELS)
    for precision in ("fp32", "bf16"):
        here = [name for case, name in planned if case == step.Case(precision, 32)]
        assert here == list(step.LABELS)
    assert not [case for case, _ in planned if case == step.Case("bf16", 128)]


def test_targets_with_a_smallest_value():
    assert Ratio("", 3.1, 3.0, at_least=True).verdict == "met"
    assert Ratio("", 2.9, 3.0, at_least=True).verdict == "not met"
    assert Ratio("", 3.0, 3.0, at_least=True).verdict == "met"
    assert Ratio("", None, 3.0, at_least=True).verdict == "not measured"


def test_last_blocks_and_bare_loops_are_compared_the_right_way_round():
    found = [
        {"name": "last 4 blocks", "seconds": spread([10, 12, 14])},
        {"name": "all blocks", "seconds": spread([30, 42, 50])},
    ]
    assert blocks.compare(found, "last 4 blocks").cells()[1:] == ["3.500", "3 or more", "met"]
    speeds = {"eval": 90, "predict": 80, "tuned": 180, "bare": 150, "bare-workers": 200}
    speeds |= {"bare-both": 100, "bare-both-workers": 60}
    speeds |= {"predict-one": 30, "bare-both-one": 40}
    rows = {name: {"speed": spread([speed])} for name, speed in speeds.items()}
    values = [(line, ratio.value, ratio.is_met) for line, ratio in infer.compare(rows)]
    assert values[:2] == [("8", 0.9, True), ("8", 0.45, False)]
    assert values[2:] == [("", 0.8, None), ("", 0.9, None), ("", 0.75, None)]


def test_means_over_seeds(tmp_path):
    results = Results("fewshot", tmp_path, {})
    for seed, (seconds, tuned) in enumerate(((10, 0.7), (30, 0.8), (20, 0.9)), 1):
        result = {"seconds": seconds, "train_seconds": seconds / 2, "zero_shot": 0.5}
        result |= {"tuned": tuned, "peak_memory_bytes": 1e9, "trained": 3, "blocks": None}
        settings = {"data": "clipart", "method": "randlora", "seed": seed}
        results.add(f"seed {seed}", 1, settings, {"result": result})
    (row,) = fewshot.summarize(results)
    assert row["tuned"]["mean"] == pytest.approx(0.8)
    assert row["tuned"]["deviation"] == pytest.approx(0.1)  # of the sample: sqrt(.02 / 2)
    assert row["seconds"] == {"median": 20, "min": 10, "max": 30, "count": 3}


def test_table_is_markdown():
    assert markdown_table(("row", "s"), [["a|b", "1.5"], ["c", "12.25"]]).splitlines() == [
        "| row |     s |",
        "|-----|-------|",
        "| a/b |   1.5 |",
        "| c   | 12.25 |",
    ]


def test_rounds_are_interleaved_and_go_on_where_they_stopped(tmp_path):
    rows = [Row("a", ""), Row("b", ""), Row("broken", "")]
    ran = []

    def run(row):
        ran.append(row.key)
        if row.key == "broken":
            return {"failed": "no such library"}
        return {"result": {"seconds": [1.0]}}

    results = Results("step", tmp_path, {"classes": 10, "repeats": 2})
    measure_rounds(rows, 2, results, run, str)
    assert ran == ["a", "b", "broken", "a", "b"]  # what failed is not tried again
    assert results.failure("broken") == "no such library"

    ran.clear()
    again = Results("step", tmp_path, {"classes": 10, "repeats": 3}, resume=True)
    measure_rounds(rows, 3, again, run, str)
    assert sorted(ran) == ["a", "b", "broken"]  # but it is when the benchmark goes on
    assert len(again.of("a")) == 3
    with pytest.raises(cr.UserError, match="classes 10, not 20"):
        Results("step", tmp_path, {"classes": 20, "repeats": 3}, resume=True)


WORKLOADS = """
import os, signal

def speak(words):
    print("a library speaks to standard output")
    held = bytearray(200_000_000)
    return {"words": words, "threads_wanted": os.environ["OMP_NUM_THREADS"]}

def break_down():
    raise RuntimeError("the disk is full")

def need():
    import no_such_library

def crash():
    os.write(2, b"starting\\na driver is too old\\n")
    os._exit(3)

def run_out_of_memory():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_row_runs_in_a_process_of_its_own_and_says_why_it_failed(tmp_path, monkeypatch):
    (tmp_path / "workloads.py").write_text(WORKLOADS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    answer = run_row(Row("", "workloads:speak", {"words": "äöü"}), threads=1)["result"]
    assert (answer["words"], answer["threads_wanted"]) == ("äöü", "1")
    assert 200e6 < answer["peak_memory_bytes"] < 300e6  # its own, not this process's
    assert run_row(Row("", "workloads:break_down"), 1) == {"failed": "the disk is full"}
    assert "no_such_library: not installed" in run_row(Row("", "workloads:need"), 1)["failed"]
    hidden = run_row(Row("", "json:loads", hidden=("json",)), 1)["failed"]
    assert "json: not installed" in hidden
    killed = run_row(Row("", "workloads:run_out_of_memory"), 1)["failed"]
    assert "memory runs out" in killed
    crashed = run_row(Row("", "workloads:crash"), 1)
    assert crashed == {"failed": "exit status 3: a driver is too old"}


@pytest.mark.parametrize("row", [name for name in ROWS if not name.startswith(("peft", "clip"))])
def test_own_rows_and_the_bound_take_a_step(row, tiny_folder):
    result = measure_step(row, str(tiny_folder), **TINY_STEP)
    assert len(result["seconds"]) == 1 and len(result["losses"]) == 2
    assert result["text_tokens"] == 9  # the start, "a photo of a", 2 words, ".", the end
    net = cr.load_model(str(tiny_folder)).net
    every = sum(parameter.numel() for parameter in net.parameters())
    adapter = cr.attach(net, cr.LoRA(rank=32))
    expected = {"bound": 0, "bound-tight": 0, "full": every, "lora": adapter.num_parameters()}
    assert result["trained"] == expected.get(row, result["trained"])


@pytest.mark.parametrize("row", [name for name in ROWS if name.startswith(("peft", "clip"))])
def test_rows_of_peers_take_a_step_on_a_model_of_the_same_size(row, tiny_folder):
    result = measure_step(row, str(tiny_folder), **TINY_STEP)
    assert len(result["seconds"]) == 1
    assert result["text_tokens"] == (9 if row.endswith("trimmed") else 77)
    ours = row.removeprefix("peft-").removesuffix("-trimmed")
    if row == "clip-lora":  # r (in + out) of q, k and v, in 3 blocks of width 64 and 3 of 48
        assert result["trained"] == 3 * 3 * 2 * (64 + 64 + 48 + 48)
    else:
        config = cr.TrainConfig.parse({"method": ROWS[ours].settings["config"]}).method
        adapter = cr.attach(cr.load_model(str(tiny_folder)).net, config)
        assert result["trained"] == adapter.num_parameters()


@pytest.mark.parametrize("row", ["randlora", "bound"])
def test_bf16_rows(row, tiny_folder):
    result = measure_step(row, str(tiny_folder), **TINY_STEP | {"precision": "bf16"})
    whole = measure_step(row, str(tiny_folder), **TINY_STEP)
    assert result["losses"][0] == pytest.approx(whole["losses"][0], rel=0.05)
    assert result["losses"][0] != whole["losses"][0]


def test_settings_of_a_row_can_be_changed(tiny_folder):
    folder = str(tiny_folder)
    all_blocks = measure_step("randlora", folder, **TINY_STEP)
    last = measure_step("randlora", folder, **TINY_STEP, changes={"blocks": 1})
    assert last["trained"] * 3 == all_blocks["trained"]


def test_the_row_that_is_fit_itself(tiny_folder):
    result = measure_fit(str(tiny_folder), **TINY_STEP | {"steps": 2})
    assert len(result["seconds"]) == 2 and len(result["losses"]) == 3
    same = measure_step("randlora", str(tiny_folder), **TINY_STEP)
    assert (result["trained"], result["text_tokens"]) == (same["trained"], same["text_tokens"])


def test_class_names_are_different():
    assert len(set(class_names(400))) == 400
    with pytest.raises(cr.UserError, match="--classes"):
        class_names(5000)


def test_scale_s_points():
    points = scale.choose_points(["rank"], ["2", "8"], bound=True)
    assert [(point.value, point.series) for point in points] == [(2, "RandLoRA"), (8, "RandLoRA")]
    assert len(scale.choose_points(["images"], None, bound=True)) == 12
    with pytest.raises(cr.UserError, match="--value x"):
        scale.choose_points(["rank"], ["x"], bound=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--row", "nothing"], "--row nothing: one of randlora, "),
        (["step", "--precision", "fp8"], "--precision fp8: one of fp32, bf16"),
        (["scale", "--axis", "depth"], "--axis depth: one of images, "),
        (["infer", "--loop", "x"], "--loop x: one of eval, "),
        (["infer", "--repeats", "0"], "--repeats"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.main()
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        ("step", "--row randlora --row peft-lora --repeats 1 --steps 1 --images 2 --classes 3 "
         "--precision fp32", 2),
        ("scale", "--axis blocks --value 1 --steps 1 --images 2 --classes 3", 1),
        ("blocks", "--last 1 --epochs 1 --images 20 --classes 2", 2),
        ("infer", "--images 70 --repeats 1 --loop eval --loop bare-both-workers", 2),
        ("fewshot", "--data clipart --method randlora --method nothing --shots 1 --seeds 1 "
         "--steps 2", 2),
        ("ask", "--images 8 --repeats 1", 4),
    ],
)  # fmt: skip
def test_command_writes_table_json_and_figure(name, arguments, rows, tiny_folder, tmp_path):
    process = run_command(name, *arguments.split(), "--model", tiny_folder, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(written["rows"]) == rows
    failed = [sample["row"] for sample in written["samples"] if "failed" in sample]
    assert failed == (["nothing on clipart, seed 1"] if name == "fewshot" else [])
    assert {"cpu", "cores", "gpu"} <= written["machine"].keys()
    assert written["versions"]["torch"].startswith("2.")
    assert process.stdout.startswith((tmp_path / f"{name}.md").read_text())
    assert process.stdout.count("\n|--") >= 1
    with Image.open(tmp_path / f"{name}.png") as figure:
        assert figure.width > 300


@pytest.mark.slow
def test_start_measures_new_processes(tmp_path):
    process = run_command("start", "--repeats", "1", "--steps", "1", "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert not [row for row in rows.values() if "failed" in row]
    medians = {name: row["seconds"]["median"] for name, row in rows.items()}
    assert medians["python itself"] < medians["clip-randlora predict RUN IMAGE"]
    assert (tmp_path / "start.png").exists()


def run_command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )


def test_every_row_of_the_step_has_a_label():
    assert set(step.LABELS) == {*ROWS, FIT}
