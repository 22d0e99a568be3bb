"""Images and texts that commands take as arguments, and what is said of those they cannot read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from clip_randlora.cli.console import print_notes
from clip_randlora.errors import UserError

if TYPE_CHECKING:
    from clip_randlora.cli.progress_bars import ProgressBars
    from clip_randlora.data import Skipped
    from clip_randlora.data.inputs import Input

IMAGES_HELP = (
    "Files, folders, .zip and .tar files, globs or URLs; - reads an image, or one path a line, "
    "from standard input."
)


def read_images(
    images: Sequence[str], on_progress: ProgressBars | None = None
) -> list[Input] | Iterator[Input]:
    """Return the images of some arguments; an iterator if paths come from standard input."""
    from clip_randlora.data.inputs import each_input, read_standard_input

    sources = chain.from_iterable(
        read_standard_input(sys.stdin.buffer) if image == "-" else [image] for image in images
    )
    entries = each_input(sources, _say_left_out, on_progress)
    return entries if "-" in images else list(entries)


def _say_left_out(left_out: list[Skipped]) -> None:
    from clip_randlora.data import summarize_skipped

    print_notes([summarize_skipped(left_out)])


def name_unreadable(errors: Sequence[str], answered: int) -> None:
    """Print every image that could not be read, and their number."""
    if errors:
        of = len(errors) + answered
        print_notes([*errors, f"{len(errors)} of {of} images could not be read."])


def read_lines(path: Path, option: str) -> list[str]:
    """Return the lines of a text file in UTF-8 that are not empty, without spaces around them.

    Raises:
        UserError: the file cannot be read, or is not UTF-8; it is named after ``option``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{option} {path}: is no text in UTF-8; save it as such") from None
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}; check the path") from None
    return [line.strip() for line in lines if line.strip()]
