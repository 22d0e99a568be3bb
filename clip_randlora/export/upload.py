"""Upload of an export to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from clip_randlora.errors import UserError
from clip_randlora.export.snippets import as_on_hub
from clip_randlora.utils import hub

_OPTION = "--push-to"


def require_token() -> None:
    """Raise a UserError that says how to get a token if none is set up."""
    hub.require_token(_OPTION)


def push(folder: str | Path, repository: str) -> str:
    """Upload a folder to a model repository, which is created if it does not exist.

    Args:
        folder: as `export_run` wrote it. The code in its card loads it from the hub afterwards.
        repository: ``USER/REPO``.

    Returns:
        The repository's address.

    Raises:
        UserError: there is no token, or the hub refuses or cannot be reached.
    """
    folder = Path(folder)
    require_token()
    paths = {path for path in folder.rglob("*") if path.is_file()}
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(paths)
    }
    card = folder / "README.md"
    if card in paths:
        text = as_on_hub(card.read_text(encoding="utf-8"), folder.name, repository)
        files[card.name] = text.encode()
    try:
        return hub.upload(files, repository)
    except UserError as error:
        raise UserError(f"{_OPTION} {error}; {folder} is written") from error
