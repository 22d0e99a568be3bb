"""Features of images and texts, before and after: those of open_clip with the weights of then."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.exports import files_in
from PIL import Image
from torch.nn.functional import normalize

import clip_randlora as cr

NEW = ["a red dragon", "zebra"]  # in no class of any run here


@pytest.fixture(scope="module")
def images(drawings) -> list[str]:
    return files_in(drawings / "test")


@torch.no_grad()
def by_open_clip(run, strength: float, images, texts) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode with open_clip's own methods, after the update was added to the weights."""
    classifier = cr.Classifier.load(run, strength=strength)
    model = classifier.model
    classifier.adapter.merge()
    pixels = torch.stack([model.preprocess(Image.open(path).convert("RGB")) for path in images])
    encoded = model.net.encode_image(pixels), model.net.encode_text(model.tokenizer(texts))
    return normalize(encoded[0], dim=1), normalize(encoded[1], dim=1)


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("tiny_run", 0),
        ("tiny_run", 0.5),
        ("tiny_run", 1),
        pytest.param("lite0_run", 1, marks=pytest.mark.slow),
    ],
)
def test_features_are_those_of_the_weights_at_that_strength(request, images, name, strength):
    run, images = request.getfixturevalue(name), images[:3]
    classifier = cr.Classifier.load(run)
    rows, columns = by_open_clip(run, strength, images, NEW)
    got = classifier.encode_images(images, strength)
    assert got.dtype == torch.float32 and not got.is_inference()
    assert torch.allclose(got, rows, atol=1e-5)
    assert torch.allclose(classifier.encode_texts(NEW, strength), columns, atol=1e-5)
    same = classifier.similarity(images, NEW, strength)
    assert torch.allclose(same, rows @ columns.T, atol=1e-5)
    if strength == 1:  # by default
        assert torch.equal(classifier.encode_images(images), got)
        before = classifier.encode_texts(NEW, 0)
        assert not torch.allclose(before, columns, atol=1e-3)


def test_the_default_strength_is_the_classifier_s(tiny_run, images):
    classifier = cr.Classifier.load(tiny_run, strength=0.25)
    expected = cr.Classifier.load(tiny_run)
    for _ in range(2):
        assert torch.equal(
            classifier.encode_images(images), expected.encode_images(images, strength=0.25)
        )
        assert torch.equal(classifier.encode_texts(NEW), expected.encode_texts(NEW, strength=0.25))
        classifier.adapter.strength = 0.75
        classifier.encode_texts(NEW)
        classifier.adapter.strength = 0.25


def test_templates_are_averaged_and_one_text_is_one_row(tiny_run):
    classifier = cr.Classifier.load(tiny_run)
    templates = ["a photo of a {}.", "art of {}"]
    prompts = ["a photo of a zebra.", "art of zebra"]
    mean = normalize(classifier.encode_texts(prompts).mean(dim=0, keepdim=True), dim=1)
    assert torch.allclose(classifier.encode_texts("zebra", templates=templates), mean, atol=1e-6)
    assert classifier.encode_texts([]).shape == (0, 32)
    assert classifier.encode_images([]).shape == (0, 32)


def test_many_texts_of_any_length_are_those_one_by_one(tiny_run):
    classifier = cr.Classifier.load(tiny_run)
    texts = [f"{'very ' * (number % 7)}old house {number}" for number in range(300)]
    together = classifier.encode_texts(texts)
    for place in (0, 6, 255, 256, 299):
        alone = classifier.encode_texts(texts[place])
        assert torch.allclose(together[place], alone[0], atol=1e-6)


def test_similarity_is_what_zero_shot_answers_come_from(tiny_run, images):
    classifier = cr.Classifier.load(tiny_run)
    templates = ["a photo of a {}.", "art of a {}."]
    others = classifier.for_classes(["zebra", "red dragon"], templates)
    texts = classifier.encode_texts(["zebra", "red dragon"], 0, templates=templates)
    logits = float(classifier.model.logit_scale()) * classifier.similarity(images, texts, 0)
    answers = others.predict(images)
    for row, answer in zip(logits.softmax(dim=1).tolist(), answers, strict=True):
        assert row == pytest.approx([answer["zero_shot"][n] for n in others.classes], abs=1e-5)


