"""``ablation``: what each optimisation of a training step saves, by leaving one out at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from unittest import mock

import typer

from benchmarks.common import report
from benchmarks.common.options import (
    DeviceOption,
    OutOption,
    ResumeOption,
    ThreadsOption,
    folder_of,
    threads_of,
)
from benchmarks.common.processes import Row, measure_rounds, run_row
from benchmarks.common.ratios import divide
from benchmarks.common.results import Results, spread

_EVERYTHING = "everything on"


@dataclass(frozen=True)
class Part:
    """An optimisation: what tables call it, and what leaves it out.

    ``bases`` is the distribution of RandLoRA's bases that it is for; ``models`` those that have
    what it makes faster, all if empty; ``precisions`` likewise.
    """

    label: str
    left_out: Callable[[], AbstractContextManager]
    bases: str = "uniform"
    models: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()


def _patched(target: str, value: Any) -> Callable[[], AbstractContextManager]:
    return lambda: mock.patch(target, value)


def _no_context(*_: Any, **__: Any) -> AbstractContextManager:
    return nullcontext()


def _plain_updates(weight, rows, deltas, strength, dtype):
    """Add each update to its own rows, then put the rows together."""
    import torch

    pieces, end = [], 0
    for run, delta in zip(rows, deltas, strict=True):
        pieces += [weight[end : run.start], weight[run] + strength * delta().to(weight.dtype)]
        end = run.stop
    pieces = [piece for piece in (*pieces, weight[end:]) if len(piece)]
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).to(dtype)


def _plain_depthwise(images, weight, bias, stride, padding):
    from torch.nn import functional as F

    return F.conv2d(F.pad(images, padding), weight, bias, stride, groups=images.shape[1])


class _PlainStrided:
    """In place of the function that has a backward pass of its own."""

    @staticmethod
    def apply(*arguments):
        from clip_randlora.forward import depthwise

        return depthwise._convolve(*arguments)


def _plain_attend(attention, tokens, mask):
    from torch.nn.functional import linear, scaled_dot_product_attention

    packed = linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    heads = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = scaled_dot_product_attention(*heads, attn_mask=mask)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _plain_adamw(parameters, **settings):
    import torch

    return torch.optim.AdamW(list(parameters), **settings)


_ADAPTER = "clip_randlora.adapters.adapter"
PARTS = {
    "formed-once": Part(
        "each weight formed once a step", _patched(f"{_ADAPTER}.Adapter.formed_once", _no_context)
    ),
    "packed": Part(
        "update added to packed q, k, v in place",
        _patched(f"{_ADAPTER}.add_updates", _plain_updates),
    ),
    "short-gradients": Part(
        "factored gradients of linear layers",
        _patched(f"{_ADAPTER}.Adapter.short_gradients", _no_context),
    ),
    "short-gradients-sparse": Part(
        "factored gradients of linear layers, very sparse bases",
        _patched(f"{_ADAPTER}.Adapter.short_gradients", _no_context),
        bases="very_sparse",
        models=("ViT-B-32",),
    ),
    "row-loop": Part(
        "row by row on CPUs", _patched("clip_randlora.adapters.randlora._STEPWISE_ON", ())
    ),
    "compressed": Part(
        "compressed rows, very sparse bases",
        _patched("clip_randlora.adapters.fast.basis_matmul._DENSEST_COMPRESSED", 0.0),
        bases="very_sparse",
    ),
    "formed-again": Part(
        "weights formed again in backward, very sparse bases",
        _patched("clip_randlora.adapters.randlora.RandLoRADelta.is_cheap", lambda *_: False),
        bases="very_sparse",
        models=("ViT-B-32",),
    ),
    "recompute": Part(
        "GELUs and layer norms computed again in backward",
        _patched("clip_randlora.forward.recompute._CHEAP", ()),
    ),
    "attention": Part(
        "batch-first attention",
        _patched("clip_randlora.training.trainer.direct_self_attention", _no_context),
    ),
    "attention-fp32": Part(
        "attention in float32 under bf16",
        _patched("clip_randlora.forward.attention._attend", _plain_attend),
        precisions=("bf16",),
    ),
    "pooled-token": Part(
        "class token alone in the last block",
        _patched("clip_randlora.training.trainer.pooled_token_only", _no_context),
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
        _patched("benchmarks.common.training_steps.freed_memory_kept", _no_context),
    ),
    "adamw": Part(
        "AdamW's moments made before the first step",
        _patched("benchmarks.common.training_steps.adamw", _plain_adamw),
    ),
    "folding": Part(
        "batch norm folded into convolutions",
        _patched("benchmarks.ablation._folded", _no_context),
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
    settings = {"images": images, "classes": classes, "steps": steps, "device": device}
    threads = threads_of(threads)
    results = Results(
        "ablation",
        folder_of("ablation", out),
        {**settings, "threads": threads, "repeats": repeats},
        resume,
    )
    cases = [
        (name, of, without)
        for name in model or ("ViT-B-32", "lite0")
        for of in precision or ("fp32", "bf16")
        for without in _plan(name, of, part or list(PARTS))
    ]
    rows = [
        Row(
            _key(name, of, *without),
            "benchmarks.ablation:measure_without",
            {**settings, "model": name, "precision": of, "bases": without[0], "part": without[1]},
            ("peft", "transformers"),
        )
        for name, of, without in cases
    ]
    measure_rounds(rows, repeats, results, lambda row: run_row(row, threads), _progress)
    found = _summarize(results, cases)
    report.publish(
        results,
        threads,
        [_table(found)],
        [
            f"Random weights, both towers, {images} images, {classes} classes, RandLoRA r=6. Each "
            f"row leaves out one optimisation. Its time and memory are those without it, divided "
            f"by those of the step that has all of them and the same bases.",
        ],
        None,
        {"rows": found},
    )


def _key(model: str, precision: str, bases: str, part: str | None) -> str:
    return f"{model}, {precision}, {bases}, {part or _EVERYTHING}"


def _plan(model: str, precision: str, parts: Sequence[str]) -> list[tuple[str, str | None]]:
    """List ``(bases, part)`` to measure for a model, the step with everything on first."""
    chosen = [
        (PARTS[name].bases, name)
        for name in parts
        if model in (PARTS[name].models or (model,))
        and precision in (PARTS[name].precisions or (precision,))
    ]
    return [(bases, None) for bases in dict.fromkeys(b for b, _ in chosen)] + chosen


def measure_without(
    part: str | None,
    model: str,
    precision: str,
    bases: str,
    images: int,
    classes: int,
    steps: int,
    device: str | None = None,
) -> dict[str, Any]:
    """Time training steps in this process without one of `PARTS`, or with all of them.

    Returns:
        ``seconds`` of every timed step.
    """
    from benchmarks.common import training_steps

    left_out = PARTS[part].left_out if part else nullcontext
    with left_out():
        row = training_steps.StepRow(
            "", "ours", _adapted, {"config": {"method": "randlora", "rank": 6, "bases": bases}}
        )
        with mock.patch.dict(training_steps.ROWS, {"": row}):
            measured = training_steps.measure_step(
                "", model, images, classes, precision, 1, steps, device, recorded=False
            )
    return {"seconds": measured["seconds"], "device": measured["device"]}


def _adapted(workload: Any, config: Mapping[str, Any]) -> Any:
    """Set up what `clip_randlora.fit` runs: the bench's step, with batch norms folded."""
    import torch

    import clip_randlora as cr
    from benchmarks.common.training_steps import Setup
    from clip_randlora.training.trainer import training_forward

    model = workload.load()
    model.net.eval()
    adapter = cr.attach(model.net, cr.TrainConfig.parse({"method": config}).method)
    text, images = workload.text(model), workload.pixels(model)

    @contextmanager
    def forward() -> Iterator[None]:
        with _folded(model), training_forward(model.net, adapter):
            yield

    torch.manual_seed(0)
    return Setup(
        logits=lambda: model.logit_scale() * model.encode_image(images) @ text.features().T,
        parameters=adapter.parameters(),
        text_tokens=text.tokens.shape[1],
        forward_context=forward,
    )


