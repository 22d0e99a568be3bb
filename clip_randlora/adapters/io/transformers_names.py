"""Where the weights of open_clip's ViT CLIP stand in transformers' ``CLIPModel``.

The two differ in names, in q, k and v (one packed tensor here, three there) and in the two output
projections, which are transposed there.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from clip_randlora.errors import UserError

_OUTSIDE_BLOCKS = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_BLOCK = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<number>\d+)\.(?P<rest>.+)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PACKED = "attn.in_proj_"


def transformers_names(name: str) -> dict[str, str]:
    """Name one open_clip tensor in ``CLIPModel``.

    Returns:
        ``{part: name}``: one for each of q, k and v for a packed tensor, otherwise one under "".

    Raises:
        UserError: ``CLIPModel`` has no place for it.
    """
    if name in _OUTSIDE_BLOCKS:
        return {"": _OUTSIDE_BLOCKS[name]}
    block = _BLOCK.fullmatch(name)
    if block:
        tower = "vision_model" if block["visual"] else "text_model"
        layer = f"{tower}.encoder.layers.{block['number']}"
        if block["rest"].startswith(_PACKED):
            leaf = block["rest"].removeprefix(_PACKED)
            return {part: f"{layer}.self_attn.{part}_proj.{leaf}" for part in "qkv"}
        module, _, leaf = block["rest"].rpartition(".")
        if module in _IN_BLOCK:
            return {"": f"{layer}.{_IN_BLOCK[module]}.{leaf}"}
    raise UserError(f"transformers' CLIPModel has no place for {name}")


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, unpack and transpose an open_clip state dict into one of ``CLIPModel``.

    Raises:
        UserError: a tensor has no place there, named.
    """
    renamed = {}
    for name, tensor in weights.items():
        names = transformers_names(name)
        parts = tensor.chunk(len(names)) if tensor.ndim else [tensor]
        for new_name, part in zip(names.values(), parts, strict=True):
            part = part.T if name in _TRANSPOSED else part
            renamed[new_name] = part.contiguous()
    return renamed
