"""Write the features of many images or texts into one file, for a search index.

The file is written as its rows are computed, so a million images take the memory of a few hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from clip_randlora.adapters.config import Tower
from clip_randlora.classifier import Classifier, warn_left_out
from clip_randlora.clip.prompts import note_cut
from clip_randlora.data.inputs import listed_inputs, none_readable
from clip_randlora.errors import UserError, needs_extra
from clip_randlora.utils.outputs import atomic_write
from clip_randlora.utils.progress import OnProgress, report_streamed

_Write = Callable[[Sequence[str], Sequence[Tensor]], None]


@dataclass(frozen=True)
class Embedded:
    """What `embed_images` or `embed_texts` wrote.

    Attributes:
        rows: how many images or texts.
        width: E, how many numbers each feature has.
        errors: why the other images cannot be read, a line each.
        notes: on texts that were cut, and on an encoder that the run did not tune.
    """

    rows: int
    width: int
    errors: list[str]
    notes: list[str]


def check_out(out: str | Path) -> None:
    """Refuse a file that cannot be written as asked, before anything is computed.

    Raises:
        UserError: its name ends with neither ``.parquet`` nor ``.npy``, it exists, or pyarrow is
            needed and missing.
    """
    out = Path(out)
    if out.suffix not in (".parquet", ".npy"):
        raise UserError(f"{out}: give a name that ends with .parquet or .npy")
    for path in (out, _names_file(out)) if out.suffix == ".npy" else (out,):
        if path.exists():
            raise UserError(f"{path}: exists; choose another file")
    if out.suffix == ".parquet":
        with needs_extra("a .parquet file", "data"):
            import pyarrow.parquet  # noqa: F401


def embed_images(
    classifier: Classifier,
    images: Any,
    out: str | Path,
    *,
    strength: float | None = None,
    on_progress: OnProgress | None = None,
) -> Embedded:
    """Encode images and write their features, a row for each image that can be read, in order.

    - ``.parquet``: the columns ``image`` (path or URL, or ``image 3`` if it has no name),
      ``zero_shot`` and ``tuned``, which are lists of E float32.
    - ``.npy``: the tuned features alone, float32 (N, E), which an index takes as they are. Line i
      of the ``.txt`` of the same name is the image of row i. With ``strength=0`` the features are
      the zero-shot ones.

    Args:
        classifier: whose encoders are tuned; with a head, ``strength`` has to be 0.
        images: as for `Classifier.predict`.
        out: the file to write. It appears when it is complete, and is not overwritten.
        strength: of the tuned features; by default the classifier's.
        on_progress: see `clip_randlora.utils.progress.OnProgress`.

    Raises:
        UserError: as in `check_out`; no image can be read, or the run has a head.
    """
    check_out(out)
    entries, total = listed_inputs(images, warn_left_out)
    errors: list[str] = []
    strengths = _strengths(out, strength)
    batches = classifier.encode_image_batches(entries, strengths)
    counted = report_streamed(
        batches, "encoding images", total, on_progress, lambda batch: len(batch.names)
    )
    rows = width = 0
    with _writer(Path(out), "image") as write:
        for batch in counted:
            errors += [str(error) for error in batch.errors if error is not None]
            pairs = zip(batch.names, batch.errors, strict=True)
            names = [name for name, error in pairs if error is None]
            if names:
                write(names, batch.features)
                rows, width = rows + len(names), batch.features[0].shape[1]
        if not rows:
            raise none_readable(errors)
    return Embedded(rows, width, errors, _note_untuned(classifier, "vision", strengths[-1]))


def embed_texts(
    classifier: Classifier,
    texts: Sequence[str],
    out: str | Path,
    *,
    templates: Sequence[str] | None = None,
    strength: float | None = None,
    on_progress: OnProgress | None = None,
) -> Embedded:
    """Encode texts and write their features, as `embed_images` does; the first column is ``text``.

    Args:
        classifier: as for `embed_images`.
        texts: as for `Classifier.encode_texts`.
        out: as for `embed_images`.
        strength: as for `embed_images`.
        templates: as for `Classifier.encode_texts`.
        on_progress: as for `embed_images`.

    Raises:
        UserError: as in `check_out`; there is no text, one is empty, or the run has a head.
    """
    check_out(out)
    if not texts:
        raise UserError("no texts given; give at least one")
    cut: list[str] = []
    strengths = _strengths(out, strength)
    batches = classifier.encode_text_batches(texts, strengths, templates)
    counted = report_streamed(
        batches, "encoding texts", len(texts), on_progress, lambda batch: len(batch.texts)
    )
    width = 0
    with _writer(Path(out), "text") as write:
        for batch in counted:
            cut += batch.cut
            write(batch.texts, batch.features)
            width = batch.features[0].shape[1]
    notes = [note_cut(classifier.model, cut)] if cut else []
    notes += _note_untuned(classifier, "text", strengths[-1])
    return Embedded(len(texts), width, [], notes)


def _strengths(out: str | Path, strength: float | None) -> tuple[float | None, ...]:
    return (strength,) if Path(out).suffix == ".npy" else (0.0, strength)


def _note_untuned(classifier: Classifier, tower: Tower, strength: float | None) -> list[str]:
    adapter = classifier.adapter
    if tower in adapter.towers or not (adapter.strength if strength is None else strength):
        return []
    encoder = "image" if tower == "vision" else "text"
    return [f"The run did not tune the {encoder} encoder: these are its zero-shot features."]


# --- files ------------------------------------------------------------------------------------


@contextmanager
def _writer(out: Path, column: Literal["image", "text"]) -> Iterator[_Write]:
    """Yield a function that appends rows to a file, which appears at the end without an error."""
    if out.suffix == ".parquet":
        with atomic_write(out) as temporary, _parquet(temporary, column) as write:
            yield write
    else:
        with (
            atomic_write(out) as temporary,
            atomic_write(_names_file(out)) as names,
            _npy(temporary, names) as write,
        ):
            yield write


def _names_file(out: Path) -> Path:
    return out.with_suffix(".txt")


@contextmanager
def _parquet(path: Path, column: str) -> Iterator[_Write]:
    import pyarrow
    from pyarrow import parquet

    writer = None

    def write(names: Sequence[str], features: Sequence[Tensor]) -> None:
        nonlocal writer
        columns = {column: pyarrow.array(names, pyarrow.string())}
        for which, rows in zip(("zero_shot", "tuned"), features, strict=True):
            flat = pyarrow.array(rows.numpy().ravel())
            columns[which] = pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        table = pyarrow.table(columns)
        if writer is None:
            writer = parquet.ParquetWriter(path, table.schema, use_dictionary=False)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _npy(path: Path, names_path: Path) -> Iterator[_Write]:
    """Write rows behind a header whose number of rows is filled in at the end."""
    rows = width = 0

    with open(path, "wb") as file, open(names_path, "w", encoding="utf-8") as names_file:

        def write_header() -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
            np.lib.format.write_array_header_1_0(file, header)

        def write(names: Sequence[str], features: Sequence[Tensor]) -> None:
            nonlocal rows, width
            if not rows:
                width = features[0].shape[1]
                write_header()
            rows += len(names)
            file.write(features[0].numpy().astype("<f4", copy=False).tobytes())
            # a name may hold line breaks
            names_file.writelines(" ".join(name.splitlines()) + "\n" for name in names)

        yield write
        file.seek(0)
        write_header()
