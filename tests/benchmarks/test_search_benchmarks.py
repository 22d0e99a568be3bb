"""The benchmarks of search: scores that can be counted by hand, and each once on a tiny model."""

import pytest
import torch
from helpers.exports import some_drawings

from benchmarks import embed, retrieval


def test_scores_by_hand():
    similarity = -torch.arange(12.0).repeat(2, 1)  # both queries find the images in their order
    relevant = torch.zeros(2, 12, dtype=torch.bool)
    relevant[0, [0, 2]] = True  # first and third: precisions 1/1 and 2/3
    relevant[1, [5, 11]] = True  # sixth and twelfth: 1/6 and 2/12
    scores = retrieval.search_scores(similarity, relevant)
    # of the first ten, two and one are right
    by_hand = {"R@1": 0.5, "R@5": 0.5, "R@10": 1.0, "P@10": 0.15, "map": 0.5}
    assert scores == pytest.approx(by_hand)


@pytest.mark.parametrize(("asked", "queries"), [("all", 16), ("novel", 8)])
def test_a_run_that_nothing_was_trained_in_finds_as_before(asked, queries, tiny_folder, tmp_path):
    drawings = some_drawings(tmp_path / "drawings", 4, training=1, test=2)
    found = retrieval.run_job(str(drawings), asked, 1, "zero_shot", str(tiny_folder), seed=1)
    assert (found["queries"], found["images"]) == (queries, 8)
    for name in retrieval.SCORES:
        assert found[f"before {name}"] == found[f"after {name}"]
    assert found["after R@10"] == 1  # of 8 images


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
def test_features_of_every_image_are_written(kind, tiny_folder, tmp_path):
    folder = some_drawings(tmp_path, 2, training=1, test=1)
    assert embed.run_job(str(folder), kind, str(tiny_folder))["rows"] == 4
