"""The command ``clip-randlora``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clip_randlora.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    from clip_randlora.adapters import Adapter
    from clip_randlora.data import Data, Description, Split
    from clip_randlora.training import Run, Step, TrainConfig

app = typer.Typer(
    name="clip-randlora",
    help="Teach CLIP your own classes from a handful of images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
results, messages = Console(soft_wrap=True, highlight=False), Console(stderr=True, highlight=False)

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="Folder of class folders, .zip, a data set's name or its YAML file."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
ModelOption = Annotated[
    str, typer.Option(help="lite0, an open_clip name, hf-hub:ORG/REPO or a local folder.")
]
PretrainedOption = Annotated[
    str | None,
    typer.Option(help="Tag or checkpoint file; `none` for random weights. Default: see `models`."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cuda, mps or cpu. Default: the best here.")]
_INTERRUPTED = 130
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/demo.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of shots and the training.")] = 1,
    device: DeviceOption = None,
) -> None:
    """Teach the bundled model the bundled drawings, offline, and compare."""
    out = out or _free_folder(Path("runs") / "demo")
    _train("clipart", None, "lite0", None, {"seed": seed}, out, device, resume=False)


@app.command()
def train(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder to write the run to.")],
    test: Annotated[
        str | None, typer.Option(help="Test images, in the same forms as DATA.")
    ] = None,
    model: ModelOption = "lite0",
    pretrained: PretrainedOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="randlora (default), lora, clip_lora, vera, nola, full, linear_probe, zero_shot."
        ),
    ] = None,
    shots: Annotated[
        str | None, typer.Option(help="Images per class, or `all`. Default: 16.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the draw of shots and the training. Default: 1.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="fast, balanced or thorough. Default: balanced.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML of settings; options on this line win.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of each base (RandLoRA), or of the update.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="The update is scaled by alpha / rank.")
    ] = None,
    towers: Annotated[str | None, typer.Option(help="vision, text or vision,text.")] = None,
    targets: Annotated[str | None, typer.Option(help="Any of q,k,v,out,mlp,conv.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Adapt only the last K blocks.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. Default: by images.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak. Default: by method.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt template with one {}; may be repeated.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    device: DeviceOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
) -> None:
    """Teach a model your classes, compare it with zero-shot, save the run."""
    settings = _read_preset(preset) | _read_settings(config)
    adapter = {
        "method": method,
        "rank": rank,
        "alpha": alpha,
        "towers": towers and towers.split(","),
        "targets": targets and targets.split(","),
        "blocks": blocks,
    }
    chosen = {
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "templates": template,
        "precision": precision,
    }
    settings |= {key: value for key, value in chosen.items() if value is not None}
    if shots is not None:
        settings["shots"] = _parse_shots(shots)
    adapter = {key: value for key, value in adapter.items() if value is not None}
    if adapter:
        settings["method"] = _merge_method(settings.get("method"), adapter)
    _train(data, test, model, pretrained, settings, out, device, resume)


@app.command("eval")
def evaluate(
    run: RunArgument,
    data: DataArgument,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare zero-shot and tuned on labelled images."""
    with _loading():
        from clip_randlora.classifier import Classifier
        from clip_randlora.data import load_data, summarize_skipped
        from clip_randlora.evaluation import as_mapping, predict_split, score

        classifier = Classifier.load(run, device=device)
        labelled = load_data(data)
        split = _relabel(_all_or_test(run, data, labelled), classifier.classes, data)
    predictions = predict_split(classifier.side_by_side(), split)
    skipped = [*labelled.skipped, *predictions.skipped]
    metrics = score(predictions) | {"images": len(predictions.names), "skipped": len(skipped)}
    if skipped:
        messages.print(summarize_skipped(skipped), markup=False)
    if not as_json:
        _print_metrics(metrics)
        return
    metrics["predictions"] = [
        {
            "image": name,
            "label": classifier.classes[label],
            "zero_shot": as_mapping(classifier.classes, zero_shot),
            "tuned": as_mapping(classifier.classes, tuned),
        }
        for name, label, zero_shot, tuned in zip(
            predictions.names,
            predictions.labels.tolist(),
            predictions.zero_shot,
            predictions.tuned,
            strict=True,
        )
    ]
    print(json.dumps(metrics, ensure_ascii=False))


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    strength: Annotated[float, typer.Option(help="0: zero-shot, 1: tuned.")] = 1.0,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the answers side by side to this PNG.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images, zero-shot and tuned side by side."""
    with _loading():
        from clip_randlora.classifier import Classifier

        classifier = Classifier.load(run, strength=strength, device=device)
    answers = classifier.predict(images)
    if figure:
        from clip_randlora import figures
        from clip_randlora.data import decode_image

        opened = [decode_image(image) for image in images]
        figures.save(figures.side_by_side(opened, answers, [None] * len(opened)), figure)
    if as_json:
        rows = [
            {"image": str(image), **answer} for image, answer in zip(images, answers, strict=True)
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("image", "zero-shot", "tuned")
    for image, answer in zip(images, answers, strict=True):
        table.add_row(*map(escape, [str(image), _top(answer["zero_shot"]), _top(answer["tuned"])]))
    results.print(table)


@app.command()
def export(
    run: RunArgument,
    format: Annotated[
        str, typer.Option(help="adapter, open_clip, transformers, peft, onnx or head.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    strength: Annotated[float, typer.Option(help="0: zero-shot, 1: tuned.")] = 1.0,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 for onnx.")] = "fp32",
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Another run on the same base, to add; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Factors of RUN and of each --add, as 0.7,0.3. Default: the average."),
    ] = None,
    push_to: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Also upload to the Hugging Face hub.")
    ] = None,
) -> None:
    """Write the tuned model for another library, checked by loading it back."""
    with _loading():
        from clip_randlora.export import export_run, push, require_token
    if push_to:
        require_token()
    factors = _parse_weights(weights)
    with messages.status("exporting, then loading it back"):
        export_run(
            run,
            format,
            out,
            strength=strength,
            precision=precision,
            add=add or (),
            weights=factors,
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    results.print(
        f"Saved to {out}, {size / 1e6:.1f} MB; README.md there says how to load it", markup=False
    )
    if push_to:
        with messages.status("uploading"):
            address = push(out, push_to)
        results.print(f"Uploaded to {address}", markup=False)


@app.command()
def models() -> None:
    """List the models, with the weights that each gets by default."""
    with _loading():
        import open_clip

        from clip_randlora.models import BUNDLED, default_pretrained
    table = Table("model", "default weights", "other weights")
    for name in BUNDLED:
        table.add_row(name, "bundled, offline", "")
    for name in open_clip.list_models():
        default = default_pretrained(name)
        others = [tag for tag in open_clip.list_pretrained_tags_by_model(name) if tag != default]
        table.add_row(name, default or "none: give a file", ", ".join(others))
    results.print(table)
    results.print("Also: hf-hub:ORG/REPO, and folders with an open_clip_config.json.")


@app.command()
def datasets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, or a YAML file.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch it.")] = False,
) -> None:
    """List the data sets and what is on disk; show one; download one."""
    if name is None:
        if download:
            raise UserError("--download: name the data set")
        _list_datasets()
        return
    with _loading():
        from clip_randlora.data import DATASETS, find_description
        from clip_randlora.data.download import download as fetch
    if name in DATASETS:
        results.print(f"{name}: {DATASETS[name].description}; bundled, nothing to download")
        return
    description = find_description(name)
    if download:
        fetch(description)
    _show_dataset(description)


@app.command()
def sweep(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="YAML of the sweep, or a name of configs/sweeps."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep; the same one goes on with it.")],
    data: Annotated[
        list[str] | None, typer.Option(help="One more data set; may be repeated.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster. Default: one on this machine.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Run data sets x methods x shots x seeds; finished cells are never run again."""
    with _loading():
        from clip_randlora.sweep import Stopped, read_sweep, run_sweep

        settings = read_sweep(config, data or ())
    try:
        progress = run_sweep(
            settings, out, engine=engine, address=address, device=device, console=messages
        )
    except Stopped as stop:
        _fail(
            _INTERRUPTED,
            f"interrupted: {stop.left} cells left, finished ones are in {out}; run the same "
            f"command to go on",
        )
    results.print(
        f"{len(progress.done)} cells finished, {len(progress.failed)} failed: {out}", markup=False
    )
    if progress.failed:
        results.print("Failed cells are tried again when the same command is run.")
    results.print(f"clip-randlora report {out}", markup=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: DIR/report.")
    ] = None,
) -> None:
    """Write a sweep's tables (report.md, report.csv) and figures."""
    with _loading():
        from clip_randlora.report import write_report

        written = write_report(folder, out)
    results.print(f"Saved {written}", markup=False)


