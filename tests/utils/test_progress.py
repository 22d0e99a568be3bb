"""How far long work is: what the library tells, and what the command shows of it."""

import io
import time
from itertools import groupby
from pathlib import Path

import pytest
from helpers.images import write_colors
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
        """The stages and their totals, each of which counted up from 0 to its total."""
        found = []
        for (stage, total), calls in groupby(self, key=lambda call: (call[0], call[2])):
            done = [call[1] for call in calls]
            assert done[0] == 0 and done[-1] == total and done == sorted(set(done)), stage
            found.append((stage, total))
        return found


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
    assert reading.stages()[0] == ("reading images", 24)
    config = cr.TrainConfig.parse({"method": method, "shots": 4, "steps": 3, "views": 1})
    steps = []
    out = tmp_path / "run" if stages == [("training", 3)] else None  # its figures take long
    cr.fit(tiny, data, config, out, on_progress=fitting, on_step=steps.append)
    told = fitting.stages()
    assert told[0] == ("decoding images", 12)
    assert [stage for stage in told if stage[0] in ("encoding images", "training")] == stages
    assert [stage for stage in told if stage[0] == "comparing contents"] == (
        [("comparing contents", 12), ("comparing contents", len(data.test))] if out else []
    )
    assert told[-1] == ("classifying images", len(data.test))
    assert len(steps) == (3 if ("training", 3) in stages else 0)
    if out is None:
        return
    find_test_images(tmp_path / "run", colors, on_progress=testing)
    assert testing.stages()[-2:] == [("reading images", 24), ("comparing contents", 24)]


@pytest.fixture
def shown(monkeypatch):
    """What the command shows, with a second that is 50 times as short."""
    for name in ("_SECONDS_UNSEEN", "_SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(progress_bars, name, getattr(progress_bars, name) / 50)

    def show(is_terminal: bool) -> str:
        output = io.StringIO()
        screen = Console(file=output, force_terminal=is_terminal, width=100)
        monkeypatch.setattr(console, "messages", screen)
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
        assert line.startswith("long work: ") and " of 100, as it should, " in line
        assert " a second, " in line and line.endswith(" s left")


def test_a_terminal_gets_bars_for_what_takes_long(shown):
    text = shown(is_terminal=True)
    assert "short work" not in text
    assert "long work" in text and "20 of 100" in text and "as it should" in text
