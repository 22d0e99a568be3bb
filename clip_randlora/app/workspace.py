"""One person's project: a folder with their images and runs, and what is known about it."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import clip_randlora as cr
from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.app.app_settings import Settings
from clip_randlora.app.arrivals import read_arrival
from clip_randlora.app.checks import CheckJob
from clip_randlora.app.jobs import Job, TrainingJob
from clip_randlora.app.pictures import Picture, Thumbnails
from clip_randlora.app.project_file import read_project_file, write_project_file
from clip_randlora.app.removals import Removal, Removals
from clip_randlora.app.run_shelf import RunShelf
from clip_randlora.app.searches import Choices, SearchJob
from clip_randlora.app.tray import Tray
from clip_randlora.app.uploads import (
    Upload,
    check_task,
    for_page,
    hidden_paths,
    link,
    safe_file_name,
    tidy_class_name,
    unpack_run,
    write_content,
)
from clip_randlora.clip.prompts import make_prompts
from clip_randlora.clip.templates import check_templates
from clip_randlora.data import DiskFile, Item, Skipped, UnreadableImage
from clip_randlora.data.folders import Layout
from clip_randlora.data.layouts import read_layout
from clip_randlora.data.projects import ProjectClass
from clip_randlora.data.sampling import hold_out
from clip_randlora.data.sources import File
from clip_randlora.runs.image_record import read_images, shorten_digest
from clip_randlora.utils.outputs import write_json
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.wording import join_names

_FEW_IMAGES = 5
_UNBALANCED = 4  # times as many images in the largest class as in the smallest
_EXPANDS = 5  # an archive may hold this many times its own size limit, unpacked
_MOST_CLASSES = 1000
_DIGESTS = "digests.json"


@dataclass
class Added:
    """What came of adding images; ``known`` ones were in their class already."""

    images: int = 0
    known: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Added) -> None:
        """Count what came of adding more."""
        self.images += other.images
        self.known += other.known
        self.skipped += other.skipped
        self.notes += other.notes


class Workspace:
    """The project of one person: images, prompts, trainings and runs.

    Everything is below ``folder``, which is a project as `clip_randlora.load_data` reads it:
    ``images/train/CLASS`` and ``images/test/CLASS`` hold the images as they were given,
    ``unsorted`` those without a class, ``runs`` what was trained or loaded. The methods raise a
    `UserError` for what the person can mend.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        self.lock = threading.RLock()
        self.last_used = time.time()
        self.job: TrainingJob | None = None
        self.search: SearchJob | None = None  # while it waits or runs
        self.check: CheckJob | None = None  # while it waits or runs
        self.is_listed = False  # whether the run of the job is in the list
        self.is_deleted = False  # its training may still end, and must write nothing any more
        self.pages: set[str | None] = set()  # the sessions of the open pages and clients
        self.work = folder / ".work"  # what is no part of the project
        self.downloads = self.work / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        self._clear_work()
        self.thumbnails = Thumbnails(self.work / "thumbnails")
        self.removals = Removals(self.work / "removed")
        self.read()

    def _clear_work(self) -> None:
        """Delete what an app left that ended in the middle of something, such as copied images."""
        for path in self.work.iterdir():
            if path.name not in (self.downloads.name, "thumbnails"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read(self) -> None:
        """Read the project that is in the folder, in place of the present one."""
        self.project = read_project_file(self.folder)
        self.was_interrupted = bool(self.project.training)
        self.project.training = ""
        self.runs = RunShelf(self.folder / "runs", self.project, self.save)
        self.tray = Tray()
        self._pictures = {picture.number: picture for picture in self._find_pictures()}
        self._groups: dict[str | None, list[Picture]] | None = None
        self._digests = self._read_digests()
        known = set(self.classes)
        for picture in self._pictures.values():
            if picture.class_name is not None and picture.class_name not in known:
                known.add(picture.class_name)
                self.project.classes.append(ProjectClass(name=picture.class_name))

    # --- what is there --------------------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """The class names in the order of the page, with the empty ones."""
        return [entry.name for entry in self.project.classes]

    def pictures(self, class_name: str | None = None) -> list[Picture]:
        """The images of a class; of all classes if it is None."""
        groups = self._by_class()
        if class_name is not None:
            return groups.get(class_name, [])
        return [picture for name, group in groups.items() if name is not None for picture in group]

    def unsorted(self) -> list[Picture]:
        """The images that have no class yet."""
        return self._by_class().get(None, [])

    def _by_class(self) -> dict[str | None, list[Picture]]:
        """Return the images by class, the oldest first; grouped once for each change."""
        with self.lock:
            if self._groups is None:
                groups: dict[str | None, list[Picture]] = {name: [] for name in self.classes}
                for _, picture in sorted(self._pictures.items()):
                    groups.setdefault(picture.class_name, []).append(picture)
                self._groups = groups
            return self._groups

    def find(self, number: int) -> Picture | None:
        """Return an image by its number; None if it is not there."""
        return self._pictures.get(number)

    def picture(self, number: int) -> Picture:
        """Return an image by its number, which must be there."""
        picture = self.find(number)
        if picture is None:
            raise cr.UserError("this image is not there any more")
        return picture

    def address(self, picture: Picture) -> str:
        """Return the address of a thumbnail, which no other image will ever have."""
        return f"picture/{picture.number}-{self.digest(picture)[:8]}"

    def digest(self, picture: Picture) -> str:
        """Return the recorded part of the SHA-256 of an image's file."""
        return self._digests[picture.number]

    def data(self, run: str) -> cr.Data:
        """Set test images apart, and return the images as the library reads them.

        They are read from a copy, which takes no space, so that what is removed or moved during
        the training of the run does not disturb it. `delete_copy` deletes it.
        """
        with self.lock:
            self._require_images()
            self._draw_test_images()
            copy = self._copy(run)
        with hidden_paths(copy):
            return cr.load_data(copy)

    def data_as_it_is(self, name: str) -> cr.Data:
        """Return the images as the library reads them, with copies, and with broken ones."""
        with self.lock:
            self._require_images()
            copy = self._copy(name)
        with hidden_paths(copy):
            return cr.load_data(copy, check=False)

    def delete_copy(self, name: str) -> None:
        """Delete the copy of the images that `data` or `data_as_it_is` made under a name."""
        shutil.rmtree(self.work / name, ignore_errors=True)

    def _require_images(self) -> None:
        reason = self.why_not_train()
        if reason:
            raise cr.UserError(reason)

    def _copy(self, name: str) -> Path:
        copy = self.work / name
        for picture in self.pictures():
            path = copy / picture.path.relative_to(self.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            link(picture.path, path)
        write_project_file(copy, self.project)
        return copy

    def why_not_train(self) -> str:
        """Return why no training can start, "" if one can."""
        counts = {
            entry.name: len(self.pictures(entry.name))
            for entry in self.project.classes
            if entry.is_on
        }
        filled = [name for name, count in counts.items() if count]
        if len(filled) < 2:
            return "Needs two classes with images" + (f"; {filled[0]} is one." if filled else ".")
        if max(counts.values()) < 2:
            return "Needs two images of a class: one to learn from and one to test on."
        return ""

    def why_not_search(self) -> str:
        """Return why no search for settings can start, "" if one can."""
        reason = self.why_not_train()
        if reason:
            return reason
        few = [name for name, count in self.training_counts().items() if count < 2]
        if not few:
            return ""
        return (
            f"Needs two images of each class to learn from, beside its test images; add images of "
            f"{join_names(few, 3)}."
        )

    def training_counts(self) -> dict[str, int]:
        """Count the training images that the next training will have, by class."""
        with self.lock:
            drawn = {picture.number for picture in self._test_images_to_draw()}
            return {
                entry.name: sum(
                    not picture.is_test and picture.number not in drawn
                    for picture in self.pictures(entry.name)
                )
                for entry in self.project.classes
                if entry.is_on and self.pictures(entry.name)
            }

    def warnings(self) -> list[str]:
        """Return what a person should know about the images before training."""
        counts = {name: sum(not p.is_test for p in self.pictures(name)) for name in self.classes}
        filled = {name: count for name, count in counts.items() if count}
        found = []
        empty = [name for name in counts if name not in filled]
        if empty:
            verb = "has" if len(empty) == 1 else "have"
            found.append(f"{join_names(empty, 5)} {verb} no images yet and will be left out.")
        few = [f"{name} ({count})" for name, count in filled.items() if count < _FEW_IMAGES]
        if few:
            found.append(f"Few images in {join_names(few, 5)}: 8 or more of each work much better.")
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
            same = first.setdefault(self.digest(picture), picture)
            if same.class_name != picture.class_name:
                found.append(
                    f"The same image is in {same.class_name} ({same.name}) and in "
                    f"{picture.class_name} ({picture.name}): remove one of them."
                )
        return found

    def prompts(self) -> dict[str, list[str]]:
        """Return every class's prompts."""
        names = {entry.name: entry.prompts for entry in self.project.classes if entry.prompts}
        made = make_prompts(self.classes, self.project.templates, names)
        return dict(zip(self.classes, made, strict=True))

    def gathered(self) -> Set[tuple[str, str]]:
        """Return class and digest of the images of all classes that are switched on."""
        return {
            (entry.name, self.digest(picture))
            for entry in self.project.classes
            if entry.is_on
            for picture in self.pictures(entry.name)
        }

    def by_digest(self) -> dict[str, Picture]:
        """Return the gathered images by the recorded part of their SHA-256."""
        return {self.digest(picture): picture for picture in self.pictures()}

    # --- classes --------------------------------------------------------------------------------

    def add_class(self, name: str) -> str:
        """Add an empty class; return its name, tidied."""
        with self.lock:
            name = self._new_class(name)
            self.save()
        return name

    def _new_class(self, name: str) -> str:
        name = self._free_class_name(name, self.classes)
        if len(self.classes) >= _MOST_CLASSES:
            raise cr.UserError(f"at most {_MOST_CLASSES:,} classes here")
        self.project.classes.append(ProjectClass(name=name))
        return name

    def rename_class(self, name: str, new: str) -> str:
        """Rename a class; return the new name, tidied."""
        with self.lock:
            entry = self._class(name)
            new = self._free_class_name(new, [other for other in self.classes if other != name])
            for picture in self.pictures(name):
                self._place(picture, new, picture.is_test)
            entry.name = new
            self.save()
        return new

    def set_class(self, name: str, prompts: Sequence[str], is_on: bool) -> None:
        """Set what prompts call a class (its name if nothing), and whether it is trained."""
        with self.lock:
            entry = self._class(name)
            words = tuple(word for word in (" ".join(p.split()) for p in prompts) if word)
            make_prompts([name], self.project.templates, {name: words} if words else {})
            entry.prompts, entry.is_on = words, is_on
            self.save()

    def set_templates(self, templates: Sequence[str]) -> None:
        """Set the prompt templates, with one ``{}`` each."""
        with self.lock:
            self.project.templates = check_templates(tuple(templates))
            self.save()

    def remove_class(self, name: str) -> Removal:
        """Remove a class with its images."""
        with self.lock:
            entry, pictures = self._class(name), self.pictures(name)
            place = self.project.classes.index(entry)
            what = f"{name} with {_count(len(pictures), 'image')}" if pictures else name
            removal = Removal(what, pictures=pictures, classes=[(place, entry)])
            self.project.classes.remove(entry)
            return self.note(removal)

    def _class(self, name: str) -> ProjectClass:
        for entry in self.project.classes:
            if entry.name == name:
                return entry
        raise cr.UserError(f"there is no class {name} any more")

    def _free_class_name(self, name: str, others: Iterable[str]) -> str:
        """Return the name, tidied; it must not be one of the others, whatever its capitals."""
        name = tidy_class_name(name)
        if name.casefold() in map(str.casefold, others):
            raise cr.UserError(f"there is a class {name} already")
        return name

    # --- images ---------------------------------------------------------------------------------

    def add_images(self, class_name: str | None, files: Sequence[Upload]) -> Added:
        """Add image files to a class, or to those not sorted yet if it is None.

        A class that is not there yet is added. Files that are no images are named in the result.
        """
        added = Added()
        items = [Item(name, 0, DiskFile(path, path.stat().st_size)) for path, name in files]
        with self.lock:
            self._add(class_name, False, items, added)
            self.save()
        return added

    def add_tree(self, files: Sequence[Upload]) -> Added:
        """Add files whose names are paths, as a dropped folder has them.

        Folders become classes, see `read_arrival`. Files without a folder are not sorted yet.
        """
        loose = [file for file in files if "/" not in file.name]
        inside = [file for file in files if "/" in file.name]
        added = self.add_images(None, loose)
        if inside:
            with tempfile.TemporaryDirectory(dir=self.work) as temporary:
                root = Path(temporary)
                for file in inside:
                    path = root.joinpath(*_safe_parts(file.name))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not path.exists():
                        link(file.path, path)
                with hidden_paths(root, "the dropped folders"):
                    self._add_arrival(*read_arrival(root), added)
        return added

    def add_data(self, source: str | Path, called: str = "") -> Added:
        """Add the images of an uploaded ``.zip``, see `read_arrival`, or of a bundled set by name.

        Args:
            source: the zip, or the name of a bundled set.
            called: the zip's name in errors; by default the file's.
        """
        called = called or (source.name if isinstance(source, Path) else source)
        if isinstance(source, Path):
            if source.suffix.lower() != ".zip":  # other forms could name paths of the server
                raise cr.UserError(f"{called}: not a zip archive")
        elif source not in cr.DATASETS:
            raise cr.UserError(f"{source}: no bundled set; there are {', '.join(cr.DATASETS)}")
        with hidden_paths(Path(source), called):
            layout, loose = read_arrival(source)
        files = [file for _, _, group in _groups(layout) for file in group] + loose
        size = sum(file.content.size for file in files)
        if size > _EXPANDS * self.settings.max_upload_mb * 2**20:
            raise cr.UserError(
                f"{called}: {size / 2**20:.0f} MB of images, at most "
                f"{_EXPANDS * self.settings.max_upload_mb}"
            )
        return self._add_arrival(layout, loose, Added())

    def add_sample(self, name: str, classes: Sequence[str], most: int) -> Added:
        """Add some classes of a bundled set, with at most so many images of each split."""
        layout = read_layout(name)
        for split in (layout.train, layout.test or {}):
            for class_name in list(split):
                if class_name in classes:
                    split[class_name] = split[class_name][:most]
                else:
                    del split[class_name]
        return self._add_arrival(layout, [], Added())

    def _add_arrival(self, layout: Layout, loose: Sequence[File], added: Added) -> Added:
        added.notes += layout.notes
        added.skipped += layout.skipped
        with self.lock:
            try:
                self._add(None, False, _items(loose), added)
                for is_test, name, files in _groups(layout):
                    known = {name.casefold(): name for name in self.classes}
                    name = _fitting_name(name)
                    self._add(known.get(name.casefold(), name), is_test, _items(files), added)
            finally:  # what was added before an error stays
                self.save()
        return added

    def _add(
        self, class_name: str | None, is_test: bool, items: Sequence[Item], added: Added
    ) -> None:
        """Add images of one class; stop at the first that does not fit into the limits."""
        if not items:
            return
        if class_name is not None and class_name not in self.classes:
            class_name = self._new_class(class_name)
        here = self._pictures.values() if class_name is None else self.pictures(class_name)
        known = {self.digest(picture) for picture in here}
        new: list[Picture] = []
        number = max(self._pictures, default=0)
        for item, digest in zip(items, parallel_map(_check_and_digest, items), strict=True):
            if isinstance(digest, Skipped):
                added.skipped.append(digest)
                continue
            if digest in known:
                added.known += 1
                continue
            if len(self._pictures) >= self.settings.max_images:
                added.notes.append(
                    f"There is room for {self.settings.max_images:,} images; {item.name} and what "
                    f"follows was left out."
                )
                break
            number += 1
            name = f"{number:06d}-{safe_file_name(item.name)}"
            path = self._folder_of(class_name, is_test) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path = write_content(item.content, path)
            new.append(Picture(number, class_name, is_test, path))
            self._pictures[number], self._digests[number] = new[-1], digest
            known.add(digest)
            added.images += 1
        self._groups = None
        self.thumbnails.prepare(new)

    def sort_images(self, groups: Mapping[str | None, Iterable[int]]) -> Removal:
        """Move images to other classes, None for not sorted yet; test images stay test images.

        Args:
            groups: ``{class: numbers of images}``.
        """
        with self.lock:
            chosen = {name: [self.picture(n) for n in numbers] for name, numbers in groups.items()}
            for name in chosen:
                if name is not None:
                    self._class(name)
            moved = [picture for group in chosen.values() for picture in group]
            for name, group in chosen.items():
                for picture in group:
                    now = self.picture(picture.number)  # also if it is in two groups
                    self._place(now, name, self._was_test(now))
            what, to = _count(len(moved), "image"), next(iter(chosen), None)
            where = f"{len(chosen)} classes" if len(chosen) > 1 else to or "those not sorted yet"
            return self.note(Removal(what, f"Moved {what} to {where}", moved=moved))

    def _was_test(self, picture: Picture) -> bool:
        """Return whether an image is for testing, or was before it was put back to be sorted."""
        return picture.is_test or picture.number in self.project.drawn

    def remove_images(self, numbers: Iterable[int]) -> Removal:
        """Remove images."""
        with self.lock:
            pictures = [self.picture(number) for number in numbers]
            classes = {picture.class_name for picture in pictures}
            of_class = f" of {classes.pop()}" if len(classes) == 1 and None not in classes else ""
            what = f"{_count(len(pictures), 'image')}{of_class}"
            return self.note(Removal(what, pictures=pictures))

    def remove_run(self, run: str) -> Removal:
        """Remove a run."""
        with self.lock:
            place, entry = self.runs.find(run)
            self.project.runs.remove(entry)
            return self.note(Removal(entry.name, runs=[(place, entry)]))

    def undo(self, token: str) -> str:
        """Put back what was removed or moved; return what it was."""
        with self.lock:
            removal = self.removals.put_back(token, self.folder)
            if removal is None:
                raise cr.UserError("this cannot be undone any more")
            if removal.is_project:
                self.thumbnails.clear()
                self.read()
                return removal.what
            for place, entry in removal.classes:
                if entry.name not in self.classes:
                    self.project.classes.insert(place, entry)
            for place, run in removal.runs:
                self.project.runs.insert(place, run)
            gone = set(removal.fine)
            self.project.fine = [key for key in self.project.fine if key not in gone]
            for picture in (*removal.pictures, *removal.moved):
                if picture.class_name is not None and picture.class_name not in self.classes:
                    self.project.classes.append(ProjectClass(name=picture.class_name))
            for picture in removal.pictures:
                self._pictures[picture.number] = picture
            for picture in removal.moved:
                now = self._pictures.get(picture.number)
                if now is not None:  # it was not removed since
                    self._place(now, picture.class_name, self._was_test(now))
            self.save()
        return removal.what

    def replace_project(self, folder: Path) -> str:
        """Take the project of another folder in place of this one; return the undo token.

        The token is "" if there was nothing to lose.
        """
        with self.lock:
            if self.running:
                raise cr.UserError("a training, search or check is under way; stop it first")
            what = self.describe_contents()
            removal = Removal(f"the project of before ({what})", is_project=True)
            self.removals.take_project(removal, self.folder)
            for path in folder.iterdir():
                path.rename(self.folder / path.name)
            self.thumbnails.clear()
            self.read()
            self.save()
        return removal.token if what else ""

    def describe_contents(self) -> str:
        """Return what there is to lose, such as "36 images and 2 runs"; "" for nothing."""
        images, runs = len(self._pictures), len(self.project.runs)
        parts = [_count(images, "image")] if images else []
        parts += [_count(runs, "run")] if runs else []
        return " and ".join(parts)

    def load_run(self, upload: Path, called: str) -> cr.Task:
        """Take in an adapter file or the zip of a run folder, use it, and return its task."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        try:
            with hidden_paths(folder, called), hidden_paths(upload, called):
                if upload.suffix.lower() == ".zip":
                    unpack_run(upload, folder, self.settings.max_upload_mb * 2**20)
                else:
                    shutil.copyfile(upload, folder / ADAPTER)
                is_whole = (folder / "config.yaml").exists()
                task = check_task(folder if is_whole else folder / ADAPTER)
                read_images(folder)  # refuses damaged ones
            with self.lock:
                run = self.runs.new_id()
                folder.rename(self.folder / "runs" / run)  # only now can it answer
                self.runs.add(run, title=Path(called).stem)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return task

    def note(self, removal: Removal) -> Removal:
        """Keep what was done so that it can be undone; take out what was removed."""
        self.removals.take(removal, self.folder)
        for picture in removal.pictures:
            self._pictures.pop(picture.number, None)
        self._groups = None
        self.save()
        return removal

    def _place(self, picture: Picture, class_name: str | None, is_test: bool) -> None:
        """Move an image's file to the folder of a class and split, or to those not sorted yet."""
        is_test = is_test and class_name is not None
        path = self._folder_of(class_name, is_test) / picture.path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.path.rename(path)
        self._pictures[picture.number] = Picture(picture.number, class_name, is_test, path)
        self._groups = None

    def _folder_of(self, class_name: str | None, is_test: bool) -> Path:
        if class_name is None:
            return self.folder / "unsorted"
        return self.folder / "images" / ("test" if is_test else "train") / class_name

    # --- the test images ------------------------------------------------------------------------

    def set_held_out(self, share: float) -> None:
        """Set the share of test images; those that the app set apart are drawn anew."""
        with self.lock:
            if not 0 < share < 1:
                raise cr.UserError("the share of test images lies between 0 and 1")
            if share == self.project.held_out:
                return
            for number in self.project.drawn:
                picture = self._pictures.get(number)
                if picture is not None and picture.class_name is not None:
                    self._place(picture, picture.class_name, False)
            self.project.held_out, self.project.drawn, self.project.drawn_up_to = share, [], 0
            self.project.not_drawn = []
            self.save()

    def _draw_test_images(self) -> None:
        """Set apart a share of the images that came since the last draw.

        So an image that was trained on never becomes a test image, and all runs are measured on
        the same images. Classes that were given test images are left as they are.
        """
        for picture in self._test_images_to_draw():
            if picture.class_name is not None:
                self._place(picture, picture.class_name, True)
                self.project.drawn.append(picture.number)
        self.project.not_drawn = [picture.number for picture in self._new(self.unsorted())]
        self.project.drawn_up_to = max(self._pictures, default=0)
        self.save()

    def _new(self, pictures: Iterable[Picture]) -> list[Picture]:
        """Return the images that have neither been trained on nor set apart."""
        last, not_drawn = self.project.drawn_up_to, set(self.project.not_drawn)
        return [p for p in pictures if p.number > last or p.number in not_drawn]

    def _test_images_to_draw(self) -> list[Picture]:
        """Return the images that the next training will set apart."""
        drawn = set(self.project.drawn)
        groups: dict[str, list[Picture]] = {}
        for name in self.classes:
            pictures = self.pictures(name)
            is_given = any(p.is_test and p.number not in drawn for p in pictures)
            if not is_given:
                groups[name] = [p for p in self._new(pictures) if not p.is_test]
        groups = {name: pictures for name, pictures in groups.items() if pictures}
        digests = {name: [self.digest(p) for p in pictures] for name, pictures in groups.items()}
        return [
            picture
            for name, chosen in hold_out(digests, self.project.held_out).items()
            for picture, is_test in zip(groups[name], chosen, strict=True)
            if is_test
        ]

    # --- trainings and searches -----------------------------------------------------------------

    @property
    def running(self) -> list[Job]:
        """The training, the search and the check that wait or run."""
        jobs: list[Job | None] = [self.job, self.search, self.check]
        return [job for job in jobs if job is not None and job.is_running]

    def begin_training(self, job: TrainingJob) -> None:
        """Note that a training is under way."""
        with self.lock:
            self.job, self.was_interrupted = job, False
            self.is_listed = False
            self.project.training = job.folder.name
            self.save()

    def end_training(self, job: TrainingJob) -> None:
        """Note that a training has ended, and list what it left."""
        with self.lock:
            if self.is_deleted:
                return
            self.project.training = ""
            self.delete_copy(job.folder.name)
            self.list_trained()
            self.save()

    def list_trained(self) -> bool:
        """List the run of the training once its adapter is there; return whether it is new.

        It answers from then on. Its figures come later, when the test images have been classified.
        """
        with self.lock:
            job = self.job
            if job is not None and not self.is_listed and (job.folder / ADAPTER).exists():
                self.is_listed = True  # and not again, if it is removed
                self.runs.add(job.folder.name, job.preset)
                return True
            return False

    def begin_search(self, job: SearchJob) -> None:
        """Note that a search for settings is under way."""
        with self.lock:
            self.search, job.before = job, self.project.search
            self.project.search = job.record().model_copy(update={"state": "interrupted"})
            self.save()

    def end_search(self, job: SearchJob) -> None:
        """Keep what a search has found; one that was stopped before that leaves all as it was."""
        with self.lock:
            if not self.is_deleted:
                self.delete_copy(job.folder.name)
                self.project.search = job.before if job.state == "stopped" else job.record()
                self.save()
            self.search = None

    def choose(self, choices: Choices) -> None:
        """Set what the page trains with next."""
        with self.lock:
            self.project.choices = choices.model_dump()
            self.save()

    # --- on disk --------------------------------------------------------------------------------

    def save(self) -> None:
        """Write down what the folders do not say, so that a restart of the app loses nothing."""
        with self.lock:
            self._groups = None
            if self.is_deleted:
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            write_project_file(self.folder, self.project)
            write_json(self.folder / _DIGESTS, self._digests)

    def _find_pictures(self) -> Iterable[Picture]:
        for split in ("train", "test"):
            for path in self.folder.glob(f"images/{split}/*/*"):
                yield Picture(_number(path), path.parent.name, split == "test", path)
        for path in self.folder.glob("unsorted/*"):
            yield Picture(_number(path), None, False, path)

    def _read_digests(self) -> dict[int, str]:
        path = self.folder / _DIGESTS
        recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = {int(number): digest for number, digest in recorded.items()}
        for number, picture in self._pictures.items():
            if number not in known:
                known[number] = _digest(_item(picture.path))
        return known


def _item(path: Path) -> Item:
    return Item(path.name, 0, DiskFile(path, path.stat().st_size))


def _items(files: Iterable[File]) -> list[Item]:
    return [Item(file.name, 0, file.content) for file in files]


def _digest(item: Item) -> str:
    return shorten_digest(item.digest())


def _check_and_digest(item: Item) -> str | Skipped:
    """Return the digest of an image whose header can be read, else why it is left out."""
    try:
        item.check()
        return _digest(item)
    except UnreadableImage as error:
        return Skipped(item.name, for_page(error.reason))


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _groups(layout: Layout) -> Iterable[tuple[bool, str, Sequence]]:
    """Yield the files of a layout as (whether they are for testing, class name, files)."""
    for is_test, split in ((False, layout.train), (True, layout.test or {})):
        for name, files in split.items():
            yield is_test, name, files


def _fitting_name(folder: str) -> str:
    """Return a class name for a folder's name, which may hold what class names may not."""
    try:
        return tidy_class_name(folder)
    except cr.UserError:
        return tidy_class_name(safe_file_name(folder))


def _safe_parts(name: str) -> list[str]:
    """Return the parts of an uploaded file's path, none of which leads out of a folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return [part.replace("\0", "")[:120] for part in parts] or ["image"]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
