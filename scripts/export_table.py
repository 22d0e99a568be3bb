"""Print size and load time of every export, as the tables in docs/export.md.

    python scripts/export_table.py [--run RUN ...] [--format FORMAT ...]

Without runs of your own: the bundled lite0, and ViT-B-32 with random weights, each with an adapter
of rank 6 whose coefficients are random, since sizes and times do not depend on them.

A load time is the median of three new processes that have imported the library already, and loaded
the base model for adapters: from files that the system has in memory to a model ready to answer.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

import clip_randlora as cr

_LOADING = {
    "adapter": (
        "import clip_randlora as cr; net = cr.load_model({base!r}, {pretrained!r}, 'cpu').net",
        "cr.load_adapter(net, 'it')",
    ),
    "open_clip": (
        "import open_clip",
        "open_clip.create_model_and_transforms('local-dir:it')",
    ),
    "transformers": (
        "from transformers import CLIPModel, CLIPProcessor",
        "CLIPModel.from_pretrained('it'); CLIPProcessor.from_pretrained('it')",
    ),
    "peft": (
        "from peft import PeftModel; from transformers import CLIPModel; "
        "base = CLIPModel.from_pretrained('base')",
        "PeftModel.from_pretrained(base, 'it')",
    ),
    "onnx": (
        "import onnxruntime",
        "[onnxruntime.InferenceSession(f'it/{{name}}.onnx') "
        "for name in ('image_encoder', 'text_encoder')]",
    ),
    "head": (
        "from safetensors.numpy import load_file",
        "load_file('it/class_embeddings.safetensors')",
    ),
}
_TIMED = """
import time, warnings
warnings.simplefilter("ignore")
{imports}
start = time.perf_counter()
{loads}
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", type=Path, help="a finished run of your own")
    parser.add_argument("--format", action="append", choices=list(cr.export_formats()))
    chosen = parser.parse_args()
    print(f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        runs = chosen.run or [_lite0(Path(folder)), _vit_b_32(Path(folder))]
        print("| base | format | precision | MB | load, s |\n|---|---|---|---|---|")
        for run in runs:
            for format in chosen.format or cr.export_formats():
                for precision in ("fp32", "fp16") if format == "onnx" else ("fp32",):
                    print(_row(run.resolve(), format, precision), flush=True)
        if "peft" in (chosen.format or ["peft"]):
            rows = [row for run in runs for row in _as_peft_saves_it(run.resolve())]
            print(
                "\n| base | trained numbers | saved by | MB | times the adapter |",
                "|---|---|---|---|---|",
                *rows,
                sep="\n",
            )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _lite0(folder: Path) -> Path:
    return _run(cr.load_model("lite0", device="cpu"), folder / "lite0")


def _vit_b_32(folder: Path) -> Path:
    torch.manual_seed(0)
    weights = folder / "vit-b-32.safetensors"
    save_file(cr.load_model("ViT-B-32", None, "cpu").net.state_dict(), weights)
    return _run(cr.load_model("ViT-B-32", weights, "cpu"), folder / "vit-b-32")


def _run(model: cr.Model, out: Path) -> Path:
    """Make a run with random coefficients, and the smallest training that makes one."""
    config = cr.TrainConfig(method=cr.RandLoRA(rank=6), shots=1, steps=1, batch_size=2)
    run = cr.fit(model, cr.load_data("clipart"), config, out=out)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.adapter.parameters():
            parameter.normal_(0, 0.01, generator=generator)
    run.adapter.save(out / "adapter.safetensors")
    return out


def _row(run: Path, format: str, precision: str) -> str:
    model = cr.Classifier.load(run, device="cpu").model
    with tempfile.TemporaryDirectory() as folder:
        try:
            out = cr.export_run(run, format, Path(folder) / "it", precision=precision)
        except cr.UserError as error:
            print(f"{model.name}, {format}: {error}", file=sys.stderr)
            return f"| {model.name} | {format} | {precision} | does not fit | |"
        if format == "peft":
            cr.export_run(run, "transformers", Path(folder) / "base", strength=0)
        size = sum(file.stat().st_size for file in out.iterdir())
        seconds = statistics.median(_load(model, format, folder) for _ in range(3))
    return f"| {model.name} | {format} | {precision} | {size / 1e6:.2f} | {seconds:.2f} |"


def _load(model: cr.Model, format: str, folder: str) -> float:
    imports, loads = (
        code.format(base=model.name, pretrained=model.pretrained) for code in _LOADING[format]
    )
    code = _TIMED.format(imports=imports, loads=loads)
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    return float(printed.split()[-1])


def _as_peft_saves_it(run: Path) -> list[str]:
    """Compare the adapter file with what peft's ``save_pretrained`` writes of the same numbers."""
    from importlib.metadata import version

    from peft import PeftConfig, get_peft_model
    from transformers import CLIPModel

    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            ours = cr.export_run(run, "peft", Path(folder) / "peft")
        except cr.UserError:
            return []  # the first table says that it does not fit
        base = cr.export_run(run, "transformers", Path(folder) / "base", strength=0)
        classifier = cr.Classifier.load(run, device="cpu")
        cells = f"| {classifier.model.name} | {classifier.adapter.num_parameters():,} |"
        config = PeftConfig.from_pretrained(ours)
        files = {
            "clip-randlora, `adapter`": run / "adapter.safetensors",
            "clip-randlora, `peft`": ours / "adapter_model.safetensors",
        }
        for name, keeps in (
            ("save_projection=True (default)", True),
            ("save_projection=False", False),
        ):
            config.save_projection = keeps  # read when the model is made, not when it is saved
            same_shapes = get_peft_model(CLIPModel.from_pretrained(base), config)
            same_shapes.save_pretrained(Path(folder) / str(keeps))
            files[f"peft {version('peft')}, {name}"] = (
                Path(folder) / str(keeps) / "adapter_model.safetensors"
            )
        sizes = {name: file.stat().st_size for name, file in files.items()}
        smallest = sizes["clip-randlora, `adapter`"]
        for name, size in sizes.items():
            rows.append(f"{cells} {name} | {size / 1e6:.1f} | {size / smallest:.2f} |")
    return rows


if __name__ == "__main__":
    main()
