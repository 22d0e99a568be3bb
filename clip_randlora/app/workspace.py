"""One person's images and runs: a folder of their own, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from PIL import Image

import clip_randlora as cr
from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.jobs import Job
from clip_randlora.app.uploads import (
    check_task,
    hidden_paths,
    safe_file_name,
    tidy_class_name,
    unpack_run,
    write_content,
)
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.templates import DEFAULT_TEMPLATES, check_templates
from clip_randlora.data import DiskFile, Item, Skipped, UnreadableImage
from clip_randlora.data.loading import HELD_OUT_NOTE
from clip_randlora.runs.image_record import read_images, shorten_digest
from clip_randlora.runs.predictions_file import PREDICTIONS
from clip_randlora.utils.outputs import atomic_write

_FEW_IMAGES = 5
_UNBALANCED = 4  # times as many images in the largest class as in the smallest
_EXPANDS = 5  # an archive may hold this many times its own size limit, unpacked
_SPLITS = ("train", "test")
_STATE = "state.json"

TRAIN_FIRST = "There is no tuned model yet: train one, or load a run under Take away."


@dataclass(frozen=True)
class Picture:
    """One gathered image: its class, whether it is for testing, and its file."""

    class_name: str
    is_test: bool
    path: Path


@dataclass
class Added:
    """What came of adding images; ``known`` ones were in their class already."""

    images: int = 0
    known: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Workspace:
    """The images, prompts, trainings and runs of one person.

    Everything is below ``folder``: ``train/CLASS/`` and ``test/CLASS/`` hold the images as they
    were given, ``runs/`` what was trained or loaded. The methods raise a `UserError` for what the
    person can mend.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        self.lock = threading.RLock()
        self.last_used = time.time()
        self.job: Job | None = None
        self.pages: set[str | None] = set()  # the sessions of the open pages and clients
        self.names: dict[str, tuple[str, ...]] = {}  # what prompts call the classes
        self._digests: dict[tuple[Path, int], str] = {}
        for part in (*_SPLITS, "runs", "thumbnails", "downloads"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self._read_state()

    # --- what is there --------------------------------------------------------------------------

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
            for split in _SPLITS
            for path in sorted((self.folder / split / name).glob("*"))
        ]

    @property
    def has_test_split(self) -> bool:
        """Whether some images are for testing only, so that none need be held out."""
        return any(picture.is_test for picture in self.pictures())

    def data(self) -> cr.Data:
        """Return the images as the library reads them."""
        with self.lock:
            if all(picture.is_test for picture in self.pictures()):
                raise cr.UserError("there are no training images yet; add some to two classes")
            train = self.folder / "train"
            test = self.folder / "test" if self.has_test_split else None
            return cr.load_data(train, test, self.held_out, class_folders="top")

    def warnings(self) -> list[str]:
        """Return what a person should know about the images before training."""
        counts = {name: sum(not p.is_test for p in self.pictures(name)) for name in self.classes}
        filled = {name: count for name, count in counts.items() if count}
        found = [f"{name} has no images yet." for name in counts if name not in filled]
        few = [f"{name} ({count})" for name, count in filled.items() if count < _FEW_IMAGES]
        if few:
            found.append(
                f"Very few images in {', '.join(few)}: 8 or more of each work much better."
            )
        if filled and max(filled.values()) >= _UNBALANCED * min(filled.values()):
            most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
            found.append(
                f"{most} has {filled[most]} images, {least} only {filled[least]}: the rarer class "
                f"may be overlooked."
            )
        return [*found, *self._contradictions()]

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

    def prompts(self) -> dict[str, list[str]]:
        """Return every class's prompts."""
        classes = self.classes
        names = {name: words for name, words in self.names.items() if name in classes}
        return dict(zip(classes, make_prompts(classes, self.templates, names), strict=True))

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

    # --- gathering images -----------------------------------------------------------------------

    def add_class(self, name: str) -> str:
        """Add an empty class; return its name, tidied."""
        with self.lock:
            name = self._free_class_name(name, self.classes)
            (self.folder / "train" / name).mkdir()
        return name

    def add_images(self, class_name: str, files: Sequence[Path]) -> Added:
        """Add copies of image files to a class; unreadable ones are named in the result."""
        added = Added()
        items = [Item(file.name, 0, DiskFile(file, file.stat().st_size)) for file in files]
        with self.lock:
            self._add("train", class_name, items, added)
        return added

    def add_data(self, source: str | Path) -> Added:
        """Add all classes of an uploaded ``.zip`` of class folders, or of a bundled set by name."""
        called = source.name if isinstance(source, Path) else source
        if isinstance(source, Path):
            if source.suffix.lower() != ".zip":  # other forms could name paths of the server
                raise cr.UserError(f"{called}: not a zip archive")
        elif source not in cr.DATASETS:
            raise cr.UserError(f"{source}: no bundled set; there are {', '.join(cr.DATASETS)}")
        with hidden_paths(Path(source).parent, called):
            data = cr.load_data(source)
        self._check_unpacked(data, called)
        added = Added(skipped=list(data.skipped), notes=list(data.notes))
        if data.held_out:  # the app holds images out itself, when it trains
            added.notes = list(takewhile(lambda n: not n.startswith(HELD_OUT_NOTE), data.notes))
        test = "train" if data.held_out else "test"
        with self.lock:
            for split, items in (("train", data.train), (test, data.test)):
                for label, group in items.by_class().items():
                    name = tidy_class_name(data.classes[label])
                    known = {name.casefold(): name for name in self.classes}
                    self._add(split, known.get(name.casefold(), name), group, added)
        return added

    def _check_unpacked(self, data: cr.Data, called: str) -> None:
        most = _EXPANDS * self.settings.max_upload_mb
        size = sum(item.content.size for split in (data.train, data.test) for item in split)
        if size > most * 2**20:
            raise cr.UserError(f"{called}: {size / 2**20:.0f} MB of images, at most {most}")

    def _add(self, split: str, class_name: str, items: Iterable[Item], added: Added) -> None:
        for part in {"train", split}:
            (self.folder / part / class_name).mkdir(exist_ok=True)
        pictures = self.pictures()
        known = {self._digest(p.path) for p in pictures if p.class_name == class_name}
        number = max((int(p.path.name.split("-")[0]) for p in pictures), default=0)
        room = self.settings.max_images - len(pictures)
        for item in items:
            if not room:
                raise cr.UserError(
                    f"more than {self.settings.max_images} images, which is the limit here; "
                    f"{item.name} and what follows is left out"
                )
            number += 1
            name = f"{number:06d}-{safe_file_name(item.name)}"
            try:
                item.check()
                path = write_content(item.content, self.folder / split / class_name / name)
            except UnreadableImage as error:
                added.skipped.append(Skipped(item.name, error.reason))
                continue
            digest = self._digest(path)
            if digest in known:
                path.unlink()
                added.known += 1
                continue
            known.add(digest)
            added.images += 1
            room -= 1

    def rename_class(self, name: str, new: str) -> str:
        """Rename a class; return the new name, tidied."""
        with self.lock:
            new = self._free_class_name(new, [other for other in self.classes if other != name])
            for split in _SPLITS:
                folder = self.folder / split / name
                if folder.exists():
                    folder.rename(self.folder / split / new)
            if name in self.names:
                self.names[new] = self.names.pop(name)
            self.save_state()
        return new

    def _free_class_name(self, name: str, others: Iterable[str]) -> str:
        """Return the name, tidied; it must not be one of the others, whatever its capitals."""
        name = tidy_class_name(name)
        if name.casefold() in map(str.casefold, others):
            raise cr.UserError(f"there is a class {name} already")
        return name

    def remove_class(self, name: str) -> None:
        """Remove a class with its images."""
        with self.lock:
            for split in _SPLITS:
                shutil.rmtree(self.folder / split / name, ignore_errors=True)
            self.names.pop(name, None)
            self.save_state()

    def remove_picture(self, picture: Picture) -> None:
        """Remove one image."""
        with self.lock:
            picture.path.unlink(missing_ok=True)

    def clear_images(self) -> None:
        """Delete the gathered images and classes."""
        with self.lock:
            for part in (*_SPLITS, "thumbnails"):
                shutil.rmtree(self.folder / part, ignore_errors=True)
                (self.folder / part).mkdir()
            self.names.clear()
            self.save_state()

    def set_prompts(self, templates: Iterable[str], names: dict[str, tuple[str, ...]]) -> None:
        """Set the prompt templates, and what prompts call the classes."""
        self.templates = check_templates(tuple(templates))
        self.names = {name: words for name, words in names.items() if words}
        self.save_state()

    # --- runs -----------------------------------------------------------------------------------

    def new_run(self) -> Path:
        """Return a folder for a new run; later ones sort after earlier ones."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now // 10**9))
        return self.folder / "runs" / f"{stamp}-{now % 10**9:09d}"

    @property
    def run(self) -> Path | None:
        """The run in use: the latest run folder, or adapter file, that was trained or loaded."""
        adapters = self._adapters()
        if not adapters:
            return None
        folder = adapters[-1].parent
        return folder if (folder / "config.yaml").exists() else adapters[-1]

    @property
    def run_before(self) -> Path | None:
        """The folder of the latest finished run before the one in use."""
        folders = [adapter.parent for adapter in self._adapters()[:-1]]
        finished = [folder for folder in folders if (folder / "metrics.json").exists()]
        return finished[-1] if finished else None

    def _adapters(self) -> list[Path]:
        return sorted((self.folder / "runs").glob(f"*/{ADAPTER}"))

    def require_run(self) -> Path:
        """Return the run in use; there must be one."""
        run = self.run
        if run is None:
            raise cr.UserError(TRAIN_FIRST)
        return run

    def finished_run(self) -> Path:
        """Return the folder of the run in use, which must be whole: an adapter alone is not."""
        run = self.require_run()
        if run.is_file():
            raise cr.UserError("only an adapter was loaded; load the zip of its run for this")
        if not (run / "metrics.json").exists():
            raise cr.UserError("the run is still being measured; try again in a moment")
        return run

    def test_images(self) -> dict[str, Path]:
        """Return ``{name: file}`` of the images that the run in use was measured on.

        Only those that are still there. Their content identifies them: another image may have got
        the name of one since, and a run that was loaded is of other images.
        """
        run = self.run
        if run is None or not (run / PREDICTIONS).exists():
            return {}
        record = read_images(run)
        if record is None:  # a run of an earlier version
            return {}
        files = {shorten_digest(self._digest(p.path)): p.path for p in self.pictures()}
        tested = record.of("held out", "tested")
        return {image.name: files[image.digest] for image in tested if image.digest in files}

    def load_run(self, upload: Path) -> cr.Task:
        """Take in an adapter file or the zip of a run folder, use it, and return its task."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            with hidden_paths(folder, upload.name), hidden_paths(upload, upload.name):
                if upload.suffix.lower() == ".zip":
                    unpack_run(upload, folder, self.settings.max_upload_mb * 2**20)
                else:
                    shutil.copyfile(upload, folder / ADAPTER)
                is_whole = (folder / "config.yaml").exists()
                task = check_task(folder if is_whole else folder / ADAPTER)
                read_images(folder)  # refuses damaged ones
            folder.rename(self.new_run())  # only now does it answer
        except cr.UserError:
            shutil.rmtree(folder)
            raise
        return task

    # --- on disk --------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Write down what the folders do not say, so that a restart of the app loses nothing."""
        state = {"templates": self.templates, "names": self.names, "held_out": self.held_out}
        with atomic_write(self.folder / _STATE) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def _read_state(self) -> None:
        path = self.folder / _STATE
        state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.templates = tuple(state.get("templates", DEFAULT_TEMPLATES))
        self.names = {name: tuple(words) for name, words in state.get("names", {}).items()}
        self.held_out = float(state.get("held_out", 0.3))

    def _digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, read once for each change of it."""
        stat = path.stat()
        key = path, stat.st_mtime_ns
        if key not in self._digests:
            self._digests[key] = Item(path.name, 0, DiskFile(path, stat.st_size)).digest()
        return self._digests[key]
