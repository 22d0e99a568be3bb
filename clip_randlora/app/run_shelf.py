"""The runs of a project: trained here or loaded, listed, named, and one of them in use."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import clip_randlora as cr
from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.app.project_file import AppProject, RunEntry

TRAIN_FIRST = "There is no tuned model yet: train one, or load a run."


class RunShelf:
    """The runs of one project; each has a folder below ``folder``.

    ``save`` is called after every change of the project.
    """

    def __init__(self, folder: Path, project: AppProject, save: Callable[[], None]):
        self.folder, self.project, self._save = folder, project, save
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not (path / ADAPTER).exists():  # its training ended with the app
                shutil.rmtree(path, ignore_errors=True)
        project.runs = [run for run in project.runs if (folder / run.id).exists()]
        listed = {run.id for run in project.runs}
        for path in sorted(folder.iterdir()):
            if path.name not in listed:
                project.runs.append(RunEntry(id=path.name, number=self._next_number()))

    def new_id(self) -> str:
        """Return an id for a new run; later ones sort after earlier ones."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now // 10**9))
        return f"{stamp}-{now % 10**9:09d}"

    def add(self, run: str, preset: str = "", title: str = "") -> RunEntry:
        """List a run whose folder is there, and use it."""
        entry = RunEntry(id=run, number=self._next_number(), preset=preset, title=title[:80])
        self.project.runs.append(entry)
        self.project.in_use = run
        self._save()
        return entry

    def find(self, run: str) -> tuple[int, RunEntry]:
        """Return the place and the entry of a run."""
        for place, entry in enumerate(self.project.runs):
            if entry.id == run:
                return place, entry
        raise cr.UserError("this run is not there any more")

    def use(self, run: str) -> None:
        """Let a run answer from now on."""
        self.find(run)
        self.project.in_use = run
        self._save()

    def rename(self, run: str, title: str) -> None:
        """Call a run something; "" for its number."""
        title = " ".join(title.split())
        if len(title) > 80:
            raise cr.UserError("a run's name has at most 80 characters")
        self.find(run)[1].title = title
        self._save()

    def in_use(self) -> RunEntry | None:
        """Return the run that answers: the chosen one, or else the newest."""
        entries = {entry.id: entry for entry in self.project.runs}
        newest = self.project.runs[-1] if self.project.runs else None
        return entries.get(self.project.in_use, newest)

    def path(self, run: str | None = None) -> Path:
        """Return what `clip_randlora.Classifier.load` takes of a run, of the one in use if None."""
        if run is None:
            entry = self.in_use()
            if entry is None:
                raise cr.UserError(TRAIN_FIRST)
            run = entry.id
        folder = self.folder / self.find(run)[1].id
        return folder if (folder / "config.yaml").exists() else folder / ADAPTER

    def finished(self, run: str | None = None) -> Path:
        """Return the folder of a run, which must be whole: an adapter alone is not."""
        path = self.path(run)
        if path.is_file():
            raise cr.UserError("only an adapter was loaded; load the zip of its run for this")
        if not (path / "metrics.json").exists():
            raise cr.UserError("the run is still being measured; try again in a moment")
        return path

    def before(self, run: str | None = None) -> Path | None:
        """Return the folder of the latest finished run before one."""
        path = self.path(run)
        last = path.name if path.is_dir() else path.parent.name
        place = self.find(last)[0]
        folders = [self.folder / entry.id for entry in self.project.runs[:place]]
        finished = [folder for folder in folders if (folder / "metrics.json").exists()]
        return finished[-1] if finished else None

    def _next_number(self) -> int:
        return max((entry.number for entry in self.project.runs), default=0) + 1
