"""What a shell completes, asked in a real one and beside the libraries that know the names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

import clip_randlora as cr
from clip_randlora.cli import completion
from clip_randlora.data import packaged_specs

BASH = shutil.which("bash")
ASK = """
source ~/.bash_completions/clip-randlora.sh
complete -p clip-randlora
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _clip_randlora_completion "$1"; }
ask clip-randlora export runs/pets --format on; echo "${COMPREPLY[@]}"
ask clip-randlora train cifar; echo "${COMPREPLY[@]}"
ask clip-randlora train ./photos; echo "files: ${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home folder with the command in ``bin``, as pip would write it."""
    home = tmp_path_factory.mktemp("home")
    program = home / "bin" / "clip-randlora"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom clip_randlora.cli import main\n\nmain()\n")
    program.chmod(0o755)
    return home


def bash(home: Path, script: str) -> str:
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path}
    command = [BASH, "--norc", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes_once_it_is_installed(home):
    said = bash(home, "clip-randlora --install-completion; true")
    assert "bash completion installed in" in said
    assert ".bash_completions/clip-randlora.sh" in (home / ".bashrc").read_text()
    assert bash(home, ASK).splitlines() == [
        "complete -o default -F _clip_randlora_completion clip-randlora",
        "onnx",
        "cifar10 cifar100",
        "files: ",  # of which bash itself completes the names
    ]


@pytest.mark.parametrize(
    ("complete", "known"),
    [
        (completion.complete_method, cr.METHODS),
        (completion.complete_format, cr.export_formats()),
        (completion.complete_model, ["lite0", *open_clip.list_models()]),
        (completion.complete_dataset, [*cr.DATASETS, *packaged_specs()]),
        (completion.complete_preset, cr.PRESETS),
    ],
)
def test_every_name_is_completed(complete, known):
    assert sorted(complete("")) == sorted(known)
    assert complete("no such name") == []


def test_names_are_found_without_the_libraries_that_know_them():
    code = "import sys\nfrom clip_randlora.cli import completion\n"
    code += "completion.complete_model('ViT'), completion.complete_tracker('w')\n"
    code += "print({'torch', 'open_clip', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