@app.command("app")
def browser_app(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.")] = 7860,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="Ask for these.")
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(help="Size of one upload, megabytes.")] = 200,
    max_images: Annotated[int, typer.Option(help="Images that one person may gather.")] = 5000,
    max_train_minutes: Annotated[
        float, typer.Option(help="A longer training is stopped; what it learned is kept.")
    ] = 30,
    keep_hours: Annotated[
        float, typer.Option(help="Delete images and runs so long after their last use.")
    ] = 24,
    folder: Annotated[
        Path | None, typer.Option(help="Where images and runs are kept. Default: a cache folder.")
    ] = None,
    device: DeviceOption = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser, too.")] = False,
) -> None:
    """Open the app for the browser: gather, train, compare, take away."""
    with _loading():
        from clip_randlora_app import Settings, launch
        from clip_randlora_app.settings import default_folder

        from clip_randlora.models import find_device

        settings = Settings(
            folder=(folder or default_folder()).resolve(),
            max_upload_mb=max_upload_mb,
            max_images=max_images,
            max_train_minutes=max_train_minutes,
            keep_hours=keep_hours,
            device=str(find_device(device)),
        )
    launch(settings, host, port, _parse_auth(auth), open_browser)


def _parse_auth(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    user, separator, password = auth.partition(":")
    if not (user and separator and password):
        raise UserError("--auth: give it as user:password")
    return user, password


def _train(
    data: str,
    test: str | None,
    model: str,
    pretrained: str | None,
    settings: dict[str, Any],
    out: Path,
    device: str | None,
    resume: bool,
) -> None:
    with _loading():
        from clip_randlora.data import load_data
        from clip_randlora.models import DEFAULT_TAG, load_model
        from clip_randlora.training import Interrupted, TrainConfig, fit

        config = TrainConfig.parse(settings)
        labelled = load_data(data, test)
        weights = {None: DEFAULT_TAG, "none": None}.get(pretrained, pretrained)
        loaded = load_model(model, weights, device)
    messages.print(
        f"[bold]{escape(loaded.net.model_name)}[/bold], on {loaded.device}; "
        f"{escape(labelled.name)}: {len(labelled.classes)} classes"
    )
    source = {"data": _absolute(data), "test": test and _absolute(test)}
    try:
        with _progress() as on_step:
            run = fit(
                loaded,
                labelled,
                config,
                out,
                resume=resume,
                source=source,
                on_step=on_step,
                on_start=lambda adapter, notes: _print_start(adapter, notes, labelled),
            )
    except Interrupted as stop:  # caught here: the command line library knows no way to go on
        if stop.folder is None:
            _fail(_INTERRUPTED, "interrupted before the first step: nothing is saved; start again")
        _fail(
            _INTERRUPTED,
            f"interrupted after step {stop.step}: saved to {out}; run the same command with "
            f"--resume to go on",
        )
    _print_run(run, config)


def _list_datasets() -> None:
    with _loading():
        from clip_randlora.data import DATASETS, described_sets, find_description
        from clip_randlora.data.download import is_on_disk, show_size
        from clip_randlora.paths import data_root

        table = Table("name", "classes", "images", "on disk", "download", "licence", "what")
        for name, entry in DATASETS.items():
            row = str(entry.classes), f"{entry.images:,}", "bundled", "", entry.licence
            table.add_row(name, *row, entry.description)
        for name in described_sets():
            entry = find_description(name)
            table.add_row(
                name,
                str(entry.number_of_classes),
                f"{sum(entry.images.values()):,}",
                "yes" if is_on_disk(entry) else "",
                show_size(entry.download_megabytes) if entry.download_megabytes else "?",
                entry.licence,
                entry.description,
            )
    results.print(table)
    results.print(
        f"torchvision's lie in {data_root()} (set CLIP_RANDLORA_DATA to change that), those of the "
        f"Hugging Face hub in its cache. Your own: a folder of class folders, a .zip of one, or a "
        f"YAML file that describes it.",
        markup=False,
    )


def _show_dataset(description: Description) -> None:
    from clip_randlora.data.download import is_on_disk

    shown = description.model_dump(exclude={"file"}, exclude_defaults=True)
    table = Table(show_header=False)
    for field, value in shown.items():
        if isinstance(value, dict):
            value = [f"{key}: {what}" for key, what in value.items()]
        separator = "\n" if field in ("templates", "notes") else ", "
        text = separator.join(value) if isinstance(value, list | tuple) else str(value)
        table.add_row(field, Text(text))
    table.add_row("on this machine", "yes" if is_on_disk(description) else "no")
    results.print(table)


def _print_start(adapter: Adapter, notes: list[str], data: Data) -> None:
    """List what will be adapted, and what the user should know of the data."""
    from clip_randlora.data import summarize_skipped

    table = Table("tower", "target", "weights", "trained numbers")
    for row in adapter.summary():
        table.add_row(row.tower, row.target, str(row.weights), f"{row.parameters:,}")
    table.add_section()
    table.add_row("", "in all", str(len(adapter.weights)), f"{adapter.num_parameters():,}")
    messages.print(table)
    for note in [*notes, summarize_skipped(data.skipped)]:
        if note:
            messages.print(f"- {note}", markup=False)


def _print_run(run: Run, config: TrainConfig) -> None:
    from clip_randlora.data import summarize_skipped

    _print_metrics(run.metrics)
    if run.skipped:
        messages.print(summarize_skipped(run.skipped), markup=False)
    images = run.metrics["images"]
    shots = f"{config.shots} shots" if config.shots else "all images"
    results.print(
        f"{images['train']} training and {images['test']} test images ({shots}, seed "
        f"{config.seed}); trained {run.metrics['steps']} steps in "
        f"{run.metrics['train_seconds']:.1f} s"
    )
    results.print(f"Saved to {run.folder}", markup=False)


def _print_metrics(metrics: dict[str, Any]) -> None:
    table = Table("", "zero-shot", "tuned")
    for name, row in metrics["per_class"].items():
        table.add_row(escape(name), f"{row['zero_shot']:.1%}", f"{row['tuned']:.1%}")
    table.add_section()
    both = metrics["zero_shot"], metrics["tuned"]
    table.add_row("top-1", *(f"[bold]{row['top1']:.1%}[/bold]" for row in both))
    table.add_row("calibration error", *(f"{row['ece']:.3f}" for row in both))
    results.print(table)


def _top(answer: dict[str, float], most: int = 3) -> str:
    return "\n".join(f"{p:6.1%}  {name}" for name, p in list(answer.items())[:most])


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield an ``on_step`` that draws a bar with loss, accuracy and time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
        TextColumn("{task.fields[left]:.0f} s left"),
    )
    with Progress(*columns, console=messages) as progress:
        task = progress.add_task("", total=None, visible=False, loss=0.0, accuracy=0.0, left=0.0)

        def on_step(step: Step) -> None:
            progress.update(
                task,
                visible=True,
                completed=step.step,
                total=step.steps,
                loss=step.loss,
                accuracy=step.accuracy,
                left=step.seconds_left,
            )

        yield on_step


