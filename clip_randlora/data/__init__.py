"""Labelled images: where they come from, how they are split, drawn, decoded and augmented."""

from clip_randlora.data.augmentation import AugmentedViews, augment
from clip_randlora.data.dataset import Content, Data, Item, Skipped, Split, summarize_skipped
from clip_randlora.data.dataset_spec import DatasetSpec, find_dataset_spec, packaged_specs
from clip_randlora.data.decoding import ImageBatch, ImageCache, decode_batches, decode_shots
from clip_randlora.data.images import UnreadableImage, check_image, decode_image
from clip_randlora.data.loading import list_images, load_data
from clip_randlora.data.registry import DATASETS, BundledDataset
from clip_randlora.data.sampling import draw_shots
from clip_randlora.data.sources import DiskFile

__all__ = [
    "DATASETS",
    "AugmentedViews",
    "BundledDataset",
    "Content",
    "Data",
    "DatasetSpec",
    "DiskFile",
    "ImageBatch",
    "ImageCache",
    "Item",
    "Skipped",
    "Split",
    "UnreadableImage",
    "augment",
    "check_image",
    "decode_batches",
    "decode_image",
    "decode_shots",
    "draw_shots",
    "find_dataset_spec",
    "list_images",
    "load_data",
    "packaged_specs",
    "summarize_skipped",
]
