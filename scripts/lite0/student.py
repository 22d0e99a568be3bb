"""The student: open_clip's text tower, trained to point where the teacher points.

Two savings change nothing in the result. A template's beginning is the same for all names and
attention is causal, so it is encoded once a group, not once a prompt. The last block is computed
at the end-of-text token only.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from open_clip import SimpleTokenizer
from open_clip.transformer import TextTransformer
from torch import nn
from torch.nn.functional import (
    cross_entropy,
    embedding,
    linear,
    normalize,
    scaled_dot_product_attention,
)

from lite0.lexicon import TEMPLATES, Lexicon

START, END = 49406, 49407


def token_table(token_embeddings: torch.Tensor, width: int, std: float = 0.02) -> torch.Tensor:
    """Initial token vectors: the sentence embeddings of the tokens' texts, by PCA to the width."""
    centred = token_embeddings - token_embeddings.mean(0)
    _, _, right = torch.linalg.svd(centred, full_matrices=False)
    table = centred @ right[:width].T
    return table * (std / table.std())


def packed_forward(
    tower: TextTransformer, prefix: torch.Tensor, bodies: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Features of prompts ``prefix + body`` whose end-of-text tokens are at ``body[i, ends[i]]``.

    Equal to the tower's own features of the whole prompts. ``prefix`` ``(P, width)`` and
    ``bodies`` ``(B, L, width)`` are token vectors, before the positions are added.
    """
    p, (b, n, _) = len(prefix), bodies.shape
    x_prefix = prefix + tower.positional_embedding[:p]
    x = bodies + tower.positional_embedding[p : p + n]
    rows = torch.arange(b)
    mask = torch.ones(n, p + n, dtype=torch.bool).tril(p)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        keys_values_prefix, y = _keys_values(block, x_prefix), block.ln_1(x)
        x = _attend_and_mlp(block, x, y, _keys_values(block, y, False), keys_values_prefix, mask)
        x_prefix = block(x_prefix[None], attn_mask=_causal(p))[0]
    keys_values_prefix, y = _keys_values(last, x_prefix), last.ln_1(x)
    end_mask = mask[ends][:, None, None, :]
    x = _attend_and_mlp(last, x[rows, ends][:, None], y[rows, ends][:, None],
                        _keys_values(last, y, False), keys_values_prefix, end_mask)  # fmt: skip
    return tower.ln_final(x[:, 0]) @ tower.text_projection


def _causal(length: int) -> torch.Tensor:
    return torch.full((length, length), -math.inf).triu(1)


def _keys_values(block: nn.Module, x: torch.Tensor, normalise: bool = True):
    """Keys and values as ``(..., heads, tokens, head width)``."""
    x = block.ln_1(x) if normalise else x
    width, attention = x.shape[-1], block.attn
    keys_values = linear(x, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    return [_split_heads(part, attention.num_heads) for part in keys_values.chunk(2, -1)]


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _attend_and_mlp(block, x, y, keys_values, keys_values_prefix, mask) -> torch.Tensor:
    """One residual block at the positions of ``x``; ``y`` is its layer norm."""
    attention, width = block.attn, x.shape[-1]
    queries = linear(y, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    keys, values = (
        torch.cat([prefix.expand(len(x), -1, -1, -1), own], dim=-2)
        for prefix, own in zip(keys_values_prefix, keys_values, strict=True)
    )
    queries = _split_heads(queries, attention.num_heads)
    heads = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    x = x + attention.out_proj(heads.transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln_2(x))


class Prompts:
    """Draws batches of prompts: a share from each lexicon, in groups of like length."""

    def __init__(self, lexicons: list[tuple[float, Lexicon]], batch_size: int, groups: int, seed):
        self.batch_size, self.groups = batch_size, groups
        self.lexicons = lexicons
        self.random = torch.Generator().manual_seed(seed)
        tokenizer = SimpleTokenizer()
        self.templates = [
            ([START, *tokenizer.encode(before)], [*tokenizer.encode(after), END])
            for before, after in (template.split("{}") for template in TEMPLATES)
        ]

    def batch(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield groups of (prefix, bodies, ends, directions), one template each."""
        drawn = []
        for share, lexicon in self.lexicons:
            count = round(share * self.batch_size)
            picks = torch.multinomial(lexicon.weights, count, True, generator=self.random)
            drawn += [(lexicon.tokens[i], lexicon.directions[i]) for i in picks.tolist()]
        drawn.sort(key=lambda item: len(item[0]))
        size = math.ceil(len(drawn) / self.groups)
        for start in range(0, len(drawn), size):
            tokens, directions = zip(*drawn[start : start + size], strict=True)
            pick = torch.randint(len(self.templates), (), generator=self.random)
            prefix, suffix = self.templates[pick]
            bodies = [[*t, *suffix] for t in tokens]
            ends = torch.tensor([len(body) - 1 for body in bodies])
            longest = max(map(len, bodies))
            padded = torch.tensor([body + [0] * (longest - len(body)) for body in bodies])
            yield torch.tensor(prefix), padded, ends, torch.stack(directions)


def batch_features(tower: TextTransformer, groups) -> torch.Tensor:
    """Features of a batch's groups; the token table is read once, with a sparse gradient."""
    tokens = [part for prefix, bodies, *_ in groups for part in (prefix, bodies)]
    vectors = embedding(
        torch.cat([part.flatten() for part in tokens]), tower.token_embedding.weight, sparse=True
    )
    vectors = vectors.split([part.numel() for part in tokens])
    return torch.cat([
        packed_forward(tower, prefix, bodies.unflatten(0, ids.shape), ends)
        for prefix, bodies, (_, ids, ends, _) in zip(
            vectors[0::2], vectors[1::2], groups, strict=True
        )
    ])  # fmt: skip


@dataclass
class Stage:
    """One run of the learning rate, up and down again to zero."""

    steps: int
    shares: tuple[float, float, float] = (0.5, 0.42, 0.08)  # dictionary, classes, hypernyms
    cosine_weight: float = 20.0
    learning_rate: float = 3e-3
    table_learning_rate: float = 1e-2


def train(
    tower: TextTransformer,
    prompts: Prompts,
    anchors: torch.Tensor,
    stage: Stage,
    sharpness: float = 25.0,
    report=print,
) -> None:
    """Fit the tower to the directions, by the cosine and by a cross entropy.

    The cross entropy is between the student's and the target's softmax over candidates: the class
    directions (``anchors``) and all directions of the batch.
    """
    table = tower.token_embedding.weight
    others = [p for p in tower.parameters() if p is not table]
    matrices = [p for p in others if p.ndim == 2]
    vectors = [p for p in others if p.ndim != 2]
    optimizers = [
        torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            lr=stage.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        ),
        # changes the vectors of a batch's tokens only; rare tokens keep their initial vectors
        torch.optim.SparseAdam([table], lr=stage.table_learning_rate, betas=(0.9, 0.98)),
    ]
    steps = stage.steps
    full_rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    warm_up = max(1, min(100, steps // 10))
    started, running = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        rate = min(1.0, step / warm_up) * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / steps))
        for optimizer, rates in zip(optimizers, full_rates, strict=True):
            for group, full_rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * full_rate
        groups = list(prompts.batch())
        features = normalize(batch_features(tower, groups), dim=-1)
        targets = torch.cat([directions for *_, directions in groups])
        candidates = torch.cat([anchors, targets])
        wanted = (sharpness * targets @ candidates.T).softmax(-1)
        contrast = cross_entropy(sharpness * features @ candidates.T, wanted)
        cosine = (features * targets).sum(-1).mean()
        loss = contrast + stage.cosine_weight * (1 - cosine)
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running += cosine.item()
        if step % 50 == 0 or step == steps:
            elapsed = time.monotonic() - started
            report(f"  step {step}/{steps}  cosine {running / (step % 50 or 50):.3f}  "
                   f"loss {loss.item():.3f}  {elapsed:.0f} s")  # fmt: skip
            running = 0.0
