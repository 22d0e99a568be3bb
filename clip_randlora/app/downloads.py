"""Files of a run to take away: the adapter, the whole run, or an export in another format."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clip_randlora as cr
from clip_randlora.adapters.io.adapter_files import FILE_NAME as ADAPTER
from clip_randlora.app.workspace import Workspace
from clip_randlora.utils.outputs import atomic_write


@dataclass(frozen=True)
class Download:
    """What can be downloaded.

    ``takes_strength`` is False where the strength is chosen at loading; ``takes_share`` says
    whether it can be the average of two runs; the first of the ``precisions`` is the default.
    """

    description: str
    takes_strength: bool = False
    takes_share: bool = True
    precisions: tuple[str, ...] = ("fp32",)


DOWNLOADS = {
    "adapter": Download("adapter: one small file that loads with clip-randlora."),
    "run": Download(
        "run: the adapter, metrics, predictions, figures and model card.", takes_share=False
    ),
    **{
        name: Download(f"{name}: {text}", True, name != "peft", cr.export_precisions(name))
        for name, text in cr.export_formats().items()
        if name != "adapter"
    },
}


def export(
    workspace: Workspace,
    name: str,
    strength: float,
    precision: str,
    share: float = 0.0,
    run: str | None = None,
) -> Path:
    """Return a file of a run: the adapter, or a zip.

    Args:
        workspace: whose run.
        name: one of `DOWNLOADS`.
        strength: 0 (zero-shot) to 1 (tuned) where the download takes one, else 1.
        precision: one of the download's.
        share: weight of the run before in an average of two runs, 0 to 1.
        run: its id; None for the run in use.

    Raises:
        UserError: there is no run, the format does not fit its model or these settings, or there
            is no run before.
    """
    if name not in DOWNLOADS:
        raise cr.UserError(f"format {name}: choose {', '.join(DOWNLOADS)}")
    download = DOWNLOADS[name]
    if strength != 1 and not download.takes_strength:
        raise cr.UserError(
            f"strength {strength:g}: {name} is given as trained and its strength chosen where "
            f"it is loaded; leave it at 1"
        )
    if precision not in download.precisions:
        choices = " or ".join(download.precisions)
        raise cr.UserError(f"precision {precision}: {name} is written in {choices}")
    before = _run_to_average(workspace, name, share, run)
    if name == "adapter" and before is None:
        chosen = workspace.runs.path(run)
        return chosen if chosen.is_file() else chosen / ADAPTER
    folder = workspace.runs.finished(run)
    marks = f"{name}-strength{strength:g}-{precision}" if download.takes_strength else name
    marks += f"-share{share:g}-{before.name}" if before else ""
    path = workspace.downloads / f"{marks}-{folder.name}.zip"
    options: dict[str, Any] = {"strength": strength, "precision": precision}
    if before:
        options |= {"add": [before], "weights": (1 - share, share)}
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=workspace.downloads) as temporary:
            exported = Path(temporary) / name
            source = folder if name == "run" else cr.export_run(folder, name, exported, **options)
            _zip_folder(source, path, name)
    return path


def snippet(workspace: Workspace, name: str, share: float = 0.0, run: str | None = None) -> str:
    """Return the Python lines that load a download; see `export`."""
    if DOWNLOADS[name].takes_strength:
        return cr.loading_snippet(workspace.runs.finished(run), name, name)
    folder = "adapter/" if share else ""
    path = f"{folder}{ADAPTER}" if name == "adapter" else "run"
    return (
        "import clip_randlora as cr\n\n"
        f'classifier = cr.Classifier.load("{path}")\n'
        'print(classifier.predict(["image.jpg"]))\n'
    )


def _run_to_average(workspace: Workspace, name: str, share: float, run: str | None) -> Path | None:
    """Return the run before if it has a share, and refuse what cannot be averaged."""
    if not 0 <= share <= 1:
        raise cr.UserError(f"share {share:g}: must lie between 0 and 1")
    if share == 0:
        return None
    if not DOWNLOADS[name].takes_share:
        raise cr.UserError(f"share {share:g}: {name} is of one run alone; leave it at 0")
    before = workspace.runs.before(run)
    if before is None:
        raise cr.UserError(
            f"share {share:g}: there is no run before this one to average it with; train twice "
            f"or load one"
        )
    return before


def zip_images(workspace: Workspace, class_name: str) -> Path:
    """Return a zip of the images of a class."""
    path = workspace.downloads / "images.zip"
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
        for picture in workspace.pictures(class_name):
            zipped.write(picture.path, f"{class_name}/{picture.path.name}")
    return path


def _zip_folder(folder: Path, path: Path, name: str) -> None:
    """Zip a folder under a name."""
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped,
    ):
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                zipped.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
