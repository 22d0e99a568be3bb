"""The report as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from clip_randlora.report.results import Entry, ModelResults, Results, best
from clip_randlora.utils.progress import format_seconds

TITLE = "# Sweep"
AVERAGE = "average"
_FIELDS = (
    *("model", "data", "method", "shots", "top1_mean", "top1_std", "zero_shot", "gap_closed"),
    *("trainable_parameters", "train_seconds", "finished", "failed", "missing"),
)
_EXPLANATION = """\
Top-1 accuracy on the test images in percent: mean ± standard deviation over seeds (n - 1).
**Bold**: the best of its column, where its mean is above the second's by more than the sum of both
standard deviations; where either has fewer than two seeds, nothing is bold. Zero-shot needs no
training images: it is run once and stands in every column. (2 of 3): so many seeds finished, the
others failed or are missing."""


def as_markdown(results: Results, figures: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Write the tables, what failed and what is missing, the notes, and show the figures."""
    parts = [TITLE, _EXPLANATION, _what_varies(results)]
    for model in results.models:
        parts += _of_model(model)
    parts += [f"![{name.removesuffix('.png').replace('-', ' ')}]({name})" for name in figures]
    parts += notes
    if results.failed:
        rows = [[name, reason.replace("|", "\\|")] for name, reason in results.failed.items()]
        parts += [
            "## Failed",
            "The next start of the sweep tries them again.",
            _table(["cell", "reason"], rows),
        ]
    if results.missing:
        parts += ["## Missing", "\n".join(f"- {name}" for name in results.missing)]
    return "\n\n".join(parts) + "\n"


def _what_varies(results: Results) -> str:
    """Say what the seeds of a table's place differ in."""
    varies = ["the draw of the training images", "their order", "their augmentation"]
    if results.open_seeds:
        varies.append("the method's own random start and bases")
    sentences = [f"Seeds vary {', '.join(varies[:-1])} and {varies[-1]}."]
    for label, (concerned, seeds) in results.fixed_seeds.items():
        which = f" of seed{'s' * (len(concerned) > 1)} {', '.join(map(str, concerned))}"
        sentences.append(
            f"{label}: its cells{which * (label in results.open_seeds)} have the method's own seed "
            f"fixed at {', '.join(map(str, seeds))}, so its random start and bases do not vary."
        )
    return " ".join(sentences)


def as_csv(results: Results) -> str:
    """Write one row for each model, data set, method and number of shots; shares from 0 to 1."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    for model in results.models:
        for data in [*model.datasets, AVERAGE]:
            for method in model.methods:
                for shots in model.shots:
                    entry = _entry(model, data, method, shots)
                    gap = model.gap_closed(method, shots) if data == AVERAGE else None
                    writer.writerow(
                        [model.model, data, method, shots, entry.mean, entry.spread]
                        + [entry.mean_of("zero_shot"), gap]
                        + [entry.mean_of(key) for key in ("parameters", "train_seconds")]
                        + [len(entry.measured), entry.failed, entry.missing]
                    )
    return text.getvalue()


def _of_model(model: ModelResults) -> list[str]:
    parts = [f"## {model.model}"]
    for data in [*model.datasets, *([AVERAGE] if len(model.datasets) > 1 else [])]:
        title = f"{AVERAGE} over the data sets" if data == AVERAGE else data
        parts += [f"### {title}", _accuracies(model, data)]
    if model.full is not None:
        parts += [
            "### Gap to full fine-tuning closed",
            "Share of the way from zero-shot to full fine-tuning, (m - z) / (f - z) of the averages"
            " over the data sets, in percent; none where full fine-tuning is not above zero-shot.",
            _table(["method", *_columns(model)], _gaps(model)),
        ]
    parts += [
        "### Cost",
        "Trained numbers, and the training's time as the mean over data sets and seeds.",
        _table(["method", "trained numbers", *_columns(model)], _costs(model)),
    ]
    return parts


def _accuracies(model: ModelResults, data: str) -> str:
    columns = [[_entry(model, data, m, shots) for m in model.methods] for shots in model.shots]
    standing_out = [best(column) for column in columns]
    rows = [
        [method]
        + [
            _show(column[row], bold=row == stands)
            for column, stands in zip(columns, standing_out, strict=True)
        ]
        for row, method in enumerate(model.methods)
    ]
    return _table(["method", *_columns(model)], rows)


def _entry(model: ModelResults, data: str, method: str, shots: int | str) -> Entry:
    if data == AVERAGE:
        return model.average(method, shots)
    return model.entry(data, method, shots)


def _show(entry: Entry, bold: bool) -> str:
    if entry.mean is None:
        if entry.failed:
            return f"failed ({entry.failed})" if entry.failed > 1 else "failed"
        return "missing" if entry.missing else ""
    text = f"{entry.mean * 100:.1f}"
    if entry.spread is not None and list(entry.measured) != [None]:
        text += f" ± {entry.spread * 100:.1f}"
    if bold:
        text = f"**{text}**"
    if not entry.is_complete:
        done = len(entry.measured)
        text += f" ({done} of {done + entry.failed + entry.missing})"
    return text


def _gaps(model: ModelResults) -> list[list[str]]:
    rows = []
    for method in model.methods:
        gaps = [model.gap_closed(method, shots) for shots in model.shots]
        rows.append([method, *("" if gap is None else f"{gap * 100:.0f}" for gap in gaps)])
    return rows


def _costs(model: ModelResults) -> list[list[str]]:
    rows = []
    for method in model.methods:
        entries = {
            shots: [model.entry(data, method, shots) for data in model.datasets]
            for shots in model.shots
        }
        counts = sorted(
            {
                run.parameters
                for column in entries.values()
                for entry in column
                for run in entry.measured.values()
            }
        )
        numbers = " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
        times = []
        for column in entries.values():
            seconds = [run.train_seconds for entry in column for run in entry.measured.values()]
            times.append(format_seconds(sum(seconds) / len(seconds)) if seconds else "")
        rows.append([method, numbers, *times])
    return rows


def _columns(model: ModelResults) -> list[str]:
    return [
        "all images" if shots == "all" else f"{shots} shot{'s' * (shots != 1)}"
        for shots in model.shots
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
