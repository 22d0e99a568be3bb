"""onnxruntime-web, which runs the classifier of a web page: where it is, and a copy of it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_randlora.errors import UserError

VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
_SHA256 = {  # of the files that a page needs, in the package's folder dist
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
_PACKAGE = f"onnxruntime-web@{VERSION}"
_LARGEST_FILE = 100_000_000  # bytes
_SECONDS = 600


def copy_runtime(folder: Path, source: Path | None = None) -> None:
    """Copy the files that a page needs into a new folder.

    Args:
        folder: to create.
        source: the folder ``dist`` of the package; None to take the package from npm.

    Raises:
        UserError: there is no npm or it fails, or the files are missing or of another version.
    """
    folder.mkdir()
    with _from_npm() if source is None else _from_folder(source) as found:
        for name, digest in _SHA256.items():
            shutil.copyfile(found / name, folder / name)
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise UserError(f"{found / name}: is not that of {_PACKAGE}; take that version's")


@contextmanager
def _from_folder(source: Path) -> Iterator[Path]:
    for name in _SHA256:
        if not (source / name).is_file():
            raise UserError(
                f"--runtime {source}: has no {name}; give the folder dist of {_PACKAGE}"
            )
    yield source


@contextmanager
def _from_npm() -> Iterator[Path]:
    """Have npm download the package, and unpack the files that are needed."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"--offline: needs npm, which is not installed; install it, or give the folder dist of "
            f"{_PACKAGE} by --runtime"
        )
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", "--silent", "--pack-destination", temporary, _PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise UserError(f"--offline: npm took more than {_SECONDS} s; try again") from None
        packed = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not packed:
            reason = " ".join(done.stderr.split())[:200] or f"status {done.returncode}"
            raise UserError(
                f"--offline: npm could not get {_PACKAGE} ({reason}); try again, or give --runtime"
            )
        with tarfile.open(packed[0]) as archive:
            for name in _SHA256:
                _unpack(archive, f"package/dist/{name}", Path(temporary) / name)
        yield Path(temporary)


def _unpack(archive: tarfile.TarFile, member: str, path: Path) -> None:
    """Unpack one file of an archive, wherever the archive says that it belongs."""
    try:
        file = archive.extractfile(member)
        content = file.read(_LARGEST_FILE) if file else b""
    except KeyError:
        raise UserError(f"--offline: {_PACKAGE} has no {member}; give --runtime") from None
    path.write_bytes(content)
