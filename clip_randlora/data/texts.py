"""Small text files of a source, in the encodings in which programs write them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from clip_randlora.data.sources import File
from clip_randlora.errors import UserError

MAX_TEXT_BYTES = 64 * 2**20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FOREIGN = re.compile(r"(?<!\w)[^\W\d_a-zA-Z]{3,}(?!\w)")  # a word without one plain letter
_ACCENTED = re.compile(r"[^\W\d_a-zA-Z]")
_SYMBOLS = re.compile(r"[¢-¦¨©¬-¯±-³µ¶¸¹¼-¾×÷]")  # rare in names of files and classes


def read_text(file: File, where: str) -> str:
    """Read a small text file: in UTF-8 or UTF-16, or in Windows-1252, as Excel writes CSV.

    Args:
        file: from a folder or an archive.
        where: the file's name in errors.

    Raises:
        UserError: it is too big, cannot be read, or is in another encoding.
    """
    text = decode_text(read_bytes(file, where))
    if text is None:
        raise UserError(f"{where}: not in UTF-8; save it as CSV in UTF-8")
    return text


def read_bytes(file: File, where: str) -> bytes:
    """Read a small file; arguments and errors as for `read_text`."""
    if file.content.size > MAX_TEXT_BYTES:
        raise UserError(
            f"{where}: {file.content.size / 2**20:.0f} MiB, at most {MAX_TEXT_BYTES >> 20}"
        )
    try:
        content = file.content.read()
        data = content.read_bytes() if isinstance(content, Path) else content
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check it") from None
    assert isinstance(data, bytes)  # only files and members of archives can be texts
    return data


def decode_text(data: bytes) -> str | None:
    """Decode a text by its byte order mark, else by its content; None if that tells no encoding.

    UTF-16 without a mark has a zero in every second byte of plain letters. Every text is valid in
    Windows-1252, so it is taken only if the words look like a Western language: those of others
    would be whole words of accented letters, or symbols.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return _decode(data, encoding)
    start = data[:1000]
    for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if len(zeros) > 1 and 2 * zeros.count(0) > len(zeros):
            return _decode(data, encoding)
    if (text := _decode(data, "utf-8")) is not None:
        return text
    text = _decode(data, "cp1252")
    if text is None or "\0" in text or _FOREIGN.search(text):
        return None
    return text if len(_SYMBOLS.findall(text)) < len(_ACCENTED.findall(text)) else None


def _decode(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None
