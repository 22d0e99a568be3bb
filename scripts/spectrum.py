"""Draw the ranks and singular values of what each method trains: the figure of docs/concepts.md.

    python scripts/spectrum.py --out docs/spectrum.png

Every method is trained on the bundled drawings with the bundled model. LoRA gets the rank at which
it has as many trainable parameters as RandLoRA.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import clip_randlora as cr
from clip_randlora.runs.figures import save
from clip_randlora.utils.plotting import Figure

SMALLEST = 0.01  # of the largest singular value: what is below does not count for the rank


def main(
    out: Annotated[Path, typer.Option(help="The figure, PNG.")],
    shots: Annotated[int, typer.Option(help="Training images of a class.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 1,
) -> None:
    """Train, and draw; print the ranks and the trainable parameters."""
    model, data = cr.load_model("lite0"), cr.load_data("clipart")
    settings = {
        "RandLoRA": {"method": "randlora"},
        "LoRA": {"method": "lora", "rank": lora_rank(model)},
        "VeRA": {"method": "vera"},
        "full fine-tuning": {"method": "full"},
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, method in settings.items():
        run = cr.fit(model, data, cr.TrainConfig(method=method, shots=shots, seed=seed))
        count = run.adapter.num_parameters()
        spectra = [singular_values(delta) for delta in run.adapter.deltas().values()]
        run.adapter.detach()
        spectra = [values for values in spectra if values is not None]
        shares = [float((values > SMALLEST).double().mean()) for values in spectra]
        print(f"{label}: {count:,} trainable parameters, rank {np.mean(shares):.0%} of full")
        places = np.linspace(0, 1, 200)
        mean = np.mean([np.interp(places, *share_of(values)) for values in spectra], axis=0)
        left.semilogy(places, mean.clip(1e-4), label=f"{label}, {count / 1000:,.0f} thousand")
        right.barh(label, np.mean(shares), height=0.6)
        right.text(np.mean(shares) + 0.02, label, f"{np.mean(shares):.0%}", va="center")
    left.set(xlabel="place among the singular values", ylabel="singular value / largest")
    left.set(ylim=(1e-4, 1.3), title="Spectrum of the trained update")
    left.legend(fontsize=8, title="trainable parameters", title_fontsize=8)
    right.set(xlim=(0, 1.15), xlabel="share of the full rank", title="Rank of the trained update")
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, out)


def lora_rank(model: cr.Model) -> int:
    """Return the rank at which LoRA has the most nearly as many parameters as RandLoRA."""

    def parameters(config: cr.LoRA | cr.RandLoRA) -> int:
        adapter = cr.attach(model.net, config)
        count = adapter.num_parameters()
        adapter.detach()
        return count

    wanted = parameters(cr.RandLoRA())
    return min(range(1, 65), key=lambda rank: abs(parameters(cr.LoRA(rank=rank)) - wanted))


def singular_values(delta: torch.Tensor) -> torch.Tensor | None:
    """Return the singular values of a weight's update, by its largest; None if it is no matrix."""
    if delta.ndim < 2 or not delta.any():
        return None
    values = torch.linalg.svdvals(delta.flatten(1).double())
    return values / values[0]


def share_of(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of singular values between 0 and 1, and the values."""
    return np.linspace(0, 1, len(values)), values.numpy()


if __name__ == "__main__":
    typer.run(main)
