"""What runs otherwise on an NVIDIA GPU: `make test-cuda`; elsewhere these are left out."""

import threading

import pytest
import torch
from helpers.images import write_colors
from helpers.models import randomize
from helpers.trainings import straight_and_resumed
from typer.testing import CliRunner

import clip_randlora as cr
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.text import TextClassifier
from clip_randlora.forward.training import training_forward
from clip_randlora.training.cuda_graph import CUDAGraphStep
from clip_randlora.training.trainer import Trainer
from clip_randlora.utils.devices import Stopwatch, send

pytestmark = pytest.mark.cuda

FAST = {"shots": 4, "steps": 8, "batch_size": 12, "precision": "fp32", "learning_rate": 1e-2}
NOTE = "Steps were not recorded as a CUDA graph"


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return cr.load_data(write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 5}))


def losses(run: cr.Run) -> list[float]:
    return [row["loss"] for row in run.history]


def assert_recorded(run: cr.Run) -> None:
    assert run.metrics["device"] == "cuda"
    assert not [note for note in run.notes if NOTE in note]


def test_features_and_gradients_are_those_of_the_cpu(tiny_folder):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = {}
    for device in ("cpu", "cuda"):
        model = cr.load_model(str(tiny_folder), device=device)
        adapter = cr.attach(model.net, cr.RandLoRA(rank=5))
        randomize(adapter)
        names = [f"class {number}" for number in range(9)]
        text = TextClassifier(model, names, make_prompts(names))
        with training_forward(model.net, adapter):
            logits = model.encode_image(images) @ text.features().T
        grads = torch.autograd.grad(logits.square().sum(), adapter.parameters())
        found[device] = [tensor.cpu() for tensor in (logits.detach(), *grads)]
    for ours, reference in zip(found["cuda"], found["cpu"], strict=True):
        assert (ours - reference).abs().max() <= 1e-3 * reference.abs().max()  # TF32 convolution


@pytest.mark.parametrize(
    "method", [m for m in cr.METHODS if m not in ("linear_probe", "zero_shot")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_recorded_steps_are_the_usual_steps(tiny_folder, colors, monkeypatch, method, precision):
    config = cr.TrainConfig(method=method, **FAST | {"precision": precision})
    recorded = cr.fit(cr.load_model(str(tiny_folder)), colors, config)
    assert_recorded(recorded)
    monkeypatch.setattr("clip_randlora.training.cuda_graph._WARMUP_CALLS", 100)
    usual = cr.fit(cr.load_model(str(tiny_folder)), colors, config)
    assert losses(recorded) == pytest.approx(
        losses(usual), rel=1e-3 if precision == "fp32" else 0.03
    )


def test_recorded_steps_learn(tiny_folder, colors):
    run = cr.fit(cr.load_model(str(tiny_folder)), colors, cr.TrainConfig(**FAST | {"steps": 40}))
    assert_recorded(run)
    assert run.metrics["tuned"]["top1"] >= 0.9 > run.metrics["zero_shot"]["top1"]


def test_a_step_waits_for_nothing(tiny_folder, colors, monkeypatch):
    plain = Trainer.train_step

    def watched(self):
        torch.cuda.set_sync_debug_mode("error" if self.state.step > 3 else "default")
        try:
            return plain(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "train_step", watched)
    assert_recorded(cr.fit(cr.load_model(str(tiny_folder)), colors, cr.TrainConfig(**FAST)))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": {"method": "randlora", "blocks": 1}},
        {"method": {"method": "randlora", "towers": ["text"]}, "views": 2},
        {"method": {"method": "randlora", "towers": ["vision"]}},
        {"method": {"method": "randlora", "bases": "very_sparse"}},
        {"accumulate": 2},
        {"prompts_per_step": "batch", "accumulate": 2, "logit_scale": 4.6},
        {"prompts_per_step": 4, "batch_size": 3, "templates": ["a {}.", "the {}.", "one {}."]},
    ],
)
def test_other_settings_are_recorded_too(tiny_folder, colors, settings):
    config = cr.TrainConfig.parse(FAST | settings)
    assert_recorded(cr.fit(cr.load_model(str(tiny_folder)), colors, config))


