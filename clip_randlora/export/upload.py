"""Upload of an export to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from clip_randlora.errors import UserError


def require_token() -> None:
    """Raise a UserError that says how to get a token if none is set up."""
    if get_token() is None:
        raise UserError(
            "--push-to: needs a Hugging Face token that may write; run `hf auth login`, or set "
            "HF_TOKEN"
        )


def push(folder: str | Path, repository: str) -> str:
    """Upload a folder to a model repository, which is created if it does not exist.

    Args:
        folder: as `export_run` wrote it.
        repository: ``USER/REPO``.

    Returns:
        The repository's address.

    Raises:
        UserError: there is no token, or the hub refuses or cannot be reached.
    """
    require_token()
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--push-to {repository}: {reason}; {folder} is written") from error
    return str(address)
