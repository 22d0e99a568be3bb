"""Move and remove images of a folder by an edited CSV; a journal puts everything back.

The journal is written, and forced to the disk, before each move: a fix that was killed can be
undone. No file is deleted, and none is overwritten.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from clip_randlora.checking.problems_file import Action
from clip_randlora.data import Data, DiskFile, Item
from clip_randlora.data.sources import list_folder
from clip_randlora.errors import UserError

_FORMAT = "clip-randlora fixes"
_REMOVED = "_removed"


@dataclass(frozen=True)
class Move:
    """A file's path before and after, both absolute."""

    before: Path
    after: Path


def plan_moves(folder: str | Path, data: Data, actions: Sequence[Action]) -> list[Move]:
    """Return the moves that actions ask for; nothing is moved yet.

    A moved image goes to the folder of the class beside its own folder: in the same split. A
    removed image goes to the same place below a folder beside the data, called as the data with
    ``_removed`` at its end. A name that is taken gets a number.

    Args:
        folder: the data, a folder of class folders.
        data: what `load_data` made of it.
        actions: from `read_actions`.

    Raises:
        UserError: the data is no folder of class folders, or an action names an image or a class
            that it does not have.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{folder}: --fix moves files of a folder of class folders; unpack or download it first"
        )
    root = root.resolve()
    files = {
        file.name: file.content.path
        for file in list_folder(root).files
        if isinstance(file.content, DiskFile)
    }
    homes = {
        item.name: (data.classes[item.label], home)
        for item in _items(data)
        if item.name in files
        and (home := _class_folder(item, data.classes[item.label], files[item.name]))
    }
    folders = {(above, name): path for name, (above, path) in homes.values()}
    removed = root.with_name(root.name + _REMOVED)
    taken: set[Path] = set()
    moves = []
    for action in actions:
        where = f"--fix, line {action.line}"
        before = files.get(action.image)
        if before is None:
            raise UserError(f"{where}: {folder} has no file {action.image}")
        if action.target is None:
            wanted = removed / action.image
        elif action.target not in data.classes:
            raise UserError(
                f"{where}: there is no class {action.target!r}; {folder} has "
                f"{', '.join(data.classes)}"
            )
        elif action.image not in homes:
            raise UserError(
                f"{where}: {action.image} lies in no folder of its class, so it cannot be moved to "
                f"another; correct its label where it is written, or remove it"
            )
        else:
            _, (above, own) = homes[action.image]
            beside = own.with_name(action.target)
            wanted = folders.get((above, action.target), beside) / before.name
        if wanted.parent == before.parent:
            continue
        after = _free(wanted, taken)
        taken.add(after)
        moves.append(Move(before, after))
    return moves


def apply_moves(moves: Iterable[Move], journal: str | Path) -> int:
    """Move files, each after a line of the journal says so; return how many were moved.

    Raises:
        UserError: the journal exists or cannot be written, or a file cannot be moved; the message
            says how to undo what was done.
    """
    done = 0
    try:
        with open(journal, "x", encoding="utf-8") as file:
            _write_line(file, {"format": _FORMAT, "version": 1})
            for move in moves:
                made = _missing_parents(move.after)
                _write_line(
                    file,
                    {
                        "before": str(move.before),
                        "after": str(move.after),
                        "made": [str(path) for path in made],
                    },
                )
                _move(move.before, move.after)
                done += 1
    except FileExistsError as error:
        if done or str(error.filename) != str(journal):
            raise _stopped(journal, done, error) from error
        raise UserError(f"--journal {journal}: exists; choose another file") from None
    except OSError as error:
        raise _stopped(journal, done, error) from error
    return done


def undo_moves(journal: str | Path) -> tuple[int, list[str]]:
    """Put every file of a journal back, the last first.

    Returns:
        How many files were put back, and what could not be, a sentence each.

    Raises:
        UserError: the journal cannot be read, or is none.
    """
    done, problems = 0, []
    for entry in reversed(_read_journal(journal)):
        before, after = Path(entry["before"]), Path(entry["after"])
        if os.path.lexists(after):
            try:
                if os.path.lexists(before) and before.samefile(after):
                    after.unlink()  # killed between the two steps of a move
                else:
                    _move(after, before)
            except OSError as error:
                reason = f"{before}: {error.strerror}"
                problems.append(f"{after} stays where it is ({reason}).")
                continue
            done += 1
        elif not os.path.lexists(before):
            problems.append(f"{after} is gone, so {before} cannot be put back.")
        for path in entry.get("made", ()):  # the innermost first
            with suppress(OSError):  # not empty
                Path(path).rmdir()
    return done, problems


def default_journal(folder: str | Path) -> Path:
    """Return a new path for a journal beside the data."""
    root = Path(folder).expanduser().resolve()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return _free(root.with_name(f"{root.name}_fixes-{stamp}.jsonl"), set())


def _items(data: Data) -> list[Item]:
    splits = (data.train, data.test, data.validation)
    return [item for split in splits if split is not None for item in split]


def _class_folder(item: Item, name: str, path: Path) -> tuple[str, Path] | None:
    """Return the path above an image's class folder, in the set, and that folder on the disk.

    None if the image does not lie in a folder called like its class, as with labels of a table.
    """
    parts = item.name.split("/")[:-1]
    if name not in parts:
        return None
    below = parts[::-1].index(name)  # folders between the class folder and the image
    return "/".join(parts[: len(parts) - 1 - below]), path.parents[below]


def _free(path: Path, taken: set[Path]) -> Path:
    """Return the path, with a number if a file has it or will have it."""
    candidate, number = path, 1
    while candidate in taken or os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _missing_parents(path: Path) -> list[Path]:
    return [parent for parent in path.parents if not parent.exists()]


def _move(before: Path, after: Path) -> None:
    """Move a file to a place that must be free, on the same file system."""
    after.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(before, after, follow_symlinks=False)  # unlike a rename, it never overwrites
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(after):
            raise FileExistsError(17, "exists", str(after)) from None
        os.rename(before, after)
    else:
        os.unlink(before)


def _write_line(file: TextIO, entry: dict[str, object]) -> None:
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _stopped(journal: str | Path, done: int, error: OSError) -> UserError:
    return UserError(
        f"--fix: stopped after {done} files ({error.filename}: {error.strerror}); --undo {journal} "
        f"puts them back"
    )


def _read_journal(journal: str | Path) -> list[dict[str, str]]:
    try:
        lines = Path(journal).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--undo {journal}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--undo {journal}: not a journal of --fix") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            fits = entry["format"] == _FORMAT if number == 1 else {"before", "after"} <= set(entry)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits and number == len(lines) > 1:
            continue  # killed while this line was written: its move had not begun
        if not fits:
            raise UserError(f"--undo {journal}, line {number}: not a journal of --fix")
        entries.append(entry)
    if not entries:
        raise UserError(f"--undo {journal}: not a journal of --fix")
    return entries[1:]