def _folded(model: Any) -> AbstractContextManager:
    from clip_randlora.forward.batch_norm import find_pairs, folded

    return folded(_pairs_of(model, find_pairs))


def _pairs_of(model: Any, find: Callable[[Any], list], kept: dict[int, list] = {}) -> list:  # noqa: B006
    if id(model) not in kept:
        kept[id(model)] = find(model)
    return kept[id(model)]


def _progress(result: Mapping[str, Any]) -> str:
    memory = result.get("peak_cuda_bytes") or result["peak_memory_bytes"]
    return f"{report.seconds(spread(result['seconds']))} s, {report.gigabytes(memory)} GB"


def _summarize(results: Results, cases: Sequence[tuple]) -> list[dict[str, Any]]:
    measured = partial(_measured, results)
    found = []
    for model, precision, (bases, part) in cases:
        row = {"model": model, "precision": precision, "bases": bases, "part": part}
        row |= measured(_key(model, precision, bases, part))
        whole = measured(_key(model, precision, bases, None))
        for quantity in ("seconds", "memory"):
            row[f"{quantity}_ratio"] = divide(row.get(quantity), whole.get(quantity))
        found.append(row)
    return found


def _measured(results: Results, key: str) -> dict[str, Any]:
    rounds = results.of(key)
    if not rounds:
        return {"failed": results.failure(key)}
    memory = "peak_cuda_bytes" if "peak_cuda_bytes" in rounds[0] else "peak_memory_bytes"
    return {
        "seconds": spread(second for one in rounds for second in one["seconds"]),
        "memory": spread(one[memory] for one in rounds),
    }


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        "left out",
        "model",
        "precision",
        "seconds: median (min - max)",
        "of the whole step's",
    )
    columns += ("peak GB", "of the whole step's")
    lines = []
    for row in found:
        label = PARTS[row["part"]].label if row["part"] else f"nothing, {row['bases']} bases"
        start = [label, row["model"], row["precision"]]
        if "seconds" not in row:
            lines.append([*start, f"failed: {row['failed']}", "", "", ""])
            continue
        time, memory = row["seconds_ratio"], row["memory_ratio"]
        lines.append(
            [
                *start,
                report.seconds(row["seconds"]),
                f"{time:.2f}" if time else "",
                report.gigabytes(row["memory"]["median"]),
                f"{memory:.2f}" if memory else "",
            ]
        )
    return report.markdown_table(columns, lines, 3)
