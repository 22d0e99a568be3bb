"""The command, run in this process or in one of its own."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from clip_randlora import cli


def process(*arguments) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "clip_randlora", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
    )


def command(*arguments) -> subprocess.CompletedProcess:
    """Run the command in this process, which has its heavy imports already."""
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["clip-randlora", *map(str, arguments)])
        for console in (cli.results, cli.messages):
            patch.setattr(console, "_width", 200)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return subprocess.CompletedProcess(
        arguments, ended.value.code, output.getvalue(), errors.getvalue()
    )


_PROGRESS = re.compile(r"([^\s:]+: )?[a-z][\w .]*: .*(so far|left|took .+|[\d,]+ of [\d,]+)")


def without_progress(errors: str) -> str:
    """Return what is on standard error but for progress, whose lines depend on the speed."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not _PROGRESS.fullmatch(line.rstrip("\n")))
