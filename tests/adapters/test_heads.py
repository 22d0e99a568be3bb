"""The heads: their formulas on numbers that a person can check, and their way through a run."""

import math

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import cross_entropy, normalize

import clip_randlora as cr
from clip_randlora.adapters.heads import HeadData
from clip_randlora.adapters.heads.gda import gaussian_logits
from clip_randlora.data import Split

HEADS = ("linear_probe", "anchored_head", "tip_adapter_f", "gda")
SCALE = 20.0


def blobs(seed: int = 0, images: int = 6, views: int = 2) -> HeadData:
    """Three classes of unit features in four dimensions, beside text features that are near."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(4)[:3]
    labels = torch.arange(3).repeat_interleave(images)
    noise = torch.randn(views, len(labels), 4, generator=generator)
    text = normalize(centres + 0.5 * torch.randn(3, 4, generator=generator), dim=-1)
    return HeadData(normalize(centres[labels] + 0.4 * noise, dim=-1), labels, text, SCALE)


def fitted(config, data: HeadData):
    head = config.zero_shot_head(data)
    zero_shot = SCALE * data.features[0] @ data.classes.T
    torch.testing.assert_close(head(data.features[0]), zero_shot)  # every head starts there
    config.fit(head, data)
    return head


def test_an_anchored_head_is_at_the_minimum_of_its_loss():
    """The gradient of cross entropy plus strength / N times the squared distance is zero there."""
    data = blobs()
    head = fitted(cr.AnchoredHead(strength=0.3), data)
    features, labels = data.views()
    vectors = (head.weight.detach() / SCALE).requires_grad_()
    loss = cross_entropy(SCALE * features @ vectors.T, labels)
    loss = loss + 0.3 / 6 * (vectors - data.classes).square().sum()
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert gradient.abs().max() < 1e-3  # it is above 1 at the text features


def test_a_strong_anchor_is_zero_shot_and_a_weak_one_fits_the_images():
    data = blobs()
    features, labels = data.views()
    losses = []
    for strength in (1e6, 1.0, 1e-3):
        head = fitted(cr.AnchoredHead(strength=strength), data)
        losses.append(float(cross_entropy(head(features), labels).detach()))
    zero_shot = float(cross_entropy(SCALE * features @ data.classes.T, labels))
    assert losses[0] == pytest.approx(zero_shot, rel=1e-3)
    assert losses[0] > losses[1] > losses[2]


def test_gda_on_numbers_worked_out_by_hand():
    """Means (2, 0) and (0, 1); scatter diag(2, 2); trace(S) = 4 / 3; P = 2 / (2 + 4 / 3) = 0.6."""
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    weight, bias = gaussian_logits(features, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(weight, torch.tensor([[1.2, 0.0], [0.0, 0.6]]))
    torch.testing.assert_close(bias, torch.tensor([-1.2, -0.3]) - math.log(2))


def test_gda_is_linear_discriminant_analysis_but_for_its_ridge():
    """With many features the ridge is small, and scikit-learn gives the same decisions."""
    data = blobs(images=300)
    features, labels = data.views()
    weight, bias = gaussian_logits(features, labels, 3)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), labels.numpy())
    ours = (features @ weight.T + bias).argmax(dim=1)
    same = (ours == torch.from_numpy(peer.predict(features.numpy()))).float().mean()
    assert same > 0.99


def test_a_cache_adds_what_the_formula_says():
    """One key, at the feature itself: exp(0) = 1; one at right angles: exp(-beta)."""
    data = HeadData(torch.eye(2)[None], torch.arange(2), torch.eye(2).flip(0), SCALE)
    config = cr.TipAdapterF(alpha=3.0, beta=2.0, learning_rate=1e-12, epochs=1)
    head = fitted(config, data)
    expected = SCALE * torch.eye(2).flip(0) + 3 * torch.tensor(
        [[1.0, math.exp(-2)], [math.exp(-2), 1.0]]
    )
    torch.testing.assert_close(head(torch.eye(2)), expected)


def test_training_its_keys_lowers_the_loss():
    data = blobs()
    features, labels = data.views()
    losses = [
        float(cross_entropy(fitted(cr.TipAdapterF(epochs=n), data)(features), labels))
        for n in (1, 50)
    ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("config", [cr.TipAdapterF(), cr.GDA()])
def test_validation_images_choose(config):
    """Validation images that the text features answer wrongly ask for more of the head."""
    data, others = blobs(), blobs(seed=1)
    wrong = normalize(data.classes.roll(1, 0), dim=-1)  # text features of the neighbours
    data = HeadData(data.features, data.labels, wrong, SCALE, (others.features[0], others.labels))
    head = config.zero_shot_head(data)
    (note,) = config.fit(head, data).notes
    assert "by the validation images" in note
    answers = head(others.features[0]).argmax(dim=1)
    assert (answers == others.labels).float().mean() > 0.6  # none without the head


def test_gda_without_folds_says_so():
    data = blobs(images=1)
    config = cr.GDA()
    (note,) = config.fit(config.zero_shot_head(data), data).notes
    assert note == "GDA: alpha = 1, as a class has a single training image."


@pytest.mark.parametrize("method", HEADS)
def test_a_head_is_saved_and_answers_the_same(method, tmp_path):
    data, model = cr.load_data("clipart"), cr.load_model("lite0")
    few = Split(data.test.items[::12], data.classes)
    data = cr.Data(data.name, data.classes, data.train, few)
    run = cr.fit(model, data, cr.TrainConfig(method=method, shots=2), out=tmp_path / "run")
    answers = run.predictions.tuned
    run.adapter.detach()
    classifier = cr.Classifier.load(tmp_path / "run", model=model)
    found = classifier.predict([item.open() for item in few])
    classifier.close()
    rows = torch.tensor([[row["tuned"][name] for name in data.classes] for row in found])
    torch.testing.assert_close(rows, answers, atol=1e-5, rtol=1e-4)
    assert run.metrics["trainable_parameters"] > 0
    assert not torch.equal(run.predictions.zero_shot, answers)
