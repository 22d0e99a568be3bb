"""Labels for images that have none: the answers of predict, surest first, in one pass."""

import csv

import pytest
import torch
from helpers.images import write_colors
from helpers.models import randomize
from PIL import Image

import clip_randlora as cr

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images, of which nothing says what they are."""
    folder = tmp_path_factory.mktemp("photos")
    colors = write_colors(tmp_path_factory.mktemp("colors"), {"": 4})
    for number, path in enumerate(sorted(colors.rglob("*.png"))):
        path.rename(folder / f"photo {number:02}.png")
    return folder


@pytest.fixture
def classifier(tiny):
    adapter = cr.attach(tiny.net, cr.RandLoRA(rank=4))
    randomize(adapter, spread=0.2)
    zero_shot = cr.Classifier.zero_shot(cr.load_model(tiny.name), CLASSES)
    yield cr.Classifier(tiny, adapter, zero_shot.text)


def test_the_answers_are_those_of_predict_surest_first(classifier, photos):
    labelling = cr.label_images(classifier, photos)
    found = list(labelling)
    tuned = dict(classifier.predict_each(photos))
    assert len(labelling) == len(found) == 12
    for image in found:
        answer, probability = next(iter(tuned[image.name]["tuned"].items()))
        assert (image.answer, image.label) == (answer, answer)
        assert image.probability == pytest.approx(probability, abs=1e-6)
    in_order = [image.probability for image in found]
    assert in_order == sorted(in_order, reverse=True)
    assert sum(labelling.counts().values()) == 12
    assert list(labelling.counts()) == list(CLASSES)


def test_below_the_line_there_is_an_answer_but_no_label(classifier, photos, tmp_path):
    every = list(cr.label_images(classifier, photos))
    line = (every[4].probability + every[5].probability) / 2
    labelling = cr.label_images(classifier, photos, above=line)
    assert [bool(image.label) for image in labelling] == [True] * 5 + [False] * 7
    assert sum(labelling.counts().values()) == 5
    labelling.write_csv(tmp_path / "labels.csv")
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [image.name for image in every]
    assert [row["answer"] for row in rows] == [image.answer for image in every]
    assert [row["label"] for row in rows] == [image.answer for image in every[:5]] + [""] * 7


def test_images_that_cannot_be_read_are_named_and_the_others_keep_their_places(classifier, photos):
    good = sorted(photos.iterdir())[:2]
    labelling = cr.label_images(classifier, [good[0], photos / "missing.png", good[1]])
    assert sorted(image.place for image in labelling) == [0, 2]
    assert [str(good[place // 2]) for place in labelling.places] == labelling.names
    assert len(labelling.errors) == 1 and "missing.png" in labelling.errors[0]
    with pytest.raises(cr.UserError, match="missing"):
        cr.label_images(classifier, photos / "missing.png")


def test_suggestions_come_from_the_features_of_the_same_pass(classifier, photos):
    labelling = cr.label_images(classifier, photos, suggest=4)
    names = [image.name for image in labelling.next_images()]
    batches = list(classifier.encode_and_classify(cr_inputs(photos)))
    features, probabilities = batches[0].rows
    chosen = cr.suggest_next(features.half(), probabilities.half(), 4)
    assert names == [batches[0].names[row] for row in chosen]
    ranks = {image.name: image.label_next for image in labelling}
    assert [ranks[name] for name in names] == [1, 2, 3, 4]
    assert sum(rank is not None for rank in ranks.values()) == 4


def test_what_has_a_label_is_not_suggested_again(classifier, photos):
    first = cr.label_images(classifier, photos, suggest=1).next_images()[0]
    again = cr.label_images(classifier, photos, suggest=1, labelled=first.name).next_images()[0]
    assert again.name != first.name
    with pytest.raises(cr.UserError, match="missing"):
        cr.label_images(classifier, photos, suggest=1, labelled=photos / "missing.png")


def test_pictures_without_files_and_progress(classifier):
    pictures = (Image.new("RGB", (40, 40), (number, 0, 90)) for number in range(5))
    labelling = cr.label_images(classifier, pictures)
    assert sorted(labelling.names) == [f"image {number}" for number in range(1, 6)]
    assert labelling.places.tolist() == list(range(5))


def test_progress_counts_every_image(classifier, photos):
    said = []
    cr.label_images(classifier, photos, on_progress=lambda *report: said.append(report))
    assert said == [("labelling images", 0, 12), ("labelling images", 12, 12)]


def test_zero_shot_answers_without_training(tiny, photos):
    classifier = cr.Classifier.zero_shot(tiny, CLASSES, templates=["a {} thing."])
    labelling = cr.label_images(classifier, photos)
    for name, answer in classifier.predict_each(photos):
        assert answer["tuned"] == answer["zero_shot"]
        row = labelling.names.index(name)
        assert labelling.answers[row] == CLASSES.index(next(iter(answer["tuned"])))
    for classes, reason in ((["one"], "at least two"), (["a", "b", "a"], "'a' is there twice")):
        with pytest.raises(cr.UserError, match=reason):
            cr.Classifier.zero_shot(tiny, classes)


@pytest.mark.parametrize("wrong", [{"above": 1.5}, {"above": -0.1}, {"suggest": -1}])
def test_numbers_out_of_range(classifier, photos, wrong):
    with pytest.raises(cr.UserError, match=next(iter(wrong))):
        cr.label_images(classifier, photos, **wrong)


def cr_inputs(folder):
    from clip_randlora.data.inputs import each_input

    return each_input(folder, lambda left_out: None)


def test_only_a_sample_of_the_features_is_kept():
    from clip_randlora.labelling import label_each

    sample = label_each._Sample(5)
    for first in range(0, 40, 4):
        rows = torch.arange(first, first + 4.0)
        sample.add(first, rows[:, None].repeat(1, 3), torch.full((4, 2), 0.5))
        assert sum(len(kept[1]) for kept in sample._kept) <= 10
    chosen = sample.suggest(99, None)
    assert len(set(chosen)) == 5 and min(chosen) >= 0 and max(chosen) < 40
    assert max(chosen) > 12  # late images have the same chance
