"""``memory``: the memory of a training step, counted on small steps and on whole ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.measured import Measured
from benchmarks.common.options import OutOption, ResumeOption, ThreadsOption, require_known
from benchmarks.common.processes import Row


def memory(
    model: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Default: ViT-B-32 and ViT-B-16.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or bf16; may be repeated. Default: both.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="In a step.")] = 32,
    classes: Annotated[int, typer.Option(min=2, help="Prompts in a step.")] = 100,
    whole: Annotated[
        bool, typer.Option(help="Also take the whole step, to compare; large models take long.")
    ] = True,
    threads: ThreadsOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """The tensors of a RandLoRA step (r=6, both towers), with and without checkpointed blocks."""
    require_known("--precision", precision, ("fp32", "bf16"))
    workload = {"images": images, "classes": classes, "whole": whole}
    benchmark = Benchmark("memory", workload, out, threads, resume)
    rows = [
        Row(
            f"{name}, {precise}, {'blocks' if checkpoints else 'everything'}",
            {"kept": "blocks' inputs" if checkpoints else "everything", "model": name}
            | {"precision": precise},
            "benchmarks.memory:measure",
            workload | {"model": name, "precision": precise, "checkpoints": checkpoints},
            group=f"{name}, {precise}",
            hidden=("peft", "transformers"),
        )
        for name in model or ("ViT-B-32", "ViT-B-16")
        for precise in precision or ("fp32", "bf16")
        for checkpoints in (False, True)
    ]
    found = benchmark.measure(
        rows, 1, progress=lambda result: f"{_gigabytes(result['foretold'])} GB"
    )
    notes = [
        f"Random weights, {images} images, {classes} classes. Kept: what the forward pass leaves "
        f"for the backward pass, images' tower alone. Step: the most that the tensors of a step "
        f"take at a time, beside the weights and AdamW's moments; foretold from steps of two and "
        f"three images, and counted on the whole step.",
    ]
    benchmark.publish(report.table(found, _columns()), notes)


def _columns() -> dict[str, Callable[[Measured], str]]:
    return {
        "kept, GB": lambda row: _gigabytes(row.values["kept"]),
        "ratio": _ratio_kept,
        "step, foretold": lambda row: _gigabytes(row.values["foretold"]),
        "step, counted": lambda row: _gigabytes(row.values["counted"]),
        "at 128 images": lambda row: _gigabytes(row.values["at_128"]),
        "weights": lambda row: _gigabytes(row.values["weights"]),
        "trained, with gradients and moments": lambda row: _gigabytes(row.values["trained"]),
    }


def _ratio_kept(row: Measured) -> str:
    whole = row.first.get("kept")
    return f"{row.values['kept'] / whole:.2f}" if whole else ""


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def measure(
    model: str, images: int, classes: int, precision: str, checkpoints: bool, whole: bool
) -> dict[str, Any]:
    """Count the tensors of a step in this process, in bytes.

    Args:
        model: an open_clip name or folder, taken with random weights.
        images, classes: in a step.
        precision: fp32, or bf16 mixed precision.
        checkpoints: whether the blocks are checkpointed.
        whole: take the whole step too.

    Returns:
        ``kept`` for the backward pass, ``counted`` (0 both unless ``whole``), ``foretold``, and
        ``at_128``; ``weights`` of the model, and ``trained``, with gradients and moments.
    """
    import torch

    from benchmarks.common.training_steps import Workload
    from clip_randlora import RandLoRA, attach
    from clip_randlora.forward.training import training_forward
    from clip_randlora.training.memory_plan import Plan, StepMemory
    from clip_randlora.utils.tensor_memory import TensorMemory

    workload = Workload(model, images, classes, precision, "cpu")
    loaded = workload.load()
    text = workload.text(loaded)
    adapter = attach(loaded.net, RandLoRA(rank=6))

    def forward(count: int, with_text: bool) -> torch.Tensor:
        pixels = torch.zeros(count, 3, loaded.image_size, loaded.image_size)
        step = training_forward(loaded.net, adapter, checkpoints_blocks=checkpoints)
        with step, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = loaded.encode_checked(pixels)
            return features @ text.features().T if with_text else features

    def run(_: Plan, count: int) -> None:
        forward(count, with_text=True).float().sum().backward()
        for parameter in adapter.parameters():
            parameter.grad = None

    memory = StepMemory(run)
    plan = Plan(1, checkpoints)
    kept = counted = 0
    foretold = memory.peak(plan, images)
    if whole:
        with TensorMemory() as counter:
            features = forward(images, with_text=False)
            kept = counter.live
        del features
        with TensorMemory() as counter:
            run(plan, images)
        counted = counter.peak
    return {
        "kept": kept,
        "foretold": foretold,
        "counted": counted,
        "at_128": memory.peak(plan, 128),
        "weights": sum(parameter.nbytes for parameter in loaded.net.parameters()),
        "trained": 4 * sum(parameter.nbytes for parameter in adapter.parameters()),
    }
