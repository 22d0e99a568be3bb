"""``ablation``: what each optimisation of a training step saves, by leaving one out at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any
from unittest import mock

import typer

from benchmarks.common import report
from benchmarks.common.benchmark import Benchmark
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    require_known,
)
from benchmarks.common.processes import Row


@dataclass(frozen=True)
class Part:
    """An optimisation.

    Attributes:
        label: its name in tables.
        left_out: returns a context without it.
        models, precisions: those that it is for; all if empty.
    """

    label: str
    left_out: Callable[[], AbstractContextManager]
    models: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()


def _patched(target: str, value: Any) -> Callable[[], AbstractContextManager]:
    return lambda: mock.patch(target, value)


def _no_context(*_: Any, **__: Any) -> AbstractContextManager:
    return nullcontext()


def _plain_updates(weight, rows, deltas, strength, dtype):
    """Add each update, by its formula, to its own rows, then put the rows together."""
    import torch

    pieces, end = [], 0
    for run, delta in zip(rows, deltas, strict=True):
        base = weight[run]
        update = delta.update_of(base).to(weight.dtype)
        pieces += [weight[end : run.start], base + strength * update]
        end = run.stop
    pieces = [piece for piece in (*pieces, weight[end:]) if len(piece)]
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).to(dtype)


def _plain_depthwise(images, weight, bias, stride, padding):
    from torch.nn import functional as F

    return F.conv2d(F.pad(images, padding), weight, bias, stride, groups=images.shape[1])


class _PlainStrided:
    """Stands in for the function that has a backward pass of its own."""

    @staticmethod
    def apply(images, weight, bias, stride, padding):
        from torch.nn import functional as F

        return F.conv2d(images, weight, bias, stride, padding, groups=len(weight))


def _plain_attend(attention, tokens, mask):
    from torch.nn.functional import linear, scaled_dot_product_attention

    packed = linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    heads = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = scaled_dot_product_attention(*heads, attn_mask=mask)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _plain_adamw(parameters, **settings):
    import torch

    return torch.optim.AdamW(list(parameters), **settings)


_UPDATE = "clip_randlora.adapters.fast.weight_update"
_STEPS = "benchmarks.common.training_steps"
PARTS = {
    "formed-once": Part(
        "each updated weight computed once a step",
        _patched("clip_randlora.adapters.adapter.Adapter.cached_weights", _no_context),
    ),
    "one-product": Part(
        "update as one product with its own backward pass",
        _patched("clip_randlora.adapters.parametrization.add_updates", _plain_updates),
    ),
    "rows-in-cache": Part(
        "bf16 update added to a float32 weight in runs of rows",
        _patched(f"{_UPDATE}._ROWS_IN_CACHE", 10**9),
        precisions=("bf16",),
    ),
    "recompute": Part(
        "GELUs and layer norms recomputed in backward",
        _patched("clip_randlora.forward.recompute._CHEAP", ()),
    ),
    "attention": Part(
        "batch-first attention",
        _patched("clip_randlora.forward.training.batch_first_sdpa", _no_context),
    ),
    "attention-fp32": Part(
        "attention in float32 under bf16",
        _patched("clip_randlora.forward.attention._attend", _plain_attend),
        precisions=("bf16",),
    ),
    "pooled-token": Part(
        "class token alone in the last block",
        _patched("clip_randlora.forward.training.last_block_cls_only", _no_context),
        models=("ViT-B-32",),
    ),
    "trimmed-text": Part(
        "prompts trimmed to the longest",
        _patched("clip_randlora.clip.text.trim", lambda _, tokens: tokens),
    ),
    "shared-prefix": Part(
        "common prefix of the prompts encoded once",
        _patched("clip_randlora.clip.text.shared_prefix", lambda _: 0),
    ),
    "allocator": Part(
        "freed memory kept for the next step",
        _patched(f"{_STEPS}.keep_freed_memory", _no_context),
    ),
    "adamw": Part(
        "AdamW's moments made before the first step", _patched(f"{_STEPS}.make_adamw", _plain_adamw)
    ),
    "folding": Part(
        "batch norms folded into convolutions",
        _patched(f"{_STEPS}.folded_conv_bn", _no_context),
        models=("lite0",),
    ),
    "strided": Part(
        "strided depthwise convolutions' own backward pass",
        _patched("clip_randlora.forward.depthwise._StridedDepthwise", _PlainStrided),
        models=("lite0",),
        precisions=("bf16",),
    ),
    "depthwise": Part(
        "the same, and zero taps in place of padded copies",
        _patched("clip_randlora.forward.batch_norm.depthwise_conv", _plain_depthwise),
        models=("lite0",),
    ),
}


def ablation(
    part: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(PARTS)}. Default: all.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Default: ViT-B-32 and lite0.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or bf16; may be repeated. Default: both.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="In a step.")] = 32,
    classes: Annotated[int, typer.Option(min=2, help="Prompts in a step.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all rows.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 3,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Time one training step with each optimisation left out, against the step with all of them."""
    require_known("--part", part, PARTS)
    settings = {"images": images, "classes": classes, "steps": steps, "device": device}
    benchmark = Benchmark("ablation", settings, out, threads, resume)
    rows = [
        _row(of, precise, left_out, settings)
        for of in model or ("ViT-B-32", "lite0")
        for precise in precision or ("fp32", "bf16")
        for left_out in (None, *_parts_of(of, precise, part or list(PARTS)))
    ]
    found = benchmark.measure(rows, repeats)
    notes = [
        f"Random weights, both towers, {images} images, {classes} classes, RandLoRA r=6. Each row "
        f"leaves out one optimisation; ratios are to the step that has all of them, of the same "
        f"model and precision.",
    ]
    table = report.table(found, report.time_and_memory())
    figure = report.figure(found, {"seconds": "seconds a step", "memory": "peak memory, GB"})
    benchmark.publish(table, notes, figure)


def _parts_of(model: str, precision: str, parts: Sequence[str]) -> list[str]:
    """Return those of the parts that are for a model and a precision."""
    return [
        name
        for name in parts
        if model in (PARTS[name].models or (model,))
        and precision in (PARTS[name].precisions or (precision,))
    ]


def _row(model: str, precision: str, part: str | None, settings: dict[str, Any]) -> Row:
    label = {
        "left out": PARTS[part].label if part else "nothing",
        "model": model,
        "precision": precision,
    }
    return Row(
        f"{model}, {precision}, {part or 'everything on'}",
        label,
        "benchmarks.ablation:measure_without",
        {**settings, "model": model, "precision": precision, "part": part},
        group=f"{model}, {precision}",
        hidden=("peft", "transformers"),
    )


def measure_without(part: str | None, **settings: Any) -> dict[str, Any]:
    """Time training steps in this process without one of `PARTS`, or with all of them.

    ``settings`` and the result are those of `measure_step`.
    """
    from benchmarks.common.training_steps import measure_step

    with PARTS[part].left_out() if part else nullcontext():
        return measure_step("randlora", **settings, warmup=1, recorded=False)
