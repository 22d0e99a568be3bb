"""Label images by a classifier, sort them into class folders, and say which to label first."""

from clip_randlora.labelling.label_each import LabelledImage, Labelling, label_images
from clip_randlora.labelling.sorting import sort_into_folders
from clip_randlora.labelling.suggestions import suggest_next

__all__ = [
    "LabelledImage",
    "Labelling",
    "label_images",
    "sort_into_folders",
    "suggest_next",
]