def test_others_use_the_gpu_while_a_step_is_recorded(tiny_folder, colors):
    """As in the app, where one thread trains and others answer."""
    answering, answers = cr.load_model(str(tiny_folder)), []
    images = torch.rand(4, 3, 32, 32, device="cuda")
    is_done = threading.Event()

    def answer() -> None:
        while not is_done.is_set():
            with torch.inference_mode():
                answers.append(answering.encode_image(images).cpu())

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        for _ in range(3):
            run = cr.fit(cr.load_model(str(tiny_folder)), colors, cr.TrainConfig(**FAST))
            assert_recorded(run)
    finally:
        is_done.set()
        thread.join()
    assert len(answers) > 3
    torch.testing.assert_close(answers, [answers[0]] * len(answers), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_recorded_trains_as_usual(tiny_folder, colors):
    config = cr.TrainConfig.parse(FAST | {"prompts_per_step": 2})
    run = cr.fit(cr.load_model(str(tiny_folder)), colors, config)
    assert len(losses(run)) == 8 and run.metrics["steps"] == 8


def test_a_step_that_reads_from_the_gpu_is_taken_as_usual():
    step = CUDAGraphStep(lambda x: (x * float(x.sum()),), torch.device("cuda"))
    for number in range(6):
        (result,) = step(torch.full((2,), float(number), device="cuda"))
        assert result.tolist() == [2.0 * number**2] * 2
    assert step.failure


def test_resumed_it_ends_at_the_same_weights(tiny_folder, colors, tmp_path):
    config = cr.TrainConfig(**FAST)
    straight, resumed = straight_and_resumed(tiny_folder, colors, config, tmp_path / "run")
    assert_recorded(resumed)
    for ours, reference in zip(
        resumed.adapter.parameters(), straight.adapter.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)
    assert resumed.metrics["steps"] == 8


def test_a_training_begun_on_the_gpu_goes_on_without_one(tiny_folder, colors, tmp_path):
    def stop(step) -> None:
        if step.step == 6:
            raise KeyboardInterrupt

    config = cr.TrainConfig(**FAST)
    out = tmp_path / "run"
    with pytest.raises(cr.Interrupted):
        cr.fit(cr.load_model(str(tiny_folder)), colors, config, out=out, on_step=stop)
    model = cr.load_model(str(tiny_folder), device="cpu")
    run = cr.fit(model, colors, config, out=out, resume=True)
    straight = cr.fit(cr.load_model(str(tiny_folder), device="cpu"), colors, config)
    assert run.metrics["device"] == "cpu"
    assert losses(run) == pytest.approx(losses(straight), rel=1e-2)


def test_seconds_are_the_gpus(tiny_folder, colors):
    run = cr.fit(cr.load_model(str(tiny_folder)), colors, cr.TrainConfig(**FAST))
    assert 0 < run.metrics["step_seconds_median"] < run.metrics["train_seconds"]
    assert run.metrics["peak_memory_bytes"] == torch.cuda.max_memory_allocated()
    stopwatch = Stopwatch(torch.device("cuda"))
    stopwatch.start()
    torch.cuda._sleep(10**8)  # cycles, of which a GPU has at most 3 billion a second
    stopwatch.stop()
    (took,) = stopwatch.read()
    assert took > 0.03 and stopwatch.read() == []


def test_sent_tensors_arrive_whole():
    sent = [send(torch.full((1000,), number), torch.device("cuda")) for number in range(50)]
    assert [int(tensor.sum()) for tensor in sent] == [1000 * number for number in range(50)]


def test_train_predict_and_eval_from_the_command_line(tiny_folder, colors, tmp_path):
    from clip_randlora.cli import app

    data = write_colors(tmp_path / "data", {"train": 6, "test": 5})
    run, image = tmp_path / "run", next((data / "test").rglob("*.png"))
    train = ["train", data, "--model", tiny_folder, "--shots", "4", "--steps", "8", "--out", run]
    said = ""
    for arguments in (train, ["predict", run, image], ["eval", run, data]):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        said += result.output
    assert "on cuda" in " ".join(said.split())
