"""How a step is made to fit into memory: what is chosen, what is said, and what it ends at."""

from pathlib import Path

import pytest
import torch
from helpers.images import write_colors
from helpers.trainings import straight_and_resumed

import clip_randlora as cr
from clip_randlora.training import trainer
from clip_randlora.training.memory_plan import Plan, StepMemory, choose_plan
from clip_randlora.utils.tensor_memory import TensorMemory

MB = 10**6
LITTLE = 15 * 10**5  # a step takes 2.6 MB, 1.6 MB with checkpointed blocks, 1.1 MB in two parts
FAST = {"method": cr.RandLoRA(rank=4), "batch_size": 12, "shots": 4, "precision": "fp32"}


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> cr.Data:
    return cr.load_data(write_colors(tmp_path_factory.mktemp("colors"), {"train": 6, "test": 2}))


def take_step(plan: Plan, images: int) -> None:
    """A step that takes 5 MB, and 10 MB for each image; with checkpointed blocks, 3 MB."""
    fixed = torch.zeros(5 * MB, dtype=torch.uint8)
    for _ in range(plan.parts):
        held = torch.zeros(images * (3 if plan.checkpoints_blocks else 10) * MB, dtype=torch.uint8)
        del held
    assert fixed.nbytes


@pytest.mark.parametrize(
    ("free", "parts", "checkpoints", "expected"),
    [
        (1500, None, None, Plan(1, False)),  # 5 + 128 * 10 is 1285, 0.9 * 1500 is 1350
        (1300, None, None, Plan(1, True)),
        (1000, None, None, Plan(1, True)),  # 5 + 128 * 3 is 389
        (400, None, None, Plan(2, True)),  # 5 + 64 * 3 is 197
        (100, None, None, Plan(8, True)),  # 5 + 16 * 3 is 53
        (100, None, False, Plan(16, False)),  # 5 + 8 * 10 is 85
        (100, 4, None, Plan(4, True)),  # as asked, though 5 + 32 * 3 is 101
        (1, None, None, Plan(128, True)),
    ],
)
def test_the_first_plan_that_fits_is_chosen(free, parts, checkpoints, expected):
    plan, notes = choose_plan(128, free * MB, parts, checkpoints, take_step)
    assert plan == expected
    assert bool(notes) == (plan != Plan(1, False))


def test_the_note_says_what_and_why():
    _, (note,) = choose_plan(128, 1000 * 40 * MB, None, None, lambda *of: take_step_of(40, *of))
    assert note == (
        "Blocks are computed again in the backward pass: a step takes about 15.6 GB of memory so, "
        "it would take 51.4 GB otherwise, and 40.0 GB are free."
    )


def take_step_of(times: int, plan: Plan, images: int) -> None:
    """The step of `take_step`, so many times as large, without touching that memory."""
    size = times * MB * (5 + images * (3 if plan.checkpoints_blocks else 10))
    torch.empty(size, dtype=torch.uint8)


def test_tensors_are_counted_while_they_exist():
    weight = torch.ones(10, 10)
    with TensorMemory() as memory:
        first = torch.zeros(100, 10)  # 4,000 bytes
        second = first @ weight  # another stretch, and as many
        view = second[:5]
        del first
        second.add_(1)
        assert memory.live == 4000
        del second, view
    assert (memory.live, memory.allocated, memory.peak) == (0, 8000, 8000)
    assert memory.stretches[0][-1] == 4000


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_step_takes_what_two_small_ones_tell(tiny, colors, precision, monkeypatch):
    """Steps of 2 and 3 images foretell one of 12 to 10 %."""
    found = []

    def compare(images, free, parts, checkpoints, run):
        for plan in (Plan(1, False), Plan(1, True), Plan(2, True)):
            with TensorMemory() as memory:
                run(plan, images // plan.parts)
            found.append((StepMemory(run).peak(plan, images), memory.peak))
        return Plan(1, False), []

    monkeypatch.setattr(trainer, "choose_plan", compare)
    monkeypatch.setattr(trainer, "free_memory", lambda _: 0)
    cr.fit(tiny, colors, cr.TrainConfig(**FAST | {"precision": precision}, steps=1))
    assert len(found) == 3
    for foretold, measured in found:
        assert foretold == pytest.approx(measured, rel=0.1)
    plain, checkpointed, parts = (measured for _, measured in found)
    assert parts < checkpointed < plain


def test_what_fits_is_not_even_tried(tiny, colors, monkeypatch):
    monkeypatch.setattr(trainer, "choose_plan", lambda *_: pytest.fail("a step was tried"))
    run = cr.fit(tiny, colors, cr.TrainConfig(**FAST, steps=1))
    assert run.metrics["steps"] == 1
    assert not [note for note in run.notes if "memory" in note]


def test_a_training_with_little_memory_ends_at_the_same_weights(tiny_folder, colors, monkeypatch):
    config = cr.TrainConfig(**FAST, steps=4, learning_rate=1e-3)
    whole = cr.fit(cr.load_model(str(tiny_folder)), colors, config)
    monkeypatch.setattr(trainer, "free_memory", lambda _: LITTLE)
    parts = cr.fit(cr.load_model(str(tiny_folder)), colors, config)
    (note,) = [note for note in parts.notes if "memory" in note]
    assert note.startswith(
        "Blocks are computed again in the backward pass, and the 12 images of a step are encoded "
        "in 2 parts: a step takes about 0.0 GB"
    )
    assert parts.config == whole.config
    for (name, one), (_, other) in zip(
        whole.adapter.named_parameters(), parts.adapter.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)


def test_checkpointed_blocks_train_to_the_same_bits(tiny_folder, colors):
    trained = []
    for checkpoints in (False, True):
        config = cr.TrainConfig(**FAST, steps=3, checkpoint_blocks=checkpoints)
        run = cr.fit(cr.load_model(str(tiny_folder)), colors, config)
        trained.append(run)
    assert trained[0].history == trained[1].history
    for one, other in zip(*(run.adapter.parameters() for run in trained), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_resumed_training_keeps_its_parts(tiny_folder, colors, tmp_path: Path, monkeypatch):
    free = iter([LITTLE, LITTLE, 10**12])  # in one go, interrupted, resumed
    monkeypatch.setattr(trainer, "free_memory", lambda _: next(free))
    config = cr.TrainConfig(**FAST, steps=4)
    straight, resumed = straight_and_resumed(tiny_folder, colors, config, tmp_path / "run")
    for one, other in zip(straight.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        assert torch.equal(one, other)


def test_prompts_are_encoded_once_for_all_parts(tiny, colors):
    ran: list[bool] = []
    tiny.net.transformer.register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    cr.fit(tiny, colors, cr.TrainConfig(**FAST, steps=2, accumulate=4, checkpoint_blocks=False))
    assert ran.count(True) == 2
