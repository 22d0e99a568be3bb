"""Threads: answers, loading and trainings beside one another; what they leave of the process."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics  # noqa: F401 - scipy adds a filter of warnings at its first import
import torch
from helpers import forks
from helpers.cases import LARGE
from helpers.images import write_colors
from helpers.models import randomize
from torch import nn

import clip_randlora as cr
from clip_randlora.forward.replace import replaced_forwards
from clip_randlora.utils.quiet import quiet
from clip_randlora.utils.shared_settings import SharedSetting

FAST = {"steps": 6, "batch_size": 8, "shots": 3, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("colors"), {"train": 4, "test": 4})


@pytest.fixture(scope="module")
def run_folder(tiny_folder, colors, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("threads") / "run"
    data = cr.load_data(colors)
    run = cr.fit(cr.load_model(str(tiny_folder)), data, cr.TrainConfig(**FAST), out=out)
    randomize(run.adapter)  # so that both answers differ by much
    run.adapter.save(out / "adapter.safetensors")
    return out


def difference(answer: dict, other: dict) -> float:
    return max(abs(answer[w][name] - other[w][name]) for w in answer for name in answer[w])


def all_at_once(*jobs: Callable[[], object]) -> list[object]:
    """Run jobs in threads of their own, which begin at the same time."""
    barrier = threading.Barrier(len(jobs))

    def begin(job: Callable[[], object]) -> object:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(begin, job) for job in jobs]]


def check_threads(
    classifier: cr.Classifier, images: list[Path], beside: Callable[[], object], count: int = 50
) -> None:
    """Ask a classifier from 8 threads, ``count`` times each, beside other work; and again then."""
    expected = [classifier.predict([image])[0] for image in images]
    assert difference(expected[0], expected[-1]) > 1e-3  # a mix-up would show
    assert max(difference({"a": e["zero_shot"]}, {"a": e["tuned"]}) for e in expected) > 1e-3
    before = snapshot(classifier.model.net)

    def ask(start: int) -> float:
        worst = 0.0
        for number in range(start, start + count):
            place = number % len(images)
            (answer,) = classifier.predict([images[place]])
            worst = max(worst, difference(answer, expected[place]))
        return worst

    *_, worst = all_at_once(
        beside, lambda: max(all_at_once(*(lambda s=s: ask(s) for s in range(8))))
    )
    assert worst < 1e-5
    assert ask(0) < 1e-5
    assert snapshot(classifier.model.net) == before


def snapshot(net: nn.Module) -> list[object]:
    """Return what an answer must leave as it is: the modules' own attributes, and the tensors."""
    modules = [(name, sorted(vars(module))) for name, module in net.named_modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    tensors = [(key, t.data_ptr(), t._version) for key, t in net.state_dict(keep_vars=True).items()]
    return [modules, hooks, tensors]


def test_any_number_of_threads_get_what_one_gets_while_another_trains(
    run_folder, tiny_folder, colors
):
    images = sorted((colors / "test").rglob("*.png"))
    other, data = cr.load_model(str(tiny_folder)), cr.load_data(colors)
    config = cr.TrainConfig(**FAST)
    check_threads(
        cr.Classifier.load(run_folder), images, lambda: cr.fit(other, data, config).adapter.detach()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite0_run", "vit_b_32_run"])
def test_whole_models_in_threads(request, name, colors, drawings, tiny_folder):
    run = request.getfixturevalue(name)
    images = sorted((drawings / "test").rglob("*.*"))
    other, data = cr.load_model("lite0", device="cpu"), cr.load_data(drawings)
    config = cr.TrainConfig(shots=2, steps=20)
    count = 50 if LARGE else 8
    check_threads(cr.Classifier.load(run), images, lambda: cr.fit(other, data, config), count)


def test_strengths_are_set_while_others_are_asked(run_folder, colors):
    """Each answer is one of some strength, whole: never the class features of one and the images
    of another."""
    classifier = cr.Classifier.load(run_folder)
    image = next((colors / "test").rglob("*.png"))
    known = {}
    for strength in (0.0, 0.5, 1.0):
        classifier.adapter.strength = strength
        (known[strength],) = classifier.predict([image])

    def turn() -> None:
        for number in range(30):
            classifier.adapter.strength = (0.0, 0.5, 1.0)[number % 3]
            classifier.predict([image])

    def ask() -> float:
        answers = [classifier.predict([image])[0] for _ in range(30)]
        return max(min(difference(a, one) for one in known.values()) for a in answers)

    _, first, second = all_at_once(turn, ask, ask)
    assert max(first, second) < 1e-5


def test_two_trainings_in_two_threads_end_where_one_after_the_other_does(tiny_folder, colors):
    data = cr.load_data(colors)

    def train(precision: str, seed: int) -> list[torch.Tensor]:
        config = cr.TrainConfig(**FAST, precision=precision, seed=seed)
        run = cr.fit(cr.load_model(str(tiny_folder)), data, config)
        return [parameter.detach() for parameter in run.adapter.parameters()]

    settings = ("fp32", 1), ("bf16", 2)
    expected = [train(*each) for each in settings]
    found = all_at_once(*(lambda each=each: train(*each) for each in settings))
    for ours, reference in zip(found, expected, strict=True):
        for tensor, other in zip(ours, reference, strict=True):
            torch.testing.assert_close(tensor, other, atol=1e-6, rtol=1e-4)


def test_a_classifier_without_its_adapter_answers_no_more(run_folder, colors):
    image = next((colors / "test").rglob("*.png"))
    for end in (cr.Classifier.close, lambda c: c.adapter.merge(), lambda c: c.adapter.detach()):
        classifier = cr.Classifier.load(run_folder)
        classifier.predict([image])
        end(classifier)
        with pytest.raises(cr.UserError, match="no longer attached"):
            classifier.predict([image])


def test_what_was_ready_answers_after_a_detachment_and_refuses_after_a_merge(run_folder):
    """Merging writes to the weights that both networks share; detaching writes to none."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    classifier = cr.Classifier.load(run_folder)
    both = classifier.side_by_side()
    before = both.probabilities(images)
    classifier.close()
    assert all(map(torch.equal, both.probabilities(images), before))
    classifier = cr.Classifier.load(run_folder)
    both = classifier.side_by_side()
    classifier.adapter.merge()
    for ask in (both.probabilities, both.tuned_probabilities, both.zero_shot_features):
        with pytest.raises(cr.UserError, match="was merged into its model"):
            ask(images)


def test_a_refused_strength_changes_nothing(run_folder, colors):
    both = cr.Classifier.load(run_folder).side_by_side()
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    before = both.probabilities(images)
    for wrong in (2.0, -0.1, float("nan"), "0.5", None, True):
        with pytest.raises(cr.UserError, match="number between 0 and 1"):
            both.strength = wrong
        assert both.strength == 1.0
        assert torch.equal(both.probabilities(images)[1], before[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_answers(run_folder, colors, dtype):
    classifier = cr.Classifier.load(run_folder)
    images = sorted((colors / "test").rglob("*.png"))
    expected = classifier.predict(images)
    classifier.model.net.to(dtype)
    found = classifier.predict(images)
    assert max(map(difference, found, expected)) < 0.1
    assert found != expected


def doubled(inner, x):
    return 2 * inner(x)


def plus_one(inner, x):
    return inner(x) + 1


def test_replaced_forwards_nest_and_end_in_any_order():
    module = nn.Identity()
    blocks = [replaced_forwards({module: how}) for how in (doubled, plus_one, doubled)]
    with ExitStack():
        seen = [module(3)]
        for block in blocks:
            block.__enter__()
            seen.append(module(3))
        for place in (1, 0, 2):  # the middle one ends first
            blocks[place].__exit__(None, None, None)
            seen.append(module(3))
    assert seen == [3, 6, 7, 14, 12, 6, 3]
    assert "forward" not in vars(module)


def test_a_forward_pass_of_somebody_else_comes_back():
    module = nn.Identity()
    own = module.forward = lambda x: x - 1
    with replaced_forwards({module: doubled}):
        assert module(3) == 4
    assert module.forward is own


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record) -> None:
        self.seen.append(record.getMessage())


def state_of_the_process() -> list[object]:
    root, hub = logging.getLogger(), logging.getLogger("huggingface_hub")
    kept = [(x.level, list(x.handlers), list(x.filters), x.disabled) for x in (root, hub)]
    filters = [list(handler.filters) for x in (root, hub) for handler in x.handlers]
    return [kept, filters, list(warnings.filters), warnings.showwarning]


def test_a_finished_training_leaves_the_process_as_it_was(tiny_folder, colors, tmp_path):
    def state() -> list[object]:
        return [
            *state_of_the_process(),
            dict(os.environ),
            [signal.getsignal(number) for number in signal.valid_signals()],
            [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()],
            [torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()],
            [sys.excepthook, threading.excepthook, os.getcwd()],
        ]

    run, data = tmp_path / "run", cr.load_data(colors)
    model = cr.load_model(str(tiny_folder))
    before = state()
    cr.fit(model, data, cr.TrainConfig(**FAST), out=run).adapter.detach()
    cr.Classifier.load(run, model=model).predict(sorted((colors / "test").rglob("*.png")))
    assert state() == before


_FREED = """
import sys
import psutil
import torch
import clip_randlora as cr

def given_back() -> int:
    large = torch.ones(48 * 2**18)
    held = psutil.Process().memory_info().rss
    del large
    return (held - psutil.Process().memory_info().rss) // 2**20

model, data = sys.argv[1:]
config = cr.TrainConfig(steps=2, batch_size=8, shots=3)
step = lambda _: print(given_back())
cr.fit(cr.load_model(model, device="cpu"), cr.load_data(data), config, on_step=step)
print(given_back())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is glibc on Linux")
def test_freed_memory_is_kept_in_a_training_and_given_back_after_it(tiny_folder, colors):
    """Of 48 MiB, in a process whose memory has no holes that large."""
    done = forks.of_the_package().run(_FREED, [tiny_folder, colors])
    assert done.returncode == 0, done.stderr
    *within, afterwards = map(int, done.stdout.split())
    assert max(within) < 8
    assert afterwards > 40


def test_a_setting_that_several_need_is_put_back_after_the_last():
    made: list[str] = []

    def make():
        made.append("made")
        return lambda: made.append("put back")

    setting = SharedSetting(make)
    first, second = setting.active(), setting.active()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert made == ["made"]
    second.__exit__(None, None, None)
    assert made == ["made", "put back"]


_IMPORTS = """
import importlib, logging, os, pkgutil, signal, sys, warnings
import accelerate, datasets, huggingface_hub, matplotlib.figure, open_clip, PIL.Image, rich, sklearn
import timm, torch, torchvision, typer, pydantic, matplotlib.backends.backend_agg

def state():
    root = logging.getLogger()
    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    logs = root.level, list(root.handlers), list(root.filters)
    hooks = warnings.showwarning, sys.excepthook, sys.displayhook
    return list(warnings.filters), logs, signals, dict(os.environ), hooks, torch.get_num_threads()

before = state()
import clip_randlora
for module in pkgutil.walk_packages(clip_randlora.__path__, "clip_randlora."):
    if not any(part in module.name for part in ("export", "__main__", "ray")):
        importlib.import_module(module.name)
for name in clip_randlora.__all__:
    getattr(clip_randlora, name)
assert state() == before
"""


@pytest.mark.slow
def test_an_import_leaves_the_process_as_it_was():
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, timeout=300)


def test_loading_in_many_threads_leaves_logging_and_warnings_as_they_were(tiny_folder):
    before = state_of_the_process()
    all_at_once(
        *(lambda: cr.load_model(str(tiny_folder)) for _ in range(3)),
        *(lambda: cr.load_model(str(tiny_folder), pretrained=None) for _ in range(3)),
        *(lambda: cr.load_model(str(tiny_folder)).tokenizer for _ in range(2)),
    )
    assert state_of_the_process() == before


def test_a_quiet_thread_silences_itself_alone(monkeypatch):
    records, root = Records(), logging.getLogger()
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    monkeypatch.setattr(root, "handlers", [records])

    def say(what: str) -> None:
        logging.warning("logged, %s", what)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(warnings, "filters", [])
            warnings.warn(what, stacklevel=1)

    with quiet():
        say("by the quiet one")
        with quiet():
            say("by the quiet one")
        all_at_once(lambda: say("by another"))
    say("afterwards")
    assert records.seen == ["logged, by another", "logged, afterwards"]
    assert shown == ["by another", "afterwards"]


def test_no_handler_stays_at_the_root(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with quiet():
        logging.warning("a library that logs at the root")
    assert root.handlers == []


def test_random_weights_of_a_seed_come_back_from_many_threads(tiny_folder):
    def load(seed: int) -> torch.Tensor:
        return cr.load_model(str(tiny_folder), f"random:{seed}").net.visual.conv1.weight

    expected = [load(seed) for seed in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = all_at_once(*(lambda s=s: load(s) for s in range(3)))
    assert all(map(torch.equal, found, expected))
    assert torch.equal(torch.get_rng_state(), before)
