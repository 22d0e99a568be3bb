import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import clip_randlora as cr
from clip_randlora.clip.models import BUNDLED, default_pretrained, find_device


def test_lite0_is_an_ordinary_open_clip_model():
    ours = cr.load_model("lite0")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{BUNDLED['lite0']}")
    theirs.eval()
    image = Image.effect_mandelbrot((200, 180), (-2, -1.5, 1, 1.5), 30).convert("RGB")
    tokens = ours.tokenizer(["a photo of a cat."])
    assert torch.equal(ours.preprocess(image), preprocess(image))
    with torch.no_grad():
        expected = theirs(preprocess(image)[None], tokens)
        got = ours.net(preprocess(image)[None], tokens)
    assert all(torch.equal(first, second) for first, second in zip(expected, got, strict=True))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(200, 151), (97, 300), (40, 50)])
def test_training_images_are_resized_as_open_clip_would(tiny, mode, size):
    """torch and Pillow round differently: a few values differ, by 1."""
    image = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 30).convert("RGB")
    settings = tiny.net.visual.preprocess_cfg | {"resize_mode": mode, "size": 61}
    tiny.net.visual.preprocess_cfg = settings
    exact = tiny.square()
    tiny.net.visual.preprocess_cfg = settings | {"size": 32}
    difference = (tiny.square(61)(image).int() - exact(image).int()).abs()
    assert difference.shape == (3, 61, 61)
    assert difference.max() <= 1 and difference.float().mean() < 0.02


def test_lite0_fits_in_the_package():
    (weights,) = BUNDLED["lite0"].glob("*.safetensors")
    assert weights.stat().st_size <= 40e6
    assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(weights).values())


def test_lite0_knows_everyday_things_zero_shot():
    """General names (fruit, tool) and drawings: its image tower was trained on neither."""
    model, data = cr.load_model("lite0"), cr.load_data("clipart")
    run = cr.fit(model, data, cr.TrainConfig(steps=1, shots=1, learning_rate=1e-12))
    # eleven classes: chance is 9 %
    assert run.metrics["zero_shot"]["top1"] > 0.3


def test_square_is_preprocess_before_normalising(tiny):
    image = Image.effect_mandelbrot((90, 70), (-2, -1.5, 1, 1.5), 30).convert("RGB")
    square = tiny.square()(image)
    assert square.dtype == torch.uint8
    assert torch.equal(tiny.normalize(square.float() / 255), tiny.preprocess(image))
    assert tiny.square(48)(image).shape == (3, 48, 48)


def test_random_weights_only_when_asked_for():
    model = cr.load_model("RN50", pretrained=None)
    assert model.pretrained.startswith("random:")
    assert model.image_size == 224
    assert "random weights" in model.net.model_name


def test_random_weights_come_back_from_their_seed(tiny_folder):
    torch.manual_seed(7)
    first = cr.load_model(str(tiny_folder), pretrained=None)
    state = torch.get_rng_state()
    again = cr.load_model(first.name, first.pretrained)
    assert torch.equal(state, torch.get_rng_state())
    other = cr.load_model(str(tiny_folder), pretrained=None)
    weights, same, others = (model.net.state_dict() for model in (first, again, other))
    assert all(torch.equal(same[key], tensor) for key, tensor in weights.items())
    assert not torch.equal(others["visual.proj"], weights["visual.proj"])
    assert again.pretrained == first.pretrained != other.pretrained
    torch.manual_seed(7)
    assert cr.load_model(str(tiny_folder), pretrained=None).pretrained == first.pretrained


@pytest.mark.slow
def test_weights_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    weights = open_clip.create_model("RN50").state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    model = cr.load_model("RN50", pretrained=tmp_path / "weights.safetensors")
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.net.state_dict().items())


def test_unknown_names_and_tags_say_what_there_is(tmp_path):
    with pytest.raises(cr.UserError, match="model ViT-Z: not a name that open_clip knows"):
        cr.load_model("ViT-Z")
    with pytest.raises(cr.UserError, match="pretrained nonsense: neither a file nor a tag of RN50"):
        cr.load_model("RN50", pretrained="nonsense")
    with pytest.raises(cr.UserError, match="lite0 comes with its own weights"):
        cr.load_model("lite0", pretrained="openai")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({}))
    with pytest.raises(cr.UserError, match="could not load the weights of local-dir"):
        cr.load_model(str(tmp_path))


def test_without_a_network_the_error_says_what_was_wanted(monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    with pytest.raises(cr.UserError, match=r"weights openai of ViT-B-32 .*lite0, which is bundled"):
        cr.load_model("ViT-B-32")


def test_every_default_tag_is_one_that_open_clip_has():
    for name in open_clip.list_models():
        tag = default_pretrained(name)
        assert tag is None or tag in open_clip.list_pretrained_tags_by_model(name), name


def test_openai_weights_get_quick_gelu(monkeypatch):
    asked = {}

    def record(name, **arguments):
        asked.update(arguments)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model", record)
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(cr.UserError):
            cr.load_model("ViT-B-32", pretrained=tag)
        assert asked["force_quick_gelu"] is quick


def test_a_device_that_is_not_there_is_an_error():
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(cr.UserError, match="device quantum"):
        find_device("quantum")


def test_images_are_not_normalised_twice(tiny):
    image = Image.effect_noise((40, 40), 90).convert("RGB")
    square = tiny.square()(image)[None]
    expected = tiny.net.encode_image(tiny.preprocess(image)[None], normalize=True)
    for images in (square, square / 255):
        torch.testing.assert_close(tiny.encode_image(images), expected, atol=1e-5, rtol=0)
    for wrong in (tiny.preprocess(image)[None], square.float(), square / torch.nan):
        with pytest.raises(cr.UserError, match="do not normalise them: that is done here"):
            tiny.encode_image(wrong)
