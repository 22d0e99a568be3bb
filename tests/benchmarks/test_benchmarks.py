"""The benchmarks: rounds, tables and ratios, and every row once on a tiny model."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

import clip_randlora as cr
from benchmarks import __main__ as command_line
from benchmarks import ablation, scale, start, step
from benchmarks.common import benchmark, report, worker
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.images import class_names
from benchmarks.common.processes import Row, run_row
from benchmarks.common.training_steps import FIT, ROWS, measure_fit, measure_step

TINY_STEP = {"images": 2, "classes": 3, "precision": "fp32", "warmup": 1, "steps": 1}


def test_rounds_are_put_together_and_compared_with_the_first_row_of_the_group(tmp_path):
    seconds = {"a": [[2.0, 1.0, 9.0], [3.0, 4.0, 8.0]], "b": [[14.0], [14.0]], "c": [[7.0], [7.0]]}
    gigabytes = {"a": (4, 4), "b": (8, 12), "c": (1, 3)}
    rows = [Row(key, {"row": key}, group="c" if key == "c" else "") for key in seconds]

    def run(row, turn):
        peak = gigabytes[row.key][turn - 1] * 10**9
        result = {"seconds": seconds[row.key][turn - 1], "peak_memory_bytes": peak, "trained": 7}
        return {"result": result}

    found = Benchmark("step", {}, tmp_path).measure(rows, 2, run)
    first = found[0].values
    assert first["trained"] == 7
    assert first["seconds"].items() >= {"median": 3.5, "min": 1.0, "max": 9.0, "count": 6}.items()
    assert report.table(found, report.time_and_memory()).splitlines() == [
        "| row | seconds: median (min - max) | time ratio | peak GB | memory ratio |",
        "|-----|-----------------------------|------------|---------|--------------|",
        "| a   |          3.50 (1.00 - 9.00) |       1.00 |    4.00 |         1.00 |",
        "| b   |       14.00 (14.00 - 14.00) |       4.00 |   10.00 |         2.50 |",
        "| c   |          7.00 (7.00 - 7.00) |       1.00 |    2.00 |         1.00 |",
    ]


def test_a_row_that_failed_says_why_and_has_no_ratio(tmp_path):
    def run(row, _):
        return {"failed": "no | library"} if row.key == "a" else {"result": {"seconds": [1.0]}}

    rows = [Row("a", {"row": "a"}), Row("b", {"row": "b"})]
    found = Benchmark("step", {}, tmp_path).measure(rows, 1, run)
    columns = {
        "s": lambda row: report.seconds(row.values["seconds"]),
        "ratio": lambda row: report.ratio(row, "seconds"),
    }
    assert report.table(found, columns).splitlines()[2:] == [
        "| a   | failed: no / library |       |",
        "| b   |   1.00 (1.00 - 1.00) |       |",
    ]


def test_rounds_are_interleaved_and_go_on_where_they_stopped(tmp_path):
    rows = [Row(key, {"row": key}) for key in ("a", "b", "broken")]
    ran = []

    def run(row, _):
        ran.append(row.key)
        if row.key == "broken":
            return {"failed": "no such library"}
        return {"result": {"seconds": [1.0]}}

    found = Benchmark("step", {"classes": 10}, tmp_path).measure(rows, 2, run)
    assert ran == ["a", "b", "broken", "a", "b"]  # what failed is not tried again
    assert found[2].failed == "no such library"

    ran.clear()
    again = Benchmark("step", {"classes": 10}, tmp_path, resume=True)
    found = again.measure(rows[1:], 3, run)
    assert sorted(ran) == ["b", "broken"]  # but it is when the benchmark goes on
    assert [row.key for row in found] == ["b", "broken", "a"]  # and nothing is forgotten
    assert found[0].values["seconds"]["count"] == 3
    with pytest.raises(cr.UserError, match="classes 10, not 20"):
        Benchmark("step", {"classes": 20}, tmp_path, resume=True)


def test_all_rows_run_at_32_images_and_the_bound_s_also_at_128():
    planned = step.plan(None, None, None)
    large = {name for name, *case in planned if case == ["fp32", 128]}
    assert {"randlora", "bound"} <= large < set(step.LABELS)
    for precision in ("fp32", "bf16"):
        here = [name for name, *case in planned if case == [precision, 32]]
        assert here == list(step.LABELS)
    assert not [name for name, *case in planned if case == ["bf16", 128]]


@pytest.mark.parametrize("part", ablation.PARTS)
def test_what_the_ablation_leaves_out_is_there(part):
    with ablation.PARTS[part].left_out():  # an error where something was renamed
        pass


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
    answer = run_row(Row("", {}, "workloads:speak", {"words": "äöü"}), threads=1)["result"]
    assert (answer["words"], answer["threads_wanted"]) == ("äöü", "1")
    assert 200e6 < answer["peak_memory_bytes"] < 300e6  # its own, not this process's
    assert run_row(Row("", {}, "workloads:break_down"), 1) == {"failed": "the disk is full"}
    assert "no_such_library: not installed" in run_row(Row("", {}, "workloads:need"), 1)["failed"]
    hidden = run_row(Row("", {}, "json:loads", hidden=("json",)), 1)["failed"]
    assert "json: not installed" in hidden
    killed = run_row(Row("", {}, "workloads:run_out_of_memory"), 1)["failed"]
    assert "memory runs out" in killed
    crashed = run_row(Row("", {}, "workloads:crash"), 1)
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
    assert scale.choose_values(["rank"], ["2", "8"]) == [("rank", 2), ("rank", 8)]
    assert len(scale.choose_values(["images"], None)) == 6
    with pytest.raises(cr.UserError, match="--value x"):
        scale.choose_values(["rank"], ["x"])
    with pytest.raises(cr.UserError, match="name the one --axis"):
        scale.choose_values(None, ["2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--row", "nothing"], "--row nothing: one of randlora, "),
        (["step", "--precision", "fp8"], "--precision fp8: one of fp32, bf16"),
        (["scale", "--axis", "depth"], "--axis depth: one of images, "),
        (["ablation", "--part", "x"], "--part x: one of formed-once, "),
        (["infer", "--loop", "x"], "--loop x: one of bare-both, "),
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


@pytest.fixture
def run_command(monkeypatch, capsys, fine_figures):
    """Run a benchmark here, its rows too: that they have processes of their own is tested above."""

    def here(row: Row, threads: int) -> dict:
        return worker.call(row.function, row.settings)

    def run(name: str, *arguments) -> str:
        monkeypatch.setattr(benchmark, "run_row", here)
        monkeypatch.setattr(f"benchmarks.{name}.run_row", here, raising=False)
        monkeypatch.setattr(sys, "argv", ["benchmarks", name, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            command_line.main()
        printed = capsys.readouterr()
        assert exit_.value.code == 0, printed.err
        return printed.out

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        ("step", "--row randlora --row peft-lora --repeats 1 --steps 1 --images 2 --classes 3 "
         "--precision fp32", 2),
        ("scale", "--axis blocks --value 1 --steps 1 --images 2 --classes 3", 1),
        ("blocks", "--last 1 --epochs 1 --images 20 --classes 2", 2),
        ("infer", "--images 70 --repeats 1 --loop eval --loop bare-both-workers", 2),
        ("fewshot", "--data clipart --method randlora --method nothing --last-blocks 1 --shots 1 "
         "--seeds 1 --steps 2", 3),
        ("ablation", "--part folding --part recompute --precision fp32 --images 2 --classes 3 "
         "--repeats 1 --steps 1", 2),
        ("ask", "--images 8 --repeats 1", 4),
    ],
)  # fmt: skip
def test_command_writes_table_json_and_figure(
    name, arguments, rows, run_command, tiny_folder, tmp_path
):
    printed = run_command(name, *arguments.split(), "--model", tiny_folder, "--out", tmp_path)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(written["rows"]) == rows
    failed = [sample["row"] for sample in written["samples"] if "failed" in sample]
    assert failed == (["nothing on clipart"] if name == "fewshot" else [])
    assert {"cpu", "cores", "gpu"} <= written["machine"].keys()
    assert written["versions"]["torch"].startswith("2.")
    assert printed.startswith((tmp_path / f"{name}.md").read_text())
    assert printed.count("\n|--") >= 1
    with Image.open(tmp_path / f"{name}.png") as figure:
        assert figure.width > 300


@pytest.mark.slow
def test_start_measures_new_processes(run_command, monkeypatch, tmp_path):
    """Two of them; the others are started in the same way."""

    def two(run: Path) -> dict:
        names = "python itself", "clip-randlora predict RUN IMAGE"
        return {name: commands(run)[name] for name in names}

    commands = start.start_commands
    monkeypatch.setattr(start, "start_commands", two)
    run_command("start", "--repeats", "1", "--steps", "1", "--threads", "1", "--out", tmp_path)
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert not [row for row in rows if row["failed"]]
    medians = {row["key"]: row["values"]["seconds"]["median"] for row in rows}
    assert medians["python itself"] < medians["clip-randlora predict RUN IMAGE"]
    assert (tmp_path / "start.png").exists()


def test_every_row_of_the_step_has_a_label():
    assert set(step.LABELS) == {*ROWS, FIT}
