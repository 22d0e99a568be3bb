"""The format ``transformers``: ``CLIPModel`` and ``CLIPProcessor`` of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, PilBackend

from clip_randlora.adapters.io.transformers_names import to_transformers
from clip_randlora.errors import UserError
from clip_randlora.export.export_source import ExportSource, Features, require_equal, require_scale

_SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def write(source: ExportSource, folder: Path) -> None:
    """Merge the adapter, and write model, tokenizer and image processor."""
    source.adapter.merge()
    weights = source.merged_weights()
    config = clip_config(source.model.net)
    config.logit_scale_init_value = float(weights["logit_scale"])
    config.save_pretrained(folder)
    weights = to_transformers(weights)
    with source.step("writing the weights"):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    CLIPProcessor(_image_processor(source), _tokenizer(source)).save_pretrained(folder)
    source.write_prompts(folder)


def clip_config(net: Any) -> CLIPConfig:
    """Read the sizes of an open_clip ViT CLIP into transformers' configuration."""
    tokens, width = net.token_embedding.weight.shape
    start, end = tokens - 2, tokens - 1  # the last two of CLIP's vocabulary
    return CLIPConfig(
        projection_dim=net.text_projection.shape[1],
        logit_scale_init_value=float(net.logit_scale.detach()),
        text_config={
            **_tower(net.transformer, net.ln_final),
            "vocab_size": tokens,
            "hidden_size": width,
            "max_position_embeddings": net.positional_embedding.shape[0],
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={
            **_tower(net.visual.transformer, net.visual.ln_post),
            "hidden_size": net.visual.conv1.out_channels,
            "image_size": net.visual.image_size[0],
            "patch_size": net.visual.conv1.kernel_size[0],
        },
        architectures=["CLIPModel"],
    )


def _tower(transformer: Any, last_norm: nn.LayerNorm) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.c_fc.out_features,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
        "layer_norm_eps": last_norm.eps,
    }


def _tokenizer(source: ExportSource) -> CLIPTokenizer:
    """Build transformers' tokenizer from open_clip's vocabulary."""
    ours: Any = source.model.tokenizer
    vocabulary = {_SPECIAL_TOKENS.get(token, token): i for token, i in ours.encoder.items()}
    merges = list(ours.bpe_ranks)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=ours.context_length)


def _image_processor(source: ExportSource) -> PilBackend:
    """Build an image processor that resizes with Pillow, as open_clip does.

    A ``CLIPImageProcessor`` is always loaded as the one that resizes with torchvision, whose
    pixels are sometimes a grey level off. A ``PilBackend`` is loaded as it was saved.
    """
    size, settings = source.model.image_size, source.preprocess_cfg
    square = {"height": size, "width": size}
    keeps_shape = settings.get("resize_mode", "shortest") == "shortest"
    return PilBackend(
        do_convert_rgb=True,
        do_resize=True,
        size={"shortest_edge": size} if keeps_shape else square,
        default_to_square=not keeps_shape,
        resample=source.resampling,
        do_center_crop=keeps_shape,
        crop_size=square,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )


def verify(source: ExportSource, folder: Path) -> None:
    """Load the folder with transformers and compare features, tokens and pixels."""
    with source.step("loading the export"):
        loaded: Any = CLIPModel.from_pretrained(folder, output_loading_info=True)
    net, loading = loaded
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise UserError(f"nothing written: CLIPModel loads other tensors than it holds: {loading}")
    require_equal_features(net, source.expected)
    require_scale(net.logit_scale, source.logit_scale)
    processor = CLIPProcessor.from_pretrained(folder)
    prompts = [prompt for of_class in source.prompts.values() for prompt in of_class]
    got = processor.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    ours = source.model.tokenizer(prompts)
    require_equal("tokens", _without_padding(got["input_ids"]), _without_padding(ours), 0)
    image = Image.radial_gradient("L").resize((300, 200)).convert("RGB")
    pixels = torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0])
    require_equal("pixels", pixels, source.model.preprocess(image), 1e-3)


@torch.inference_mode()
def require_equal_features(net: nn.Module, expected: Features) -> None:
    """Raise a UserError if a ``CLIPModel``, or one in peft's wrapper, gives other features."""
    output = net.eval()(pixel_values=expected.pixels, input_ids=expected.tokens)
    expected.require_equal(output.image_embeds, output.text_embeds, tolerance=1e-4)


def _without_padding(tokens: Tensor) -> Tensor:
    """Set the tokens after the end of the text to 0: the two libraries pad differently."""
    padding = torch.arange(tokens.shape[1]) > tokens.argmax(dim=-1, keepdim=True)
    return tokens.masked_fill(padding, 0)
