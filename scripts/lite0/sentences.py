"""Sentence embeddings of all-MiniLM-L6-v2."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from open_clip import SimpleTokenizer
from transformers import AutoTokenizer, BertModel


class SentenceEncoder:
    """Encodes texts to unit vectors of 384 numbers; every list of texts is encoded only once."""

    def __init__(self, model_folder: Path, cache_folder: Path, tokens_per_batch: int = 2048):
        self.model_folder = model_folder
        self.cache_folder = cache_folder
        self.tokens_per_batch = tokens_per_batch

    def encode(self, texts: list[str], max_tokens: int = 48) -> torch.Tensor:
        """Return ``(len(texts), 384)`` unit vectors, from the cache if they are in it."""
        digest = hashlib.sha256("\n".join([str(max_tokens), *texts]).encode()).hexdigest()[:16]
        path = self.cache_folder / f"sentences-{digest}.npy"
        if not path.exists():
            self.cache_folder.mkdir(parents=True, exist_ok=True)
            np.save(path, self._encode(texts, max_tokens).half().numpy())
        return torch.from_numpy(np.load(path)).float()

    @torch.inference_mode()
    def _encode(self, texts: list[str], max_tokens: int) -> torch.Tensor:
        tokenizer = AutoTokenizer.from_pretrained(self.model_folder)
        model = BertModel.from_pretrained(self.model_folder, add_pooling_layer=False).eval()
        ids = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
        embeddings = torch.empty(len(texts), model.config.hidden_size)
        for batch in _batches_of_like_length([len(i) for i in ids], self.tokens_per_batch):
            padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            states = model(**padded).last_hidden_state
            mask = padded["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            embeddings[batch] = torch.nn.functional.normalize(mean, dim=-1)
        return embeddings


def token_texts() -> list[str]:
    """The text of every token of CLIP's vocabulary but the last two, start and end."""
    tokenizer = SimpleTokenizer()
    return [tokenizer.decode([i]).strip() for i in range(len(tokenizer.encoder) - 2)]


def _batches_of_like_length(lengths: list[int], tokens_per_batch: int):
    """Yield index lists, shortest texts first, so that there is little padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= tokens_per_batch:
            stop += 1
        yield order[start:stop]
        start = stop
