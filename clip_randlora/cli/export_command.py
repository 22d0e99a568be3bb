"""The command export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip_randlora.cli.completion import complete_format
from clip_randlora.cli.console import loading, progress, results, working
from clip_randlora.cli.options import RunArgument
from clip_randlora.errors import UserError


def _given(context: typer.Context, param: typer.CallbackParam, value: str) -> str:
    """Return an option's value, "" if it was not given."""
    source = context.get_parameter_source(str(param.name))
    return "" if source is not None and source.name == "DEFAULT" else value


def export(
    run: RunArgument,
    format: Annotated[
        str,
        typer.Option(
            help="adapter, open_clip, transformers, peft, onnx, web or head.",
            autocompletion=complete_format,
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder.")],
    strength: Annotated[float, typer.Option(help="0: zero-shot, 1: tuned.")] = 1.0,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32; onnx, web: also fp16; web: also int8.",
            show_default="fp32; web: fp16",
            callback=_given,
        ),
    ] = "fp32",
    add: Annotated[
        list[Path] | None,
        typer.Option(help="Another run on the same base, to add; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights of RUN and of each --add, as 0.7,0.3. Default: equal."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="web: put its runtime, from npm, into the folder.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(help="web: take the runtime from this folder, dist of onnxruntime-web."),
    ] = None,
    push_to: Annotated[
        str | None, typer.Option(metavar="USER/REPO", help="Also upload to the Hugging Face hub.")
    ] = None,
) -> None:
    """Write the tuned model for another library, checked by loading it back."""
    with loading():
        from clip_randlora.export import export_precisions, export_run, push, require_token
    if push_to:
        require_token()
    factors = _parse_weights(weights)
    with progress() as on_progress:
        export_run(
            run,
            format,
            out,
            strength=strength,
            precision=precision or export_precisions(format)[0],
            add=add or (),
            weights=factors,
            offline=offline,
            runtime=runtime,
            on_progress=on_progress,
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    results.print(f"Saved to {out}, {size / 1e6:.1f} MB; README.md there says how to load it")
    if push_to:
        with working("uploading"):
            address = push(out, push_to)
        results.print(f"Uploaded to {address}")


def _parse_weights(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights}: give numbers, as 0.7,0.3") from None