def test_similarity_takes_features_in_any_float_form(tiny_run, images):
    classifier = cr.Classifier.load(tiny_run)
    rows, columns = classifier.encode_images(images), classifier.encode_texts(NEW)
    expected = rows @ columns.T
    assert torch.equal(classifier.similarity(rows, columns), expected)
    stored = classifier.similarity(rows.numpy().astype(np.float16), columns.numpy())
    assert torch.allclose(stored, expected, atol=1e-3)
    assert torch.equal(classifier.similarity(images, columns), expected)
    grey = classifier.similarity(torch.full((32, 32), 0.5), columns)  # an image, by its values
    assert grey.shape == (1, 2)


def test_the_second_call_forms_no_weight(tiny_run, images, monkeypatch):
    formed = []
    form = cr.Adapter.updated_weights

    def counting(adapter, strength, tower):
        formed.append((strength, tower))
        return form(adapter, strength, tower)

    classifier = cr.Classifier.load(tiny_run)
    classifier.predict(images[:1])
    monkeypatch.setattr(cr.Adapter, "updated_weights", counting)
    for _ in range(2):
        for strength in (0, 0.5, 1):
            classifier.encode_images(images[:1], strength)
        for strength in (0, 0, 1, 1):
            classifier.encode_texts(NEW, strength)
    assert formed == [(0.5, "vision"), (1.0, "text")]


def test_threads_at_other_strengths_get_what_one_gets(tiny_run, images):
    classifier = cr.Classifier.load(tiny_run)
    strengths = [0, 0.3, 0.6, 1.0]

    def ask(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        return classifier.encode_images(images, strength), classifier.encode_texts(NEW, strength)

    serial = [ask(strength) for strength in strengths]
    assert not torch.allclose(serial[1][0], serial[2][0], atol=1e-4)  # a mix-up would show
    with ThreadPoolExecutor(4) as pool:
        for (images_now, texts_now), expected in zip(
            pool.map(ask, strengths * 6), serial * 6, strict=True
        ):
            assert torch.allclose(images_now, expected[0], atol=1e-6)
            assert torch.allclose(texts_now, expected[1], atol=1e-6)


def test_a_head_has_no_tuned_features(tiny, drawings, images, tmp_path):
    config = cr.TrainConfig(method="anchored_head", steps=2, shots=1)
    cr.fit(tiny, cr.load_data(drawings), config, out=tmp_path / "run").adapter.detach()
    classifier = cr.Classifier.load(tmp_path / "run", model=tiny)
    for ask in (classifier.encode_images, classifier.encode_texts):
        with pytest.raises(cr.UserError, match=r"anchored_head: its head .* give strength 0"):
            ask(images)
    assert classifier.encode_images(images, 0).shape == (len(images), 32)
    assert classifier.similarity(images, NEW, 0).shape == (len(images), 2)


def test_an_encoder_that_was_not_tuned_gives_its_zero_shot_features(tiny, drawings, images):
    method = cr.RandLoRA(rank=4, towers=("vision",))
    config = cr.TrainConfig(method=method, steps=2, shots=1, learning_rate=0.01)
    run = cr.fit(tiny, cr.load_data(drawings), config)
    classifier = cr.Classifier(run.model, run.adapter, run.text)
    assert torch.equal(classifier.encode_texts(NEW), classifier.encode_texts(NEW, 0))
    assert not torch.equal(classifier.encode_images(images), classifier.encode_images(images, 0))


def test_what_cannot_be_encoded_is_one_line(tiny_run, images, tmp_path):
    classifier = cr.Classifier.load(tiny_run)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for ask, said in (
        (lambda: classifier.encode_images([*images, tmp_path / "broken.png"]), "broken.png"),
        (lambda: classifier.encode_texts(["zebra", "  "]), "text 2: is empty"),
        (lambda: classifier.encode_texts([3]), "text 1: is of type int"),
        (lambda: classifier.encode_texts(["zebra"], templates=["a photo"]), "write {} once"),
        (lambda: classifier.encode_texts(["zebra"], strength=2), "strength: 2"),
    ):
        with pytest.raises(cr.UserError, match=said) as error:
            ask()
        assert "\n" not in str(error.value)
    classifier.adapter.detach()
    with pytest.raises(cr.UserError, match="no longer attached"):
        classifier.encode_texts(["zebra"])


def test_a_text_that_is_cut_is_named(tiny_run):
    classifier = cr.Classifier.load(tiny_run)
    long = "zebra " * 100
    with pytest.warns(UserWarning, match=r"Texts longer than the 77 tokens .* 'zebra zebra"):
        classifier.encode_texts(["horse", long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.encode_texts(["horse", "zebra " * 75])  # 75 words, the start and the end
