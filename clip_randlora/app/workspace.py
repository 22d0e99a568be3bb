"""One person's images and runs: a folder of their own, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image

import clip_randlora as cr
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.jobs import Job
from clip_randlora.app.uploads import (
    check_task,
    digest,
    safe_file_name,
    tidy_class_name,
    unpack_run,
    without_paths,
    write_content,
)
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.templates import DEFAULT_TEMPLATES, check_templates
from clip_randlora.data import Content, Skipped, UnreadableImage, check_image
from clip_randlora.data.loading import HELD_OUT_NOTE
from clip_randlora.runs.image_record import read_images, shorten_digest
from clip_randlora.runs.predictions_file import PREDICTIONS, read_answers
from clip_randlora.runs.run_folder import ADAPTER

_FEW_IMAGES = 5
_UNBALANCED = 4  # times as many images in the largest class as in the smallest
_EXPANDS = 5  # an archive may hold this many times its own size limit, unpacked
_STATE = "state.json"


@dataclass(frozen=True)
class Picture:
    """One gathered image: its class, whether it is for testing, and its file."""

    class_name: str
    is_test: bool
    path: Path


@dataclass
class Added:
    """What came of adding images."""

    images: int = 0
    known: int = 0  # that the class had already
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Workspace:
    """The images, prompts, trainings and runs of one person.

    Everything is below ``folder``: ``train/CLASS/`` and ``test/CLASS/`` hold the images as they
    were given, ``runs/`` what was trained or loaded.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        self.lock = threading.RLock()
        self.last_used = time.time()
        self.job: Job | None = None
        self._uploads: set[Path] = set()
        self._digests: dict[tuple[Path, int], str] = {}
        for part in ("train", "test", "runs", "thumbnails"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self._read_state()

    # What is there

    @property
    def classes(self) -> list[str]:
        """The class names, sorted, with the empty ones."""
        return sorted({path.name for path in (self.folder / "train").iterdir()}, key=str.casefold)

    def pictures(self, class_name: str | None = None) -> list[Picture]:
        """The gathered images, of one class or of all."""
        names = self.classes if class_name is None else [class_name]
        return [
            Picture(name, split == "test", path)
            for name in names
            for split in ("train", "test")
            for path in sorted(self._class_folder(split, name).glob("*"))
        ]

    @property
    def has_test_split(self) -> bool:
        """Whether some images are for testing only, so that none need be held out."""
        return any(picture.is_test for picture in self.pictures())

    def data(self) -> cr.Data:
        """Return the images as the library reads them.

        Raises:
            UserError: fewer than two classes have images, or a class has none to train on.
        """
        with self.lock:
            test = self.folder / "test" if self.has_test_split else None
            if not any(not picture.is_test for picture in self.pictures()):
                raise cr.UserError("there are no training images yet; add some to two classes")
            return without_paths(
                lambda: cr.load_data(
                    self.folder / "train", test, self.held_out, class_folders="top"
                ),
                self.folder,
            )

    def warnings(self) -> list[str]:
        """Return what a person should know about the images before training."""
        counts = {name: sum(not p.is_test for p in self.pictures(name)) for name in self.classes}
        found = [f"{name} has no images yet." for name, count in counts.items() if not count]
        few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < _FEW_IMAGES]
        if few:
            found.append(
                f"Very few images in {', '.join(few)}: 8 or more of each work much better."
            )
        filled = [count for count in counts.values() if count]
        if filled and max(filled) >= _UNBALANCED * min(filled):
            most, least = max(counts, key=counts.get), min(counts, key=lambda n: counts[n] or 1e9)
            found.append(
                f"{most} has {counts[most]} images, {least} only {counts[least]}: the rarer class "
                f"may be overlooked."
            )
        return [*found, *self._contradictions()]

    def source(self) -> str:
        """Return what a run says of where its images came from."""
        return f"{len(self.pictures())} images of {len(self.classes)} classes, gathered in the app"

    def names_in_prompts(self) -> dict[str, tuple[str, ...]]:
        """Return what prompts call the classes that have a name of their own there."""
        filled = {picture.class_name for picture in self.pictures()}
        return {name: words for name, words in self.names.items() if name in filled}

    def prompts(self) -> dict[str, list[str]]:
        """Return every class's prompts."""
        classes = self.classes
        names = {name: words for name, words in self.names.items() if name in classes}
        return dict(zip(classes, make_prompts(classes, self.templates, names), strict=True))

    # Gathering

    def add_class(self, name: str) -> str:
        """Add an empty class; return its name, tidied.

        Raises:
            UserError: the name cannot be a class's, or is taken.
        """
        name = tidy_class_name(name)
        with self.lock:
            if name.casefold() in {known.casefold() for known in self.classes}:
                raise cr.UserError(f"there is a class {name} already")
            self._class_folder("train", name).mkdir()
        return name

    def add_images(self, class_name: str, files: Iterable[Path]) -> Added:
        """Add image files to a class, copied; unreadable ones are named in the result.

        Raises:
            UserError: there would be more images than the settings allow.
        """
        added, files = Added(), list(files)
        self.remember_uploads(files)
        contents = ((path.name, path) for path in files)
        with self.lock:
            self._add("train", class_name, contents, added)
        return added

    def add_data(self, source: str | Path, called: str) -> Added:
        """Add all classes of an archive or of a bundled set.

        Args:
            source: a ``.zip`` of class folders, or a registered name.
            called: what messages call it.

        Raises:
            UserError: it is not in that form, or too much.
        """
        if isinstance(source, Path):
            self.remember_uploads([source])
            if source.suffix.lower() != ".zip":  # other forms could name paths of the server
                raise cr.UserError(f"{called}: not a zip archive")
        elif source not in cr.DATASETS:
            raise cr.UserError(f"{source}: no bundled set; there are {', '.join(cr.DATASETS)}")
        data = without_paths(lambda: cr.load_data(source), Path(source).parent, called)
        self._check_unpacked(data, called)
        added = Added(skipped=list(data.skipped))
        keep_split = not data.held_out
        added.notes = list(
            data.notes
            if keep_split
            else takewhile(lambda note: not note.startswith(HELD_OUT_NOTE), data.notes)
        )
        with self.lock:
            for split, items in (("train", data.train), ("test", data.test)):
                for label, group in items.by_class().items():
                    name = self._known_spelling(tidy_class_name(data.classes[label]))
                    contents = ((item.name, item.content) for item in group)
                    self._add(split if keep_split else "train", name, contents, added)
        return added

    def rename_class(self, name: str, new: str) -> str:
        """Rename a class; return the new name, tidied.

        Raises:
            UserError: the name cannot be a class's, or is taken.
        """
        new = tidy_class_name(new)
        with self.lock:
            others = {known.casefold() for known in self.classes if known != name}
            if new.casefold() in others:
                raise cr.UserError(f"there is a class {new} already")
            for split in ("train", "test"):
                folder = self._class_folder(split, name)
                if folder.exists():
                    folder.rename(self._class_folder(split, new))
            if name in self.names:
                self.names[new] = self.names.pop(name)
            self.save_state()
        return new

    def remove_class(self, name: str) -> None:
        """Remove a class with its images."""
        with self.lock:
            for split in ("train", "test"):
                shutil.rmtree(self._class_folder(split, name), ignore_errors=True)
            self.names.pop(name, None)
            self.save_state()

    def remove_picture(self, picture: Picture) -> None:
        """Remove one image."""
        with self.lock:
            picture.path.unlink(missing_ok=True)

    def set_prompts(self, templates: Iterable[str], names: dict[str, tuple[str, ...]]) -> None:
        """Set the prompt templates, and what prompts call the classes.

        Raises:
            UserError: a template has not one place for the name.
        """
        self.templates = check_templates(tuple(templates))
        self.names = {name: words for name, words in names.items() if words}
        self.save_state()

    def thumbnail(self, path: Path, side: int = 160) -> Path:
        """Return a small JPEG of a gathered image, made on first use."""
        key = hashlib.sha256(f"{path} {path.stat().st_mtime_ns} {side}".encode()).hexdigest()
        small = self.folder / "thumbnails" / f"{key[:32]}.jpg"
        if not small.exists():
            try:
                image = cr.decode_image(path)
            except cr.UserError:  # its header was in order: shown grey, and named when decoded
                image = Image.new("RGB", (side, side), "#b0b7c3")
            image.thumbnail((side, side))
            temporary = small.with_suffix(f".{secrets.token_hex(4)}.tmp")
            image.save(temporary, "JPEG", quality=80)
            temporary.replace(small)
        return small

    # Runs

    def new_run(self) -> Path:
        """Return a folder name for a run that is not taken; later ones sort after earlier ones."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now // 10**9))
        return self.folder / "runs" / f"{stamp}-{now % 10**9:09d}"

    @property
    def run(self) -> Path | None:
        """What answers: the latest run folder, or adapter file, that was trained or loaded."""
        adapters = self._adapters()
        if not adapters:
            return None
        folder = adapters[-1].parent
        return folder if (folder / "config.yaml").exists() else adapters[-1]

    @property
    def run_before(self) -> Path | None:
        """The folder of the latest finished run before the one that answers."""
        folders = [adapter.parent for adapter in self._adapters()[:-1]]
        whole = [folder for folder in folders if (folder / "metrics.json").exists()]
        return whole[-1] if whole else None

    def _adapters(self) -> list[Path]:
        return sorted((self.folder / "runs").glob(f"*/{ADAPTER}"))

    def tested(self) -> dict[str, Path]:
        """Return the images that the run in use was measured on and that are still there.

        They are known by their content: another image may have got the name of one since, and a
        run that was loaded is of other images.
        """
        if self.run is None or not (self.run / PREDICTIONS).exists():
            return {}
        record = read_images(self.run)
        if record is not None:
            there = {shorten_digest(self._digest(p.path)): p.path for p in self.pictures()}
            tested = record.of("held out", "tested")
            return {image.name: there[image.digest] for image in tested if image.digest in there}
        found = {}  # a run of an earlier version: by name
        for row in read_answers(self.run):
            class_name, _, file_name = row["image"].partition("/")
            for split in ("test", "train"):
                path = self._class_folder(split, class_name) / file_name
                if path.resolve().is_relative_to(self.folder.resolve()) and path.is_file():
                    found.setdefault(row["image"], path)
        return found

    def load_run(self, upload: Path, called: str) -> None:
        """Take in an adapter file or the zip of a run folder, and use it.

        Raises:
            UserError: it is neither, or its base model is none that this app offers.
        """
        self.remember_uploads([upload])
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            if upload.suffix.lower() == ".zip":
                unpack_run(upload, folder, called, self.settings.max_upload_mb * 2**20)
            else:
                shutil.copyfile(upload, folder / ADAPTER)
            is_whole = (folder / "config.yaml").exists()
            run = folder if is_whole else folder / ADAPTER
            without_paths(lambda: (check_task(run), read_images(folder)), folder, called)
            folder.rename(self.new_run())  # only now does it answer
        except cr.UserError:
            shutil.rmtree(folder)
            raise

    # On disk

    def downloads(self) -> Path:
        """Return the folder for files that are made to be downloaded."""
        folder = self.folder / "downloads"
        folder.mkdir(exist_ok=True)
        return folder

    def remember_uploads(self, paths: Iterable[Path]) -> None:
        """Remember uploaded files outside of the folder, to delete them with it."""
        root = self.settings.folder.resolve()
        self._uploads |= {
            path
            for path in paths
            if root in path.resolve().parent.parents and not path.is_relative_to(self.folder)
        }

    def clear_images(self) -> None:
        """Delete the gathered images and classes."""
        with self.lock:
            for part in ("train", "test", "thumbnails"):
                shutil.rmtree(self.folder / part, ignore_errors=True)
                (self.folder / part).mkdir()
            self.names = {}
            self.save_state()

    def delete(self) -> None:
        """Stop what runs and delete everything."""
        with self.lock:
            if self.job is not None:
                self.job.stop.set()
            for upload in self._uploads:
                shutil.rmtree(upload.parent, ignore_errors=True)  # a folder for this file alone
            shutil.rmtree(self.folder, ignore_errors=True)

    def save_state(self) -> None:
        """Write down what the folders do not say, so that a restart of the app loses nothing."""
        state = {"templates": self.templates, "names": self.names, "held_out": self.held_out}
        temporary = self.folder / (_STATE + ".tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(self.folder / _STATE)

    def _read_state(self) -> None:
        state: dict[str, Any] = {}
        path = self.folder / _STATE
        if path.exists():
            state = json.loads(path.read_text(encoding="utf-8"))
        self.templates = tuple(state.get("templates", DEFAULT_TEMPLATES))
        self.names = {name: tuple(words) for name, words in state.get("names", {}).items()}
        self.held_out = float(state.get("held_out", 0.3))

    def _class_folder(self, split: str, name: str) -> Path:
        return self.folder / split / name

    def _digest(self, path: Path) -> str:
        key = path, path.stat().st_mtime_ns
        if key not in self._digests:
            self._digests[key] = digest(path)
        return self._digests[key]

    def _contradictions(self) -> list[str]:
        """Name the images that lie in two classes."""
        first: dict[str, Picture] = {}
        found = []
        for picture in self.pictures():
            same = first.setdefault(self._digest(picture.path), picture)
            if same.class_name != picture.class_name:
                found.append(
                    f"The same image is in {same.class_name} ({same.path.name}) and in "
                    f"{picture.class_name} ({picture.path.name}): remove one of them."
                )
        return found

    def _known_spelling(self, name: str) -> str:
        """Return the class's name as it is known already, whatever its capitals."""
        return {known.casefold(): known for known in self.classes}.get(name.casefold(), name)

    def _add(
        self, split: str, name: str, contents: Iterable[tuple[str, Content | Path]], added: Added
    ) -> None:
        for part in dict.fromkeys(("train", split)):
            self._class_folder(part, name).mkdir(exist_ok=True)
        pictures = self.pictures()
        known = {self._digest(p.path) for p in pictures if p.class_name == name}
        number = max((int(p.path.name.split("-")[0]) for p in pictures), default=0)
        room = self.settings.max_images - len(pictures)
        for file_name, content in contents:
            if not room:
                raise cr.UserError(
                    f"more than {self.settings.max_images} images, which is the limit here; "
                    f"{file_name} and what follows is left out"
                )
            number += 1
            path = self._class_folder(split, name) / f"{number:06d}-{safe_file_name(file_name)}"
            try:
                path = write_content(content, path)
                check_image(path, file_name)
            except UnreadableImage as error:
                path.unlink(missing_ok=True)
                added.skipped.append(Skipped(file_name, error.reason))
                continue
            if self._digest(path) in known:
                path.unlink()
                added.known += 1
                continue
            known.add(self._digest(path))
            added.images += 1
            room -= 1

    def _check_unpacked(self, data: cr.Data, called: str) -> None:
        most = _EXPANDS * self.settings.max_upload_mb
        size = sum(item.content.size for split in (data.train, data.test) for item in split)
        if size > most * 2**20:
            raise cr.UserError(f"{called}: {size / 2**20:.0f} MB of images, at most {most}")
