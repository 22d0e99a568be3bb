"""A small Hugging Face hub on loopback: repositories in memory, and the API that its client asks.

The endpoints and headers are those that ``huggingface_hub`` uses: ``/api/models/...`` and
``/api/datasets/...`` (info, revision, tree, paths-info, preupload, commit), ``/api/repos/create``,
``/api/validate-yaml``, git LFS' batch, and ``/resolve/`` with ETag, redirects and Range.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from helpers import hub_cards

TOKEN, READER = "hf_writer", "hf_reader"
"""The token of somebody who may write, and of somebody who may only read what is public."""

_LARGE = (".safetensors", ".parquet", ".png", ".bin")  # stored by git LFS


@dataclass
class Repository:
    """A repository and its commits, the newest last: ``(commit, {path: content})``."""

    id: str
    kind: str = "model"
    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit with these files, and return its name."""
        said = json.dumps([self.id, len(self.commits), sorted(files)])
        self.commits.append((sha1(said.encode()).hexdigest(), files))
        self.branches["main"] = self.commits[-1][0]
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        """The newest files."""
        return self.commits[-1][1] if self.commits else {}

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit by its name or its branch's."""
        wanted = self.branches.get(revision, revision)
        return next((each for each in self.commits if each[0] == wanted), None)


@dataclass
class Hub:
    """The state of the server, and what tests change of it.

    Attributes:
        requests: ``(method, path, Range header or "")`` of each request.
        cut: ``{end of a path: bytes}``; the next answers for it break off after so many bytes.
        told: the paths of requests with a token.
        status: what every request is answered with, if it is not None.
    """

    address: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    status: int | None = None

    def add(self, id: str, files: dict[str, bytes], kind: str = "model", **more: Any) -> Repository:
        """Add a repository."""
        made = self.repositories[kind, id] = Repository(id, kind, **more)
        made.commit(files)
        return made

    def asked(self, method: str, end: str) -> list[str]:
        """Return the Range headers of the requests whose path ends so."""
        return [r for m, path, r in self.requests if m == method and path.endswith(end)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _take(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.status is not None:
            return self._error(self.hub.status, message="it is out of order")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token:
            self.hub.told.append(path)
        if token and token not in (TOKEN, READER):
            return self._error(401, message="Invalid credentials in Authorization header")
        self.may_write, self.may_read = token == TOKEN, token == TOKEN
        for methods, pattern, take in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods:
                return take(self, query, **found.groupdict())
        self._error(404, message=f"no such endpoint: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _take

    # --- answers

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        content = json.dumps({"error": message}).encode()
        self._send(
            status,
            content,
            X_Error_Message=message,
            Content_Type="application/json",
            **headers,
        )

    def _repository(self, kind: str, id: str, write: bool = False) -> Repository | None:
        """Return a repository, or answer why not, as the hub does."""
        found = self.hub.repositories.get((kind, id))
        if found is None or (found.private and not self.may_read):
            is_known = bool(self.headers.get("Authorization"))
            status = 404 if is_known else 401
            self._error(status, "RepoNotFound" if is_known else "", "Repository not found")
        elif found.gated:
            self._error(403, "GatedRepo", f"Access to {kind} {id} is restricted.")
        elif write and not self.may_write:
            self._error(403, message="You do not have write access")
        else:
            return found
        return None

    def _at(self, kind: str, id: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(kind, id)
        if repository is None:
            return None
        found = repository.at(revision or "main")
        if found is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # --- endpoints

    def _create(self, _: Any) -> None:
        asked = json.loads(self.body)
        id = f"{asked['organization']}/{asked['name']}"
        kind = asked.get("type") or "model"
        if not self.may_write:
            return self._error(403, message="You do not have the right to create a repository")
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.address}/{prefix}{id}"}
        if (kind, id) in self.hub.repositories:
            return self._json(answer | {"error": "You already created this repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(id, {".gitattributes": b""}, kind, private=private)
        self._json(answer)

    def _validate(self, _: Any) -> None:
        asked = json.loads(self.body)
        found = hub_cards.problems(asked["content"]) if asked["repoType"] == "model" else []
        errors = [{"message": problem} for problem in found]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _info(self, query: Any, kind: str, id: str, revision: str | None = None) -> None:
        found = self._at(kind, id, revision)
        if found is not None:
            commit, files = found
            siblings = [
                {"rfilename": path, **({"size": len(files[path])} if "blobs" in query else {})}
                for path in sorted(files)
            ]
            self._json({"id": id, "sha": commit, "private": False, "siblings": siblings})

    def _tree(self, query: Any, kind: str, id: str, revision: str, folder: str = "") -> None:
        found = self._at(kind, id, revision)
        if found is None:
            return
        start = f"{folder}/" if folder else ""
        inside = {path for path in found[1] if path.startswith(start)}
        if folder and not inside:
            return self._error(404, "EntryNotFound", f"{folder} does not exist")
        files = [self._entry(path, found[1][path]) for path in sorted(inside)]
        parents = {
            start + "/".join(path.removeprefix(start).split("/")[:depth])
            for path in inside
            for depth in range(1, path.removeprefix(start).count("/") + 1)
        }
        folders = [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(parents)]
        if query.get("recursive", ["false"])[0].lower() != "true":
            files, folders = (
                [entry for entry in some if "/" not in entry["path"].removeprefix(start)]
                for some in (files, folders)
            )
        self._json([*folders, *files])

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if path.endswith(_LARGE):
            digest = sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def _paths(self, _: Any, kind: str, id: str, revision: str) -> None:
        found = self._at(kind, id, revision)
        if found is None:
            return
        asked = (
            json.loads(self.body)["paths"]
            if self.body.startswith(b"{")
            else parse_qs(self.body.decode()).get("paths", [])
        )
        entries = []
        for path in asked:
            if path in found[1]:
                entries.append(self._entry(path, found[1][path]))
            elif any(name.startswith(f"{path}/") for name in found[1]):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40})
        self._json(entries)

    def _preupload(self, _: Any, kind: str, id: str, revision: str) -> None:
        if self._repository(kind, id, write=True) is not None:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._json({"files": modes})

    def _batch(self, _: Any, id: str) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.address}/lfs/{asked['oid']}"
            actions = {"upload": {"href": href}}
            is_there = asked["oid"] in self.hub.stored
            objects.append(asked if is_there else asked | {"actions": actions})
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, _: Any, oid: str) -> None:
        if sha256(self.body).hexdigest() != oid:
            return self._error(422, message="the content has another hash")
        self.hub.stored[oid] = self.body
        self._send(200)

    def _commit(self, _: Any, kind: str, id: str, revision: str) -> None:
        repository = self._repository(kind, id, write=True)
        if repository is None:
            return
        files = dict(repository.files)
        for line in self.body.splitlines():
            change = json.loads(line)
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif change["key"] == "deletedFile":
                del files[value["path"]]
        found = hub_cards.problems(files["README.md"].decode()) if "README.md" in files else []
        if found and kind == "model":
            return self._error(400, message="; ".join(found))
        commit = repository.commit(files)
        url = f"{self.hub.address}/{id}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "success": True})

    def _resolve(
        self, _: Any, id: str, revision: str, path: str, prefix: str | None = None
    ) -> None:
        found = self._at("dataset" if prefix else "model", id, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self.send_response(404)
            for name, value in (
                ("X-Error-Code", "EntryNotFound"),
                ("X-Repo-Commit", commit),
                ("Content-Length", "0"),
            ):
                self.send_header(name, value)
            return self.end_headers()
        content = files[path]
        if not path.endswith(_LARGE):
            return self._file(path, content, X_Repo_Commit=commit, ETag=f'"{_blob(content)}"')
        digest = sha256(content).hexdigest()
        self.hub.stored[digest] = content
        self._send(
            302,
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(content)),
            # another host: the client follows redirects on the hub's own, and sends it the token
            Location=f"{self.hub.address.replace('127.0.0.1', 'localhost')}/cdn/{digest}/{path}",
        )

    def _cdn(self, _: Any, oid: str, path: str) -> None:
        self._file(path, self.hub.stored[oid], ETag=f'"{oid}"')

    def _file(self, path: str, content: bytes, **headers: str) -> None:
        """Send a file, or the part that is asked for, or less of it if it is to break off."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = int(asked[2]) + 1 if asked and asked[2] else len(content)
        part = content[start:end]
        if asked:
            headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        cuts = self.hub.cut.get(path, []) if self.command == "GET" else []
        if not cuts:
            return self._send(206 if asked else 200, part, Accept_Ranges="bytes", **headers)
        headers["Content_Length"] = str(len(part))
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(part[: cuts.pop(0)])
        self.wfile.flush()
        self.close_connection = True


def _blob(content: bytes) -> str:
    """Return git's name of a content."""
    return sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_KIND = r"/api/(?P<kind>model|dataset)s/"
_REVISION = r"(?P<revision>[^/]+(?:/pr/\d+|/convert/\w+)?)"
_ROUTES = (
    (("POST",), r"/api/repos/create", _Handler._create),
    (("POST",), r"/api/validate-yaml", _Handler._validate),
    (("GET",), rf"{_KIND}{_ID}", _Handler._info),
    (("GET",), rf"{_KIND}{_ID}/revision/{_REVISION}", _Handler._info),
    (("GET",), rf"{_KIND}{_ID}/tree/{_REVISION}(?:/(?P<folder>.*))?", _Handler._tree),
    (("POST",), rf"{_KIND}{_ID}/paths-info/{_REVISION}", _Handler._paths),
    (("POST",), rf"{_KIND}{_ID}/preupload/{_REVISION}", _Handler._preupload),
    (("POST",), rf"{_KIND}{_ID}/commit/{_REVISION}", _Handler._commit),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", _Handler._batch),
    (("PUT",), r"/lfs/(?P<oid>\w+)", _Handler._store),
    (("GET", "HEAD"), r"/cdn/(?P<oid>\w+)/(?P<path>.*)", _Handler._cdn),
    (
        ("GET", "HEAD"),
        rf"/(?P<prefix>datasets/)?{_ID}/resolve/{_REVISION}/(?P<path>.*)",
        _Handler._resolve,
    ),
)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of loopback."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, cache: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
    """Return the variables by which a new process uses the hub, and a cache of its own."""
    found = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": token or "",
        **more,
    }
    return found


def use(hub: Hub, cache: Path, patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Let this process use the hub, and a cache of its own."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch) -> Hub:
    """An empty hub that this process uses, with a token that may write and an empty cache."""
    for state in ("repositories", "stored", "requests", "cut", "told"):
        getattr(hub_server, state).clear()
    hub_server.status = None
    use(hub_server, tmp_path / "cache", monkeypatch)
    return hub_server
