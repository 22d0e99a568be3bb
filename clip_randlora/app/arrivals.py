"""What arrives in a folder or a zip: the images of classes, and images in no class folder."""

from __future__ import annotations

from pathlib import Path

from clip_randlora.data.folder_names import is_container, split_name, words_of
from clip_randlora.data.folders import NO_CLASS_FOLDER, Layout
from clip_randlora.data.label_files import may_have_labels
from clip_randlora.data.layouts import list_files, read_layout
from clip_randlora.data.sources import File

_MIXED = {
    "album", "apple", "camera", "dcim", "desktop", "download", "downloads", "folder", "misc", "new",
    "other", "roll", "screenshots", "sorted", "unsorted", "not", "upload", "uploads", "whatsapp",
}  # fmt: skip


def read_arrival(source: str | Path) -> tuple[Layout, list[File]]:
    """Sort what arrives into classes, by the rules of `clip_randlora.load_data`.

    Images that are all in one folder are one class, unless its name is that of no class: then,
    and in a zip without folders, they are not sorted yet.

    Returns:
        The class folders, and the images that are in none.

    Raises:
        UserError: it cannot be read, or has no image.
    """
    listing, images, _ = list_files(source)
    folders = {file.folder for file in images}
    if len(folders) == 1 and not any(map(may_have_labels, listing.files)):
        name = folders.pop().rpartition("/")[2]
        if _is_no_class(name):
            return Layout({}, skipped=listing.skipped), images
        return Layout({name: images}, skipped=listing.skipped), []
    tops = {file.parts[0] for file in listing.files}
    if len(tops) == 1 and Path(source).is_dir():
        return read_arrival(Path(source) / tops.pop())
    layout = read_layout(source)
    loose = {entry.name for entry in layout.skipped if entry.reason == NO_CLASS_FOLDER}
    layout.skipped = [entry for entry in layout.skipped if entry.name not in loose]
    return layout, [file for file in images if file.name in loose]


def _is_no_class(folder: str) -> bool:
    """Return whether images in a folder of this name can be of any class."""
    words = {word for word in words_of(folder) if not word.isdigit()}
    return words <= _MIXED or is_container(folder) or split_name(folder) is not None
