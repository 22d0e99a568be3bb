"""Looks in the background at the images that are not sorted yet, before a training and after."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import clip_randlora as cr
from clip_randlora.app.answers import Answers
from clip_randlora.app.pictures import Picture
from clip_randlora.app.tray import Guess, Guesser, Tray
from clip_randlora.app.uploads import for_page
from clip_randlora.app.workspace import Workspace
from clip_randlora.data import UnreadableImage
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.wording import join_names

_IMAGES_AT_ONCE = 16  # few, so that one person's thousand do not hold up another's answers
_NEXT = 4  # images that are suggested for labelling
_FALLBACK = "lite0"


class Guessing:
    """Looks at everybody's images without a class, a few at a time in turn."""

    def __init__(self, answers: Answers):
        self._answers = answers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guessing")

    def look(self, workspace: Workspace) -> Tray:
        """Return what is known by now, and begin to look at what is new."""
        with workspace.lock:
            tray = workspace.tray
            if not tray.is_busy and tray.seen != _what_is_there(workspace):
                tray.is_busy = True
                self._thread.submit(self._go_on, workspace, tray)
            return tray

    def _go_on(self, workspace: Workspace, tray: Tray) -> None:
        """Look at some images; others' come before the next."""
        with workspace.lock:
            there = _what_is_there(workspace)
            unsorted, labelled = workspace.unsorted(), workspace.pictures()
            digests = {p.number: workspace.digest(p) for p in (*unsorted, *labelled)}
        is_done = True
        try:
            if workspace.tray is tray and not workspace.is_deleted:
                is_done = self._step(tray, find_guesser(workspace), unsorted, labelled, digests)
            tray.error = ""
        except cr.UserError as error:
            tray.error = str(error)
        except Exception:  # the person gets a sentence, the log the traceback
            traceback.print_exc()
            tray.error = "the model could not look at them; what happened is in the app's log"
        if is_done:
            with workspace.lock:
                tray.seen, tray.is_busy = there, False
        else:
            self._thread.submit(self._go_on, workspace, tray)

    def _step(
        self,
        tray: Tray,
        guesser: Guesser | None,
        unsorted: Sequence[Picture],
        labelled: Sequence[Picture],
        digests: dict[int, str],
    ) -> bool:
        """Do a part of the work; return whether all is done."""
        if tray.guesser != guesser:
            tray.guesser, tray.guesses, tray.next = guesser, {}, []
        if guesser is None:
            return True
        keys = {number: (guesser.model, digest) for number, digest in digests.items()}
        if pending := [p for p in unsorted if p.number not in tray.guesses][:_IMAGES_AT_ONCE]:
            self._guess(tray, guesser, pending, keys)
            return False
        if len(unsorted) <= _NEXT:
            tray.next = []
            return True
        for pictures in (unsorted, labelled):
            if pending := [p for p in pictures if keys[p.number] not in tray.features]:
                self._encode(tray, guesser.model, pending[:_IMAGES_AT_ONCE], keys)
                return False
        tray.next = _next(tray, unsorted, labelled, keys)
        return True

    def _guess(
        self,
        tray: Tray,
        guesser: Guesser,
        pictures: Sequence[Picture],
        keys: dict[int, tuple[str, str]],
    ) -> None:
        """Guess the classes of some images."""
        if guesser.run is None:
            new = [p for p in pictures if keys[p.number] not in tray.features]
            reasons = self._encode(tray, guesser.model, new, keys)
            known = {p.number: tray.features[keys[p.number]] for p in pictures}
            features = {number: row for number, row in known.items() if row is not None}
            numbers = list(features)
            rows = self._answers.zero_shot(guesser.model, guesser.prompts, list(features.values()))
            unknown = [False] * len(rows)
        else:
            images, reasons = _decode_all(pictures)
            numbers = list(images)
            answers = self._answers.classify(guesser.run, list(images.values()))
            rows = [torch.tensor([a["tuned"][n] for n in guesser.classes]) for a in answers]
            unknown = [answer.get("unknown", False) for answer in answers]
        for picture in pictures:
            reason = reasons.get(picture.number, "this image cannot be read")
            tray.guesses[picture.number] = Guess(None, reason=reason)
        for number, row, is_unknown in zip(numbers, rows, unknown, strict=True):
            place = int(row.argmax())
            name, sure = guesser.classes[place], float(row[place])
            tray.guesses[number] = Guess(name, sure, is_unknown, row)

    def _encode(
        self,
        tray: Tray,
        model: str,
        pictures: Sequence[Picture],
        keys: dict[int, tuple[str, str]],
    ) -> dict[int, str]:
        """Note the features of some images; return why others cannot be read, by number."""
        images, reasons = _decode_all(pictures)
        encoded = self._answers.encode(model, list(images.values()))
        tray.features.update({keys[number]: None for number in reasons})
        tray.features.update(zip((keys[number] for number in images), encoded, strict=True))
        return reasons


