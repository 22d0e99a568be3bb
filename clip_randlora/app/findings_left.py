"""What a check found and nobody has decided yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import clip_randlora as cr
from clip_randlora.app.checks import CheckJob, Finding
from clip_randlora.app.pictures import Picture
from clip_randlora.app.removals import Removal
from clip_randlora.app.workspace import Workspace


class Left(NamedTuple):
    """A finding, and those of its images that are still as they were."""

    finding: Finding
    pictures: list[Picture]


def findings_left(workspace: Workspace) -> Iterator[Left]:
    """Yield what was found by the last check, and neither moved, removed nor called fine since."""
    record = workspace.project.check
    fine = set(workspace.project.fine)
    for finding in record.findings if record else ():
        if finding.key in fine:
            continue
        pictures = [
            picture
            for image in finding.images
            for picture in [workspace.find(image.number)]
            if picture is not None
            and picture.class_name == image.class_name
            and workspace.digest(picture) == image.digest
        ]
        if pictures and (finding.kind != "duplicate" or _matters(pictures)):
            yield Left(finding, pictures)


def call_fine(workspace: Workspace, keys: Sequence[str]) -> Removal:
    """Remember that findings are fine, also in later checks.

    Raises:
        UserError: one is not found any more.
    """
    with workspace.lock:
        known = {finding.key for finding, _ in findings_left(workspace)}
        if not known.issuperset(keys):
            raise cr.UserError("this was settled already")
        workspace.project.fine += keys
        what = f"{len(keys)} finding{'s' if len(keys) != 1 else ''}"
        return workspace.note(Removal(what, f"Called {what} fine", fine=list(keys)))


def end_check(workspace: Workspace, job: CheckJob) -> None:
    """Keep what a check has found; one that was stopped leaves all as it was."""
    with workspace.lock:
        workspace.delete_copy(job.folder.name)
        if job.state != "stopped":
            workspace.project.check = job.record()
        workspace.check = None
        workspace.save()


def describe_findings(workspace: Workspace) -> list[dict[str, Any]]:
    """Return what is left to decide as plain data."""
    with workspace.lock:
        return [
            {
                "key": finding.key,
                "kind": finding.kind,
                "suggested": finding.suggested if finding.suggested in workspace.classes else "",
                "certainty": finding.certainty,
                "reason": finding.reason,
                "images": [
                    {
                        "number": picture.number,
                        "name": picture.name,
                        "class_name": picture.class_name,
                        "is_test": picture.is_test,
                        "address": workspace.address(picture),
                    }
                    for picture in pictures
                ],
            }
            for finding, pictures in findings_left(workspace)
        ]


def _matters(pictures: Sequence[Picture]) -> bool:
    """Return whether near duplicates lie in two classes, or in training and test images."""
    return len({(picture.class_name, picture.is_test) for picture in pictures}) > 1
