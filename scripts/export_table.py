"""Print size and load time of every export of finished runs, as the table in docs/export.md.

    python scripts/export_table.py RUN [RUN ...]

A format's load time is the best of three new processes that have imported the library already:
from the files to a model that could answer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

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
        "CLIPModel.from_pretrained('it'); CLIPProcessor.from_pretrained('it', backend='pil')",
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


def main(runs: list[str]) -> None:
    """Print the table."""
    print("| base | format | precision | MB | load, s |\n|---|---|---|---|---|")
    for run in runs:
        for format in cr.export_formats():
            for precision in ("fp32", "fp16") if format == "onnx" else ("fp32",):
                _row(Path(run).resolve(), format, precision)


def _row(run: Path, format: str, precision: str) -> None:
    model = cr.Classifier.load(run, device="cpu").model
    with tempfile.TemporaryDirectory() as folder:
        try:
            out = cr.export_run(run, format, Path(folder) / "it", precision=precision)
            if format == "peft":
                cr.export_run(run, "transformers", Path(folder) / "base", strength=0)
        except cr.UserError as error:
            print(f"{run.name}, {format}: {error}", file=sys.stderr)
            return
        size = sum(file.stat().st_size for file in out.iterdir())
        seconds = min(_load(model, format, folder) for _ in range(3))
    print(f"| {model.name} | {format} | {precision} | {size / 1e6:.1f} | {seconds:.2f} |")


def _load(model: cr.Model, format: str, folder: str) -> float:
    imports, loads = (
        code.format(base=model.name, pretrained=model.pretrained) for code in _LOADING[format]
    )
    code = _TIMED.format(imports=imports, loads=loads)
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    return float(printed.split()[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
