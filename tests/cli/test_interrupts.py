"""Ctrl-C and SIGTERM end what runs, also where Python would lose them."""

import json
import signal

import pytest
from helpers import forks
from helpers.images import write_colors

import clip_randlora as cr
from clip_randlora.training import trainer

LOST = """
import os, signal, sys, threading, time, types

class Loud:
    '''Sends its process SIGTERM when it is deleted, where Python ignores what a signal raises.'''

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

def lose_it_in_a_destructor():
    Loud()

def lose_it_in_a_bare_except():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    except:
        pass

def hand_it_to_another_thread():
    def send():
        time.sleep(0.5)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    threading.Thread(target=send).start()
"""
COMMAND = """
import open_clip
from clip_randlora import cli

open_clip.list_models = lambda: [lose_it_in_a_destructor(), time.sleep(60)]
sys.argv = ["clip-randlora", "models"]
cli.main()
"""
IMPORT = """
from clip_randlora import cli
from clip_randlora.cli import catalogues, console

def list_models():
    with console.loading():
        lose_it_in_a_bare_except()  # as an import of something optional may
    time.sleep(60)

cli._TASKS["Look up"]["models"].__code__ = list_models.__code__
catalogues.console, catalogues.time = console, time
catalogues.lose_it_in_a_bare_except = lose_it_in_a_bare_except
sys.argv = ["clip-randlora", "models"]
cli.main()
"""
APP = """
def stand_in(name, **attributes):
    sys.modules[f"clip_randlora.app.{name}"] = types.SimpleNamespace(**attributes)

class Blocks:
    def queue(self, **_):
        return self

    def launch(self, **_):
        globals()[sys.argv[1]]()

stand_in("access", AccessMiddleware=None)
stand_in("service", Service=lambda settings: types.SimpleNamespace(workspaces=None))
stand_in("page", HEAD="", build=lambda service: Blocks(), theme=lambda: None)
stand_in("routes", routes=lambda service: [])
from clip_randlora.app import Settings, launch

launch(Settings())
print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [COMMAND, IMPORT])
def test_a_command_ends_though_python_lost_the_interrupt(program):
    done = forks.of_the_package().run(LOST + program, timeout=30)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted; start again"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "how", ["lose_it_in_a_destructor", "lose_it_in_a_bare_except", "hand_it_to_another_thread"]
)
def test_the_app_ends_though_the_interrupt_is_lost(how):
    done = forks.of_the_package().run(LOST + APP, [how], timeout=30)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_ctrl_c_after_the_last_step_is_not_lost(tiny, tmp_path, monkeypatch):
    """It was, while the last checkpoint was written, and the evaluation went on to its end."""
    data = cr.load_data(write_colors(tmp_path / "colors", {"": 6}))
    config = cr.TrainConfig(shots=2, steps=2, method="lora", precision="fp32")
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    save, pressed = trainer.Trainer.save, []

    def press(self) -> None:
        if self.state.step == self.state.steps and not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        save(self)

    monkeypatch.setattr(trainer.Trainer, "save", press)
    out = tmp_path / "run"
    with pytest.raises(cr.Interrupted, match="stopped after step 2"):
        cr.fit(tiny, data, config, out)
    assert pressed and not (out / "metrics.json").exists()
    cr.fit(tiny, data, config, out, resume=True)
    assert json.loads((out / "metrics.json").read_text())["steps"] == 2
