"""How far long work is: what the library tells, and what the command shows of it."""

import io
import time
from pathlib import Path

import pytest
import tqdm
from helpers.images import write_colors
from huggingface_hub import utils
from rich.console import Console

import clip_randlora as cr
from clip_randlora.cli import console, progress_bars
from clip_randlora.runs.held_out import find_test_images


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    folder = write_colors(tmp_path_factory.mktemp("stages") / "colors", {"": 8})
    (folder / "red" / "7.png").write_bytes((folder / "red" / "7.png").read_bytes()[:-200])
    return folder


class Told(list):
    """The calls of an ``on_progress``."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.append((stage, done, total))

    def stages(self) -> list[tuple[str, int]]:
        """The stages and their totals, each of which counted up from 0 to its total.

        A total of 0 is not known yet.
        """
        found: list[tuple[str, list[int], int]] = []
        for stage, done, total in self:
            if done == 0:
                found.append((stage, [], 0))
            name, counts, before = found[-1]
            assert (name, before) in ((stage, 0), (stage, total))
            counts.append(done)
            found[-1] = (name, counts, total)
        for stage, counts, total in found:
            assert counts[-1] == total and counts == sorted(set(counts)), stage
        return [(stage, total) for stage, _, total in found]


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ({"method": "lora"}, [("training", 3)]),
        ({"method": "lora", "blocks": 1}, [("encoding images", 12), ("training", 3)]),
        ({"method": "linear_probe"}, [("encoding images", 12)]),
    ],
)
def test_a_training_tells_how_far_every_stage_is(method, stages, tiny, colors, tmp_path):
    reading, fitting, testing = Told(), Told(), Told()
    data = cr.load_data(colors, on_progress=reading)
    assert reading.stages()[:4] == [
        ("listing files", 24),
        ("sorting files", 24),
        ("sorting into classes", 1),
        ("reading images", 24),
    ]
    config = cr.TrainConfig.parse({"method": method, "shots": 4, "steps": 3, "views": 1})
    steps = []
    out = tmp_path / "run" if stages == [("training", 3)] else None  # its figures take long
    cr.fit(tiny, data, config, out, on_progress=fitting, on_step=steps.append)
    told = fitting.stages()
    assert told[:2] == [("reading prompts", 1), ("decoding images", 12)]
    assert [stage for stage in told if stage[0] in ("encoding images", "training")] == stages
    assert ("encoding prompts", 3) in told
    assert [stage for stage in told if stage[0] == "comparing contents"] == (
        [("comparing contents", 12), ("comparing contents", len(data.test))] if out else []
    )
    last = [("classifying images", len(data.test)), *[("writing the run", 1)] * (out is not None)]
    assert told[-len(last) :] == last
    assert len(steps) == (3 if ("training", 3) in stages else 0)
    if out is None:
        return
    find_test_images(tmp_path / "run", colors, on_progress=testing)
    assert testing.stages()[-2:] == [("reading images", 24), ("comparing contents", 24)]


@pytest.fixture
def shown_messages(monkeypatch):
    """What the command writes to standard error, with a second that is 50 times as short."""
    for name in ("_SECONDS_UNSEEN", "_SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(progress_bars, name, getattr(progress_bars, name) / 50)

    def show(is_terminal: bool) -> io.StringIO:
        output = io.StringIO()
        screen = Console(file=output, force_terminal=is_terminal, width=100)
        monkeypatch.setattr(console, "messages", screen)
        return output

    return show


@pytest.fixture
def shown(shown_messages):
    """What the command shows of two stages."""

    def show(is_terminal: bool) -> str:
        output = shown_messages(is_terminal)
        with console.progress() as on_progress:
            on_progress("short work", 0, 5)
            on_progress("short work", 5, 5)
            for done in range(21):
                on_progress("long work", done, 100, "as it should")
                time.sleep(0.025)
        return output.getvalue()

    return show


def test_a_log_gets_a_line_now_and_then(shown):
    lines = shown(is_terminal=False).splitlines()
    assert 1 <= len(lines) <= 4  # half a second is 25 of those: one after 2 and then every 10
    for line in lines:
        assert line.startswith("long work: ") and " of 100, as it should" in line
    assert " a second, " in lines[-1] and lines[-1].endswith(" s left")


def test_a_terminal_gets_bars_for_what_takes_long(shown):
    text = shown(is_terminal=True)
    assert "short work" not in text
    assert "long work" in text and "20 of 100" in text and "as it should" in text


def test_work_that_reports_nothing_is_said_to_go_on(shown_messages):
    output = shown_messages(is_terminal=False)
    with console.working("writing the file"):
        time.sleep(0.3)  # 15 of the seconds that count here: after 2, after 12
    lines = output.getvalue().splitlines()
    assert 1 <= len(lines) <= 2
    assert all(line.startswith("writing the file: 0 s so far") for line in lines)


def test_work_between_two_stages_is_said_to_go_on(shown_messages):
    output = shown_messages(is_terminal=False)
    with console.progress() as on_progress:
        on_progress("reading", 0, 5)
        on_progress("reading", 5, 5)
        time.sleep(0.3)
    assert output.getvalue().startswith("working: 0 s so far")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_download_by_another_library_is_shown(is_terminal, shown_messages, capfd):
    """huggingface_hub's bars draw nothing in a log, torchvision's mix with the lines there."""
    output = shown_messages(is_terminal)
    with console.working("loading"):
        for bar_class, options in ((tqdm.tqdm, {}), (utils.tqdm, {"desc": "weights.bin: "})):
            bar = bar_class(total=8 * 10**6, unit="B", unit_scale=True, mininterval=0, **options)
            for _ in range(8):
                bar.update(10**6)
                time.sleep(0.03)
            bar.close()
    text = output.getvalue()
    assert "downloading, MB: " in text or (is_terminal and "downloading, MB " in text)
    assert "downloading weights.bin, MB" in text and " of 8" in text
    assert capfd.readouterr().err == ""
    bar = tqdm.tqdm(total=1, file=(drawn := io.StringIO()))
    bar.close()
    assert "0/1" in drawn.getvalue()


def test_an_export_tells_its_steps(tiny_run, tmp_path):
    told = Told()
    cr.export_run(tiny_run, "open_clip", tmp_path / "exported", on_progress=told)
    assert [stage for stage, _ in told.stages()] == [
        "loading the model",
        "computing what the export has to give",
        "writing the weights",
        "loading the export",
    ]


def test_a_total_may_become_known(shown_messages):
    output = shown_messages(is_terminal=True)
    with console.progress() as on_progress:
        for done in range(0, 21, 2):
            on_progress("listing files", done, 0)
            time.sleep(0.025)
        on_progress("listing files", 20, 20)
    text = output.getvalue()
    assert "18, " in text and " a second, 0 s so far" in text  # while it is not known
    assert "20 of 20, took 0 s" in text