@contextmanager
def _loading() -> Iterator[None]:
    """Say that something is going on while the heavy libraries are imported."""
    with messages.status("loading"):
        yield


def _read_preset(preset: str | None) -> dict[str, Any]:
    if preset is None:
        return {}
    from clip_randlora.presets import read_preset

    return dict(read_preset(preset))


def _read_settings(config: Path | None) -> dict[str, Any]:
    """Read a YAML of training settings, or the ``config.yaml`` of a run."""
    if config is None:
        return {}
    from clip_randlora.yaml_files import read_mapping

    settings = read_mapping(config, "settings as `name: value` lines", f"--config {config}")
    return dict(settings["train"]) if isinstance(settings.get("train"), dict) else settings


def _merge_method(configured: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """Lay the command line's adapter options over the file's, unless the method is another."""
    if isinstance(configured, str):
        configured = {"method": configured}
    if not isinstance(configured, dict | None):
        raise UserError("method: give a name, or settings with `method`")
    base = dict(configured or {"method": "randlora"})
    if chosen.get("method", base.get("method")) != base.get("method"):
        base = {}
    return base | chosen


def _parse_shots(shots: str) -> int | None:
    if shots == "all":
        return None
    if not shots.isdecimal() or int(shots) < 1:
        raise UserError(f"--shots {shots}: give a number of images per class, or `all`")
    return int(shots)


def _parse_weights(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights}: give numbers, as 0.7,0.3") from None


def _all_or_test(run: Path, source: str, data: Data) -> Split:
    """Return the test split; for a new source without one, all its images."""
    from clip_randlora import runs
    from clip_randlora.data import Split

    trained_on = runs.read_config(run).get("data", {})
    if not data.held_out or _absolute(source) == trained_on.get("data"):
        return data.test
    messages.print(f"- {source} has no test split: all its images are used", markup=False)
    return Split(data.train.items + data.test.items, data.classes)


def _relabel(split: Split, classes: tuple[str, ...], source: str) -> Split:
    """Number a split's labels by the run's classes."""
    from dataclasses import replace

    from clip_randlora.data import Split

    present = {split.classes[item.label] for item in split}
    unknown = sorted(present - set(classes))
    if unknown:
        raise UserError(
            f"{source}: the run does not know the class {unknown[0]!r}; it knows "
            f"{', '.join(classes)}"
        )
    items = (replace(i, label=classes.index(split.classes[i.label])) for i in split)
    return Split(tuple(items), classes)


def _absolute(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _free_folder(folder: Path) -> Path:
    """Return the folder, or its first numbered sibling that is not there yet."""
    candidates = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 10_000))]
    return next(candidate for candidate in candidates if not candidate.exists())


def main() -> None:
    """Run the command; exit status 0 done, 2 wrong input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threading.current_thread() is threading.main_thread():
        # a polite end of the process is a Ctrl-C: states are saved, temporary files removed
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if os.environ.get("RANK", "0") != "0":  # of several processes, the main one prints
        results.quiet = messages.quiet = True
    try:
        status = app(standalone_mode=False)
        if status == _INTERRUPTED:  # what the command line library makes of a Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _fail(2, f"error: {error}")
    except OSError as error:
        _fail(2, f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):  # its older versions make the one of the other
        _fail(_INTERRUPTED, "interrupted; start again")
    except Exception as error:
        if is_out_of_memory(error):
            _fail(2, "error: out of memory; end other programs, or use smaller settings")
        # usage errors of the command line library, which would print more than one line
        if not hasattr(error, "format_message"):
            raise
        _fail(2, f"error: {error.format_message()}")


def _fail(status: int, line: str) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(status)