def find_guesser(workspace: Workspace) -> Guesser | None:
    """Return who guesses: the run in use if it knows all classes, else the model untrained."""
    prompts = workspace.prompts()
    chosen = tuple((e.name, tuple(prompts[e.name])) for e in workspace.project.classes if e.is_on)
    if len(chosen) < 2:
        return None
    task = _task_in_use(workspace)
    if task is not None and not unknown_classes(workspace):
        return Guesser(workspace.runs.path(), task.model, chosen)
    return Guesser(None, model_at_hand(workspace), chosen)


def model_at_hand(workspace: Workspace) -> str:
    """Return the name of the model that trainings use, of a small one until that is downloaded."""
    wanted = workspace.project.choices.get("model", _FALLBACK)
    is_here = any(model.name == wanted and model.is_downloaded for model in cr.SUGGESTIONS)
    return wanted if is_here else _FALLBACK


def unknown_classes(workspace: Workspace) -> list[str]:
    """Return the classes that the run in use does not know."""
    task = _task_in_use(workspace)
    known = task.classes if task else ()
    return [e.name for e in workspace.project.classes if e.is_on and e.name not in known]


def explain(workspace: Workspace, guesser: Guesser | None) -> str:
    """Return a sentence that says whose guesses these are, or what is needed for some."""
    used = workspace.runs.in_use()
    if guesser is None:
        return "Add two classes, and each image is shown with the class that it looks like."
    if used is None:
        return "By the names of the classes alone, before any training:"
    if guesser.run is not None:
        return f"{used.name} takes them for:"
    unknown = join_names(unknown_classes(workspace), 3)
    return f"By the names of the classes alone, as {used.name} does not know {unknown}:"


def _next(
    tray: Tray,
    unsorted: Sequence[Picture],
    labelled: Sequence[Picture],
    keys: dict[int, tuple[str, str]],
) -> list[int]:
    """Return the numbers of the images from which a training would learn most."""

    def features(pictures: Sequence[Picture]) -> dict[int, Tensor]:
        found = {p.number: tray.features.get(keys[p.number]) for p in pictures}
        return {number: row for number, row in found.items() if row is not None}

    new, known = features(unsorted), features(labelled)
    if not new:
        return []
    guesses = [tray.guesses[number].probabilities for number in new]
    chosen = cr.suggest_next(
        torch.stack(list(new.values())),
        torch.stack([row for row in guesses if row is not None]),
        _NEXT,
        torch.stack(list(known.values())) if known else None,
    )
    numbers = list(new)
    return [numbers[place] for place in chosen]


def _task_in_use(workspace: Workspace) -> cr.Task | None:
    """Return what the run in use is; None if there is none, or it is damaged."""
    if workspace.runs.in_use() is None:
        return None
    try:
        return _task(workspace.runs.path())
    except cr.UserError:
        return None


@lru_cache(maxsize=256)
def _task(run: Path) -> cr.Task:
    """Read what a run is, once, as it does not change."""
    return cr.read_task(run)


def _what_is_there(workspace: Workspace) -> object:
    """Return what decides whether there is something new to look at."""
    unsorted = frozenset(picture.number for picture in workspace.unsorted())
    if not unsorted:
        return None
    return find_guesser(workspace), unsorted, len(workspace.pictures())


def _decode_all(pictures: Sequence[Picture]) -> tuple[dict[int, Image.Image], dict[int, str]]:
    """Decode images; return them, and why others cannot be read, by number."""
    images: dict[int, Image.Image] = {}
    reasons: dict[int, str] = {}
    for picture, image in zip(pictures, parallel_map(_decode, pictures), strict=True):
        if isinstance(image, str):
            reasons[picture.number] = image
        else:
            images[picture.number] = image
    return images, reasons


def _decode(picture: Picture) -> Image.Image | str:
    try:
        return cr.decode_image(picture.path, picture.name)
    except UnreadableImage as error:
        return for_page(error.reason)
