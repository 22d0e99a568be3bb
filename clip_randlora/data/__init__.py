"""Labelled images: where they come from, how they are split, drawn, decoded and augmented."""

from clip_randlora.data.augmentation import Views, augment
from clip_randlora.data.dataset import Content, Data, Item, Skipped, Split, summarize_skipped
from clip_randlora.data.dataset_spec import Description, described_sets, find_description
from clip_randlora.data.decoding import Decoded, KeptImages, decode_batches, decode_shots
from clip_randlora.data.images import UnreadableImage, check_image, decode_image
from clip_randlora.data.loading import list_images, load_data
from clip_randlora.data.registry import DATASETS, Dataset
from clip_randlora.data.sampling import draw_shots
from clip_randlora.data.sources import DiskFile

__all__ = [
    "DATASETS",
    "Content",
    "Data",
    "Dataset",
    "Decoded",
    "Description",
    "DiskFile",
    "Item",
    "KeptImages",
    "Skipped",
    "Split",
    "UnreadableImage",
    "Views",
    "augment",
    "check_image",
    "decode_batches",
    "decode_image",
    "decode_shots",
    "described_sets",
    "draw_shots",
    "find_description",
    "list_images",
    "load_data",
    "summarize_skipped",
]
