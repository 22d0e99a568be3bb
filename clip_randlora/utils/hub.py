"""The Hugging Face hub: names, downloads, uploads, and what its errors mean, in one line each."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from clip_randlora.errors import UserError, is_out_of_memory
from clip_randlora.utils.quiet import quiet

HUB = "hf-hub:"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w-][\w.-]*(?:/[\w-][\w.-]*)*))?")
_SECONDS = 20  # for the hub's answer
_CLIENTS = ("httpcore", "httpx", "httpx2", "requests", "urllib3")  # of its library's versions
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubName:
    """A model repository of the hub, and a branch, tag or commit of it; None for its newest."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str | Path) -> HubName:
        """Read ``ORG/NAME[@REVISION]``, also with ``hf-hub:`` before it.

        Raises:
            UserError: it is no such name.
        """
        text = name.as_posix() if isinstance(name, Path) else name
        found = _NAME.fullmatch(text.removeprefix(HUB))
        if found is None:
            raise UserError(
                f"{text}: no name of a repository; give {HUB}ORG/NAME, or {HUB}ORG/NAME@REVISION"
            )
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{HUB}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_name(name: object) -> bool:
    """Return whether a name begins with ``hf-hub:``."""
    return str(name).startswith(HUB)


def download(name: HubName, limits: Mapping[str, int], token: str | None = None) -> Path:
    """Fetch those files of a repository that have known names, into the hub's cache.

    A file that has come whole is not fetched again. If a connection breaks, the library goes on
    with the file where it stopped.

    Args:
        name: the repository.
        limits: ``{name of a file at the top: most bytes}``; no other file is fetched.
        token: by default that of ``hf auth login`` or HF_TOKEN.

    Returns:
        A folder of the cache with the files that are there. If the hub cannot be reached, it is
        the one of the last download, which a warning says unless HF_HUB_OFFLINE is set.

    Raises:
        UserError: the repository or its revision is not there, needs a login or an agreement, a
            file is too large, or the hub cannot be reached and nothing is in the cache.
    """
    with quiet("huggingface_hub"), _in_one_line(str(name), name, token):
        try:
            info = HfApi(token=token).model_info(
                name.repository, revision=name.revision, files_metadata=True, timeout=_SECONDS
            )
        except Exception as error:
            if _is_refusal(error) or (folder := _cached(name, limits)) is None:
                raise
        else:
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            return _fetch(name, str(info.sha), _check_sizes(name, sizes, limits), token)
    if not constants.HF_HUB_OFFLINE:
        warnings.warn(f"{name}: the hub cannot be reached; the cache's copy is used", stacklevel=2)
    return folder


def _check_sizes(name: HubName, sizes: Mapping[str, int], limits: Mapping[str, int]) -> list[str]:
    """Return the files that are there and known."""
    for file, most in limits.items():
        if sizes.get(file, 0) > most:
            raise UserError(
                f"{name}: {file} has {sizes[file]:,} bytes, more than the {most:,} that such a "
                f"file may have; take another repository"
            )
    return [file for file in limits if file in sizes]


def _fetch(name: HubName, commit: str, files: Sequence[str], token: str | None) -> Path:
    folder = Path(constants.HF_HUB_CACHE)
    for file in files:
        path = hf_hub_download(name.repository, file, revision=commit, token=token)
        folder = Path(path).parent
    if files:  # by the revision's name: then the cache knows its commit without a network
        hf_hub_download(name.repository, files[0], revision=name.revision, token=token)
    return folder


def _cached(name: HubName, files: Mapping[str, int]) -> Path | None:
    """Return the folder of the last download, if there is one."""
    try:
        return Path(
            snapshot_download(
                name.repository,
                revision=name.revision,
                allow_patterns=list(files),
                local_files_only=True,
            )
        )
    except Exception:  # the library raises several kinds
        return None


def upload(
    files: Mapping[str, Path | bytes],
    repository: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    instead_of: Sequence[str] = (),
    message: str = "Upload by clip-randlora",
) -> str:
    """Upload files in one commit to a model repository, which is created if it does not exist.

    Args:
        files: paths or contents by their names in the repository.
        repository: ``ORG/NAME``.
        private: whether a new repository is; by default as the account says.
        token: one that may write; by default that of ``hf auth login`` or HF_TOKEN.
        instead_of: names of files that are deleted there if they are not in ``files``.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        UserError: there is no token, or the hub refuses or cannot be reached.
    """
    name = HubName.parse(repository)
    require_token(repository, token)
    with quiet("huggingface_hub"), _in_one_line(repository, name, token):
        api = HfApi(token=token)
        address = api.create_repo(name.repository, private=private, exist_ok=True)
        there = set(api.list_repo_files(name.repository)) if instead_of else set()
        old = sorted(there.intersection(instead_of).difference(files))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        operations += [CommitOperationDelete(path) for path in old]
        api.create_commit(name.repository, operations, commit_message=message)
    return str(address)


