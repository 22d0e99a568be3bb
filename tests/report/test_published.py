"""Published figures: the packaged files, and what the report sets beside them."""

import csv
from pathlib import Path

import pytest
from helpers.sweeps import plant_accuracies

from clip_randlora.data.dataset_spec import packaged_specs
from clip_randlora.report import write_report
from clip_randlora.report.published_figures import AVERAGE, read_published
from clip_randlora.sweep import SweepConfig

COOP = [
    "caltech101", "dtd", "eurosat", "fgvc_aircraft", "flowers102", "food101", "imagenet",
    "oxford_pets", "stanford_cars", "sun397", "ucf101",
]  # fmt: skip
RANDLORA = {"label": "mine", "method": "randlora", "rank": 6}
LORA = {"method": "lora", "rank": 32}
PAPERS = {
    "models": [{"name": "ViT-B-32", "pretrained": "openai"}],
    "datasets": ["dtd", "eurosat"],
    "methods": [RANDLORA, LORA],
    "shots": [4, "50%"],
    "seeds": [1, 2],
}


def beside(out: Path) -> list[dict[str, str]]:
    """The rows of ``published.csv``; none without the file."""
    write_report(out)
    if not (out / "published.csv").exists():
        return []
    with open(out / "published.csv", newline="") as file:
        return list(csv.DictReader(file))


def every_cell(top1: float, **grid) -> dict[str, float]:
    return {cell.id: top1 for cell in SweepConfig(**grid).cells()}


@pytest.mark.parametrize("source", read_published(), ids=lambda source: source.source[:8])
def test_a_published_file_is_in_order(source):
    names = {(model, method) for model, method, _, _ in source.figures}
    assert {model for model, _ in names} == set(source.models)
    assert set(source.methods) <= {method for _, method in names}
    assert source.datasets <= set(packaged_specs())
    assert all(4 < top1 < 100 for top1 in source.figures.values())


def test_the_papers_averages_are_the_means_of_its_figures():
    (paper,) = (source for source in read_published() if source.source.startswith("RandLoRA"))
    rows = {key[:3] for key in paper.figures}
    assert len(rows) == 3 * 6 * 5
    for row in rows:
        own = [paper.figures[(*row, data)] for data in paper.datasets if row[0] != "ViT-H-14"]
        assert not own or paper.figures[(*row, AVERAGE)] == pytest.approx(sum(own) / 22, abs=0.1)
    # Table 11: ViT-B-32, 4 images; Table 12: ViT-L-14, all images; Table 13: ViT-H-14, 16 images
    assert paper.figures["ViT-B-32", "RandLoRA-6", "4", "dtd"] == 63.2
    assert paper.figures["ViT-L-14", "LoRA-32", "all", "food101"] == 95.2
    assert paper.figures["ViT-H-14", "RandLoRA-10", "16", AVERAGE] == 86.2


def test_the_report_has_ours_the_published_figure_and_the_difference(tmp_path):
    numbers = {
        "ViT-B-32--dtd--mine--4-shots--seed-1": 0.64,
        "ViT-B-32--dtd--mine--4-shots--seed-2": 0.65,  # 64.5 in the mean; 63.2 in Table 11
        "ViT-B-32--dtd--mine--50-percent--seed-1": 0.73,  # 73.6
        "ViT-B-32--eurosat--lora--4-shots--seed-1": 0.867,  # 86.7
    }
    out = plant_accuracies(tmp_path / "out", numbers, **PAPERS)
    rows = beside(out)
    shown = [
        [row[name] for name in ("data", "method", "published_method", "shots", "seeds")]
        + [round(float(row[name]), 6) for name in ("ours", "published", "difference")]
        for row in rows
    ]
    assert shown == [
        ["dtd", "mine", "RandLoRA-6", "4", "2", 64.5, 63.2, 1.3],
        ["dtd", "mine", "RandLoRA-6", "50%", "1", 73.0, 73.6, -0.6],
        ["eurosat", "lora", "LoRA-32", "4", "1", 86.7, 86.7, 0.0],
    ]
    text = (out / "report.md").read_text()
    source = "RandLoRA (Albert et al., ICLR 2025, arXiv 2502.00987v2), Tables 11, 12 and 13"
    assert {row["source"] for row in rows} == {source}
    assert f"### ViT-B-32: {source}" in text
    assert "| data set | method | published as | 4 shots | 50% of the images |" in text
    assert "| dtd | mine | RandLoRA-6 | 64.5 (63.2, +1.3) | 73.0 (73.6, -0.6) |" in text
    assert "| eurosat | lora | LoRA-32 | 86.7 (86.7, +0.0) |  |" in text


@pytest.mark.parametrize(
    "other",
    [
        {"models": [{"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}]},
        {"models": [{"name": "ViT-B-16", "label": "ViT-B-32"}]},
        {"methods": [{**RANDLORA, "rank": 10}, {**LORA, "rank": 16}]},
        {
            "methods": [
                {"label": "lora", "method": "vera", "rank": 32},
                {**RANDLORA, "towers": ["vision"]},
            ]
        },
        {"shots": [8]},
        {"classes": "base"},
        {"datasets": ["digits"]},
        {"datasets": ["/photos/dtd"]},  # somebody's own folder of that name
    ],
)
def test_cells_of_another_experiment_are_not_compared(tmp_path, other):
    grid = PAPERS | {"datasets": ["dtd"], "seeds": [1]} | other
    assert beside(plant_accuracies(tmp_path / "out", every_cell(0.5, **grid), **grid)) == []


def test_an_average_is_compared_over_all_data_sets_of_the_source(tmp_path):
    grid = {
        "models": [{"name": "ViT-B-16"}],  # OpenAI's weights are its default
        "datasets": COOP,
        "methods": ["zero_shot", {"label": "theirs", "method": "clip_lora"}, "randlora"],
        "shots": [16],
    }
    numbers = every_cell(0.83, **grid)
    out = plant_accuracies(tmp_path / "all", numbers, **grid)
    rows = {row["published_method"]: row for row in beside(out)}
    assert rows["CLIP-LoRA"]["method"] == "theirs"
    assert float(rows["CLIP-LoRA"]["difference"]) == pytest.approx(83.0 - 82.89)
    assert float(rows["zero-shot"]["difference"]) == pytest.approx(83.0 - 65.36)
    assert {row["data"] for row in rows.values()} == {"average"}
    # a method that the sweep does not have stands alone
    assert (rows["LP++"]["method"], rows["LP++"]["ours"], rows["LP++"]["published"]) == (
        "", "", "80.32",
    )  # fmt: skip
    text = (out / "report.md").read_text()
    assert "| average | theirs | CLIP-LoRA | 83.0 (82.9, +0.1) |" in text
    assert "| average |  | LP++ | (80.3) |" in text

    fewer = grid | {"datasets": COOP[:-1]}
    assert beside(plant_accuracies(tmp_path / "fewer", numbers, **fewer)) == []
