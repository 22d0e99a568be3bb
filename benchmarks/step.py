"""``step``: one training step, against peft, CLIP-LoRA's recipe, full fine-tuning and a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

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
from benchmarks.common.ratios import Ratio, divide
from benchmarks.common.results import Results, spread
from benchmarks.common.training_steps import (
    FIT,
    FIT_LABEL,
    GPU_WARMUP,
    ROWS,
    peft_on_transformers,
)
from clip_randlora.errors import UserError

LABELS = {name: row.label for name, row in ROWS.items()} | {FIT: FIT_LABEL}
_COLORS = {"ours": report.OURS, "peer": report.PEER, "bound": report.BOUND}
_BASE_IMAGES = 32
_NOT_NEEDED = ("peft", "transformers")  # open_clip loads the latter where it is installed
# beyond 32 images only these, unless rows are named: what line 3 of the targets compares
_LARGE_BATCH_ROWS = ("randlora", "randlora-very-sparse", "bound", "bound-tight")


@dataclass(frozen=True)
class Case:
    """What some rows have in common: the precision and the images in a step."""

    precision: str
    images: int

    def __str__(self) -> str:
        return f"{self.precision}, {self.images} images"

    def key(self, row: str) -> str:
        """Identify a row of this case."""
        return f"{row}, {self}"


@dataclass(frozen=True)
class Comparison:
    """One ratio to report: ``numerator / denominator`` of ``seconds`` or ``memory``.

    ``line`` of the targets it belongs to, if any; ``targets`` by `Case`.
    """

    line: str
    numerator: str
    denominator: str
    quantity: str
    targets: Mapping[Case, float]
    strictly: bool = False

    def of(self, found: Mapping[str, Mapping[str, Any]], case: Case) -> Ratio:
        """Return the ratio in one case."""
        parts = [found.get(case.key(name), {}) for name in (self.numerator, self.denominator)]
        what = "step time" if self.quantity == "seconds" else "peak memory"
        return Ratio(
            f"{what}: {LABELS[self.numerator]} / {LABELS[self.denominator]}; {case}",
            divide(*(part.get(self.quantity) for part in parts)),
            self.targets.get(case),
            strictly=self.strictly,
        )


_FP32, _BF16, _FP32_128 = Case("fp32", 32), Case("bf16", 32), Case("fp32", 128)
_BOTH = (_FP32, _BF16)

COMPARISONS = (
    Comparison("1", "randlora", "peft-randlora", "seconds", {_FP32: 0.25, _BF16: 0.30}),
    Comparison("1", "randlora", "peft-randlora", "memory", dict.fromkeys(_BOTH, 0.35)),
    Comparison("2", "randlora", "clip-lora", "seconds", {_FP32: 0.50, _BF16: 0.45}),
    Comparison("2", "randlora", "lora", "seconds", dict.fromkeys(_BOTH, 1.35)),
    Comparison("3", "randlora", "bound", "seconds", {_FP32: 1.7, _FP32_128: 1.55}),
    Comparison("4", "randlora-r2", "randlora-r32", "seconds", dict.fromkeys(_BOTH, 1.25)),
    Comparison("4", "peft-randlora-r2", "peft-randlora-r32", "seconds", {}),
    Comparison("5", "randlora-very-sparse", "randlora", "seconds", dict.fromkeys(_BOTH, 1.0)),
    Comparison(
        "5", "randlora-very-sparse", "randlora", "memory", dict.fromkeys(_BOTH, 1.0), strictly=True
    ),
    Comparison("", "randlora-sparse", "randlora", "seconds", {}),
    Comparison("", "randlora-very-sparse", "bound", "seconds", {}),
    Comparison("", "randlora", "bound-tight", "seconds", {}),
    Comparison("", "randlora-very-sparse", "bound-tight", "seconds", {}),
    Comparison("", "randlora", "peft-randlora-trimmed", "seconds", {}),
    Comparison("", "randlora", "peft-randlora-trimmed", "memory", {}),
    Comparison("", "randlora", "peft-lora", "seconds", {}),
    Comparison("", "randlora", "peft-lora-trimmed", "seconds", {}),
    Comparison("", "randlora", "full", "seconds", {}),
    Comparison("", FIT, "randlora", "seconds", {}),
)
"""The ratios that have a target, by its line, and others that put them in context."""


def step(
    row: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(LABELS)}. Default: all.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or bf16; may be repeated. Default: both.")
    ] = None,
    images: Annotated[
        list[int] | None,
        typer.Option(
            help="In a step; may be repeated. Default: 32, and in fp32 also 128; beyond 32 only "
            f"for {', '.join(_LARGE_BATCH_ROWS)}, unless rows are named."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Prompts in a step.")] = 100,
    model: Annotated[str, typer.Option(help="open_clip name or folder of a ViT.")] = "ViT-B-32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all rows.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed in each round.")] = 3,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before those, not timed.")] = 1,
    plain_malloc: Annotated[
        bool,
        typer.Option(
            "--plain-malloc",
            help="Do not keep freed memory in the rows of this project and of the bound: what "
            "`fit` gains by that is left out.",
        ),
    ] = False,
    plain_launches: Annotated[
        bool,
        typer.Option(
            "--plain-launches",
            help="Do not record the steps of this project's rows as a CUDA graph, as `fit` does.",
        ),
    ] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """One training step of both towers: q k v out mlp, random weights, offline."""
    _require_known("--row", row, LABELS)
    _require_known("--precision", precision, ("fp32", "bf16"))
    workload = {
        "model": model,
        "classes": classes,
        "warmup": warmup,
        "steps": steps,
        "device": device,
    }
    threads = threads_of(threads)
    ours = {"plain_malloc": plain_malloc, "recorded": not plain_launches}
    settings = {**workload, **ours, "threads": threads, "repeats": repeats}
    results = Results("step", folder_of("step", out), settings, resume)
    rows = [_row(name, case, workload, ours) for case, name in plan(row, precision, images)]
    measure_rounds(rows, repeats, results, lambda one: run_row(one, threads), _progress)
    found = summarize(results)
    compared = compare(found)
    report.publish(
        results,
        threads,
        [_table(found), *([report.ratio_table(compared)] if compared else [])],
        _notes(found, settings),
        _figure(found),
        {
            "rows": list(found.values()),
            "ratios": [{"line": line, **ratio.as_json()} for line, ratio in compared],
        },
    )


def plan(
    rows: Sequence[str] | None, precisions: Sequence[str] | None, images: Sequence[int] | None
) -> list[tuple[Case, str]]:
    """List what to measure: all rows at 32 images, at more only what the targets compare."""
    chosen = []
    for precision in precisions or ("fp32", "bf16"):
        for count in images or ((32, 128) if precision == "fp32" else (32,)):
            usual = LABELS if count <= _BASE_IMAGES else _LARGE_BATCH_ROWS
            chosen += [(Case(precision, count), name) for name in rows or usual]
    return chosen


def _require_known(option: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in given or ():
        if name not in known:
            raise UserError(f"{option} {name}: one of {', '.join(known)}")


def _row(name: str, case: Case, workload: Mapping[str, Any], ours: Mapping[str, bool]) -> Row:
    settings = {**workload, "images": case.images, "precision": case.precision}
    if name == FIT:  # the allocator is its own affair
        function = "benchmarks.common.training_steps:measure_fit"
        return Row(case.key(name), function, settings, _NOT_NEEDED)
    settings |= {"row": name, **ours}
    hidden = () if ROWS[name].build is peft_on_transformers else _NOT_NEEDED
    function = "benchmarks.common.training_steps:measure_step"
    return Row(case.key(name), function, settings, hidden)


def _progress(result: Mapping[str, Any]) -> str:
    memory = result.get("peak_cuda_bytes") or result["peak_memory_bytes"]
    return f"{report.seconds(spread(result['seconds']))} s, {report.gigabytes(memory)} GB"


def summarize(results: Results) -> dict[str, dict[str, Any]]:
    """Put the rounds of each row together.

    Returns:
        By row key: ``name``, ``precision``, ``images`` and either ``failed``, the reason, or
        `spread`s of ``seconds`` (over all timed steps) and of ``resident``, ``cuda`` and
        ``memory`` bytes (over the rounds; the last is CUDA's where there is one).
    """
    found = {}
    for sample in results.samples:
        key, settings = sample["row"], sample["settings"]
        if key in found:
            continue
        found[key] = {
            "name": settings.get("row", FIT),
            "precision": settings["precision"],
            "images": settings["images"],
        }
        rounds = results.of(key)
        if not rounds:
            found[key]["failed"] = results.failure(key)
            continue
        found[key] |= {
            "seconds": spread(second for one in rounds for second in one["seconds"]),
            "resident": spread(one["peak_memory_bytes"] for one in rounds),
            "trained": rounds[0]["trained"],
            "text_tokens": rounds[0]["text_tokens"],
            "device": rounds[0]["device"],
        }
        if rounds[0]["device"].startswith("cuda"):
            found[key]["cuda"] = spread(one["peak_cuda_bytes"] for one in rounds)
        found[key]["memory"] = found[key].get("cuda", found[key]["resident"])
    return found


def compare(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Ratio]]:
    """Return ``(line, ratio)`` of every comparison that was measured.

    Those with a target are there, too, if only one of the two was.
    """
    cases = dict.fromkeys(Case(row["precision"], row["images"]) for row in found.values())
    compared = []
    for comparison in COMPARISONS:
        for case in cases:
            ratio = comparison.of(found, case)
            touched = {case.key(comparison.numerator), case.key(comparison.denominator)}
            if ratio.value is not None or (ratio.target is not None and touched & found.keys()):
                compared.append((comparison.line, ratio))
    return compared


def _by_case(found: Mapping[str, Mapping[str, Any]]) -> dict[Case, list[Mapping[str, Any]]]:
    """Sort the rows by case, and within one in the order of the labels."""
    order = list(LABELS)
    cases: dict[Case, list[Mapping[str, Any]]] = {}
    for row in found.values():
        cases.setdefault(Case(row["precision"], row["images"]), []).append(row)
    for rows in cases.values():
        rows.sort(key=lambda row: order.index(row["name"]))
    return cases


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    has_cuda = any("cuda" in row for row in found.values())
    columns = ["one training step", "precision", "images", "seconds: median (min - max)"]
    columns += ["of RandLoRA r=6", "peak resident GB", *(["peak CUDA GB"] if has_cuda else [])]
    columns += ["trained numbers", "text tokens"]
    lines = []
    for case, rows in _by_case(found).items():
        ours = found.get(case.key("randlora"), {}).get("seconds")
        for row in rows:
            start = [LABELS[row["name"]], case.precision, str(case.images)]
            if "failed" in row:
                lines.append([*start, f"failed: {row['failed']}", *[""] * (len(columns) - 4)])
                continue
            relative = divide(row["seconds"], ours)
            cuda = [report.gigabytes(row["cuda"]["median"])] if "cuda" in row else [""]
            lines.append(
                [
                    *start,
                    report.seconds(row["seconds"]),
                    f"{relative:.2f}" if relative else "",
                    report.gigabytes(row["resident"]["median"]),
                    *(cuda if has_cuda else []),
                    f"{row['trained']:,}" if row["trained"] else "none",
                    str(row["text_tokens"]),
                ]
            )
    return report.markdown_table(columns, lines)


def _notes(found: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    kept = "nobody's" if settings["plain_malloc"] else "this project's rows' and the bound's"
    counts = sorted({row["seconds"]["count"] for row in found.values() if "seconds" in row})
    on_gpu = any("cuda" in row for row in found.values())
    warmup = max(settings["warmup"], GPU_WARMUP) if on_gpu else settings["warmup"]
    notes = [
        f"{settings['model']} with random weights, {settings['classes']} classes, both towers; a "
        f"step is forward, cross entropy, backward and AdamW, on images that are on the device. "
        f"Every row ran in processes of its own, in interleaved rounds; medians over "
        f"{' or '.join(map(str, counts)) or 'no'} timed steps after {warmup} of "
        f"warm-up in each process, with smallest and largest.",
        "peft and CLIP-LoRA's recipe: transformers' CLIPModel of the same sizes and activation, "
        "text padded to the context length as CLIP's users pad it unless the row says trimmed; "
        "this project, full fine-tuning and the bound use open_clip's model and trimmed text, and "
        "run without transformers, as after `pip install clip-randlora`.",
        "bf16 is autocast over fp32 weights, but for the bound, whose frozen weights are bf16.",
        f"Freed memory is kept for the next step, as `fit` does it on CPUs, in {kept} processes.",
    ]
    if on_gpu and settings["recorded"]:
        notes[-1] = "This project's steps are recorded as a CUDA graph, as `fit` does it on GPUs."
    return notes


def _figure(found: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    measured = {key: row for key, row in found.items() if "seconds" in row}
    cases = _by_case(measured)
    if not cases:
        return None
    heights = [len(rows) + 1.6 for rows in cases.values()]
    figure = Figure(figsize=(13, 0.8 + 0.3 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(cases), 2, squeeze=False, height_ratios=heights)
    for (case, rows), (times, memory) in zip(cases.items(), grid, strict=True):
        labels = [LABELS[row["name"]].replace("`", "") for row in rows]
        colors = [_COLORS[ROWS[r["name"]].owner if r["name"] in ROWS else "ours"] for r in rows]
        report.bars(times, labels, [row["seconds"] for row in rows], colors, "seconds a step")
        held = [{k: v / 1e9 for k, v in row["memory"].items()} for row in rows]
        report.bars(memory, [""] * len(rows), held, colors, "peak memory, GB")
        times.set_title(str(case), loc="left", fontsize=10, fontweight="bold")
    return figure
