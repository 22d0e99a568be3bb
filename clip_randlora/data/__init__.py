"""Labelled images: where they come from, how they are split, drawn, decoded and augmented.

An image's way, each module importing only earlier ones:

1. `images` decodes one file; `coop_draws` has CoOp's draw of few-shot images; `dataset` holds
   items, splits and data sets.
2. `sources` lists a folder or an archive; `registry` has the bundled sets.
3. `folder_names` and `lists` read what folders and lists say of images; `texts` and `label_files`
   read files of labels, and `tables` finds the images and columns in them. `folders` sorts images
   into classes and splits by all of these, and `table_sources` by a table alone.
4. `dataset_spec` describes a data set in YAML; `parts` finds the large files of one, and `shards`
   reads tar archives; `published` finds a set's images through `hub_datasets` (parquet, too) or
   `torchvision_sets`, and `coop_splits` by one of CoOp's files.
5. `projects` reads what the app saves; `layouts` reads any of these; `loading` makes a data set of
   it, with a test split (`sampling`); `class_halves` takes its base or its novel classes.
6. `decoding` makes batches of tensors, `streaming` decodes training images when they are needed,
   `disk_cache` keeps decoded images in a folder, and `augmentation` crops them.

`inputs` takes images that are to be classified.
"""

from clip_randlora.data.augmentation import AugmentedViews, augment, draw_crops
from clip_randlora.data.class_halves import select_classes
from clip_randlora.data.dataset import Content, Data, Item, Skipped, Split, summarize_skipped
from clip_randlora.data.dataset_spec import DatasetSpec, find_dataset_spec, packaged_specs
from clip_randlora.data.decoding import ImageBatch, ImageCache, decode_batches, decode_shots
from clip_randlora.data.disk_cache import DiskCache
from clip_randlora.data.images import UnreadableImage, check_image, decode_image
from clip_randlora.data.loading import list_images, load_data
from clip_randlora.data.registry import DATASETS, BundledDataset
from clip_randlora.data.sampling import draw_shots, draw_validation
from clip_randlora.data.sources import DiskFile
from clip_randlora.data.streaming import StreamedImages, TrainingImages

__all__ = [
    "DATASETS",
    "AugmentedViews",
    "BundledDataset",
    "Content",
    "Data",
    "DatasetSpec",
    "DiskCache",
    "DiskFile",
    "ImageBatch",
    "ImageCache",
    "Item",
    "Skipped",
    "Split",
    "StreamedImages",
    "TrainingImages",
    "UnreadableImage",
    "augment",
    "check_image",
    "decode_batches",
    "decode_image",
    "decode_shots",
    "draw_crops",
    "draw_shots",
    "draw_validation",
    "find_dataset_spec",
    "list_images",
    "load_data",
    "packaged_specs",
    "select_classes",
    "summarize_skipped",
]
