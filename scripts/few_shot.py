"""Print zero-shot and tuned accuracy by number of shots, as means over seeds.

    python scripts/few_shot.py clipart digits --shots 1 --shots 4 --shots 16

Every figure of the README comes from this command.
"""

import platform
from statistics import mean, stdev
from typing import Annotated

import torch
import typer

import clip_randlora as cr


def main(
    data: Annotated[list[str], typer.Argument(help="Folders, zips or registered names.")],
    shots: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 16.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 1 to this number.", min=2)] = 3,
    model: Annotated[str, typer.Option(help="As for `clip-randlora train`.")] = "lite0",
    method: Annotated[str, typer.Option(help="As for `clip-randlora train`.")] = "randlora",
) -> None:
    """Train every combination and print one Markdown table."""
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"torch {torch.__version__}; {model}, {method}, seeds 1 to {seeds}\n")
    print("| data | shots | zero-shot | tuned | lowest gain | training |")
    print("|---|---|---|---|---|---|")
    for source in data:
        labelled = cr.load_data(source)
        for count in shots or (16,):
            rows = [run(labelled, model, method, count, seed) for seed in range(1, seeds + 1)]
            tuned = [row["tuned"]["top1"] for row in rows]
            zero_shot = rows[0]["zero_shot"]["top1"]
            print(
                f"| {labelled.name} | {count} | {zero_shot:.1%} | {mean(tuned):.1%} +- "
                f"{stdev(tuned):.1%} | {min(tuned) - zero_shot:+.1%} | "
                f"{mean(row['train_seconds'] for row in rows):.0f} s |",
                flush=True,
            )


def run(data: cr.Data, model: str, method: str, shots: int, seed: int) -> dict:
    """Train once and return the metrics."""
    config = cr.TrainConfig.parse({"method": method, "shots": shots, "seed": seed})
    return cr.fit(cr.load_model(model), data, config).metrics


if __name__ == "__main__":
    typer.run(main)
