import open_clip
import pytest
import torch
from torch.nn.functional import normalize

import clip_randlora as cr
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.templates import check_templates
from clip_randlora.clip.text import TextClassifier, encode_tokens, trim

PROMPTS = ["a photo of a cat.", "a photo of a golden retriever on a skateboard.", "dog"]


def test_prompts_of_templates_and_own_names():
    prompts = make_prompts(
        ["Tabby_Cat", "dog"],
        ["a photo of a {}.", "art of the {}."],
        {"dog": ["hound", "A very good boy."]},
    )
    assert prompts == [
        ["a photo of a tabby cat.", "art of the tabby cat."],
        ["A very good boy.", "a photo of a hound.", "art of the hound."],
    ]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{name}", "{"])
def test_templates_need_one_place_for_the_name(template):
    with pytest.raises(cr.UserError, match=r"write \{\} once"):
        check_templates([template])


def test_prompts_for_an_unknown_class_are_refused():
    with pytest.raises(cr.UserError, match="no class 'bird'"):
        make_prompts(["cat"], names={"bird": ["a bird"]})


@pytest.mark.slow
def test_trimming_is_exact_on_vit_b_32():
    net = open_clip.create_model("ViT-B-32").eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(PROMPTS)
    trimmed = trim(net, tokens)
    # start, 9 words and a full stop, end of text
    assert (tokens.shape[1], trimmed.shape[1]) == (77, 12)
    with torch.no_grad():
        difference = encode_tokens(net, trimmed) - net.encode_text(tokens, normalize=True)
    assert difference.abs().max() < 1e-5


def test_trimming_is_exact_for_gradients_too(tiny):
    tokens = tiny.tokenizer(PROMPTS)
    embedding = tiny.net.token_embedding.weight
    gradients = []
    for encoded in (encode_tokens(tiny.net, trim(tiny.net, tokens)), tiny.net.encode_text(tokens)):
        loss = normalize(encoded, dim=-1)[:, 0].sum()
        gradients.append(torch.autograd.grad(loss, embedding)[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_separate_causal_text_tower_is_trimmed_too(tiny):
    net = open_clip.CustomTextCLIP(
        32,
        {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
        {"width": 48, "heads": 2, "layers": 2},
    ).eval()
    tokens = tiny.tokenizer(PROMPTS)
    trimmed = trim(net, tokens)
    assert trimmed.shape[1] == 12
    with torch.no_grad():
        difference = encode_tokens(net, trimmed) - net.encode_text(tokens, normalize=True)
    assert difference.abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "MobileCLIP-S1"])
def test_towers_that_see_every_position_are_left_alone(name):
    net = open_clip.create_model(name).eval()
    tokens = torch.randint(1, 1000, (2, net.context_length))
    assert trim(net, tokens) is tokens
    with torch.no_grad():
        expected = net.encode_text(tokens, normalize=True)
        assert torch.equal(encode_tokens(net, tokens), expected)


def test_ensemble_is_the_normalised_mean_of_normalised_features(tiny):
    classes, templates = ["cat", "dog"], ["a photo of a {}.", "art of the {}.", "{}"]
    text = TextClassifier(tiny, classes, make_prompts(classes, templates))
    with torch.no_grad():
        ours = text.features()
        for row, name in enumerate(classes):
            tokens = tiny.tokenizer([template.format(name) for template in templates])
            mean = tiny.net.encode_text(tokens, normalize=True).mean(dim=0)
            torch.testing.assert_close(ours[row], normalize(mean, dim=0), atol=1e-6, rtol=0)