def require_token(called: str, token: str | None = None) -> None:
    """Raise a UserError that begins with ``called`` if no token is given or set up."""
    if (token or get_token()) is None:
        raise UserError(
            f"{called}: needs a Hugging Face token that may write; run `hf auth login`, or set "
            f"HF_TOKEN"
        )


@contextmanager
def _in_one_line(called: str, name: HubName, token: str | None) -> Iterator[None]:
    """Turn every error of the hub's library into a UserError that begins with ``called``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = explain(error, name.repository, name.revision, token)
        raise UserError(f"{called}: {reason or _first_sentence(error)}") from error


def explain(
    error: BaseException,
    repository: str,
    revision: str | None = None,
    token: str | None = None,
    kind: str = "",
) -> str | None:
    """Return what an error of the hub's library means and what to do about it.

    Args:
        error: it, or one that was raised while it was handled.
        repository: ``ORG/NAME``.
        revision: the one that was asked for.
        token: the one that was given.
        kind: what the address has before the name: ``datasets/`` for a data set.

    Returns:
        Part of a sentence; None if no error of the library is involved.
    """
    chain = list(_chain(error))
    address = f"{constants.ENDPOINT}/{kind}{repository}"
    for each in chain:
        if isinstance(each, HfHubHTTPError) and getattr(each, "response", None) is not None:
            return _explain_answer(each, address, revision, token or get_token())
    if any(isinstance(each, HFValidationError) for each in chain):
        return "no name of a repository; give ORG/NAME"
    if any(getattr(each, "errno", None) == errno.ENOSPC for each in chain):
        return f"the disk is full; make room in {constants.HF_HUB_CACHE}, or set HF_HOME"
    if any(isinstance(each, PermissionError) for each in chain):
        return f"{constants.HF_HUB_CACHE} cannot be written to; set HF_HOME to another folder"
    if any(type(each).__module__.startswith("huggingface_hub") for each in chain) and _is_offline():
        return "not in the cache, and HF_HUB_OFFLINE is set; unset it to download it once"
    if any("Consistency check failed" in str(each) for each in chain) or any(
        type(each).__name__ in ("RemoteProtocolError", "ChunkedEncodingError") for each in chain
    ):
        return "the connection broke off; run it again, and what has come whole is kept"
    if any(type(each).__module__.split(".")[0] in _CLIENTS for each in chain):
        return f"{constants.ENDPOINT} cannot be reached; check the network, or come back later"
    return None


def _explain_answer(
    error: HfHubHTTPError, address: str, revision: str | None, token: str | None
) -> str:
    """Explain an answer of the hub that is an error."""
    status, words = error.response.status_code, getattr(error, "server_message", None)
    said = f" ({_first_sentence(words)})" if words else ""
    if isinstance(error, GatedRepoError):
        ask = f"its owner wants to be asked first; ask at {address}"
        return ask if token else f"{ask}, then {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {revision or 'main'}; see {address}/commits"
    if status == 401 and token:
        return f"the hub refuses the token; make another one, then {_LOG_IN}"
    if status == 401 or (isinstance(error, RepositoryNotFoundError) and not token):
        return f"there is no such repository, or it is private; correct the name, or {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such repository, or the token may not see it; correct the name, or take "
            "another token"
        )
    return {
        400: f"the hub refuses it{said}; correct it",
        403: f"the token may not do this{said}; make one that may, then {_LOG_IN}",
        404: f"something is not there{said}; see {address}",
        429: "the hub was asked too often; wait a few minutes",
    }.get(status, f"the hub answers {status}{said}; come back later")


def _is_refusal(error: Exception) -> bool:
    """Return whether the hub answered and will answer so again."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return isinstance(error, HFValidationError) or (
        response is not None and response.status_code < 500 and response.status_code != 429
    )


def _is_offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _first_sentence(error: object) -> str:
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    return text[:200] or type(error).__name__
