"""Processes that start at once: forks of one that has done the slow imports.

To import torch and open_clip takes seconds of every process. Tests that start many processes, to
kill them or to see what another one loads, take forks. A fork is a process of its own: it has its
own arguments, folder, environment and output, and it ends or is killed as any other.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

SERVER = """
import gc, json, os, sys

gc.freeze()  # forks need not look through what was imported
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
else:
    sys.exit()

for number, (path, how) in enumerate(job["streams"]):
    opened = os.open(path, how)
    os.dup2(opened, number)
    os.close(opened)
os.environ.clear()
os.environ.update(job["environment"])
os.chdir(job["folder"])
sys.argv = ["-c", *job["arguments"]]
exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
"""
"""For each line of JSON on standard input, a fork; its number is printed, and how it ended."""


IMPORTS = """
import sys
sys.path.insert(0, {tests!r})
import clip_randlora.few_shot, clip_randlora.export, clip_randlora.sweep, clip_randlora.cli
from helpers import coarse_figures
coarse_figures.figures.save = coarse_figures.save
del sys.path[0]
"""
"""What training and export import, and the tests' coarse figures."""


# what is frozen looks like a leak to extensions that are made with nanobind, torch 2.15's say
_FROZEN = re.compile(r"^nanobind: leaked .*?refleaks\.html\n?", re.M | re.S)


class Fork:
    """A running fork, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: ForkServer, output: Path, errors: Path):
        self.pid, self.returncode = int(server.read_line()), None
        self._server, self._files = server, (output, errors)

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal; None while it runs."""
        if self.returncode is None and (line := self._server.read_line(0)):
            self.returncode = os.waitstatus_to_exitcode(int(line))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; return its standard output and error.

        Raises:
            subprocess.TimeoutExpired: if it still runs after ``timeout`` seconds.
        """
        if self.returncode is None:
            line = self._server.read_line(timeout)
            if line is None:
                raise subprocess.TimeoutExpired("a fork", timeout)
            self.returncode = os.waitstatus_to_exitcode(int(line))
        output, errors = (path.read_text() for path in self._files)
        return output, _FROZEN.sub("", errors)


class ForkServer:
    """A process that ran ``imports``, and forks itself for one program at a time."""

    def __init__(self, imports: str, **environment: str):
        self._folder = TemporaryDirectory()
        self._environment = environment
        self._forks = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", imports + SERVER],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    def start(self, code: str, arguments: Sequence = (), folder: Path | None = None) -> Fork:
        """Run a program in a fork; ``arguments`` are those of its command line."""
        self._forks += 1
        output, errors = (Path(self._folder.name) / f"{self._forks}{n}" for n in ("out", "err"))
        write = os.O_WRONLY | os.O_CREAT
        job = {
            "code": code,
            "arguments": [*map(str, arguments)],
            "folder": str(folder or Path.cwd()),
            "environment": {**os.environ, **self._environment},
            "streams": [(os.devnull, os.O_RDONLY), (str(output), write), (str(errors), write)],
        }
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        return Fork(self, output, errors)

    def run(
        self,
        code: str,
        arguments: Sequence = (),
        folder: Path | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess:
        """Run a program in a fork to its end, as `subprocess.run` does."""
        fork = self.start(code, arguments, folder)
        try:
            output, errors = fork.communicate(timeout)
        except subprocess.TimeoutExpired:
            fork.send_signal(9)
            fork.communicate()
            raise
        return subprocess.CompletedProcess(arguments, fork.returncode, output, errors)

    def read_line(self, timeout: float | None = None) -> str | None:
        """Return the server's next line, or None if there is none after ``timeout`` seconds."""
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        line = self._process.stdout.readline().decode()
        assert line, "the server of forks ended"
        return line


@cache
def of_the_package() -> ForkServer:
    """Return the server whose forks have imported this package, and draw coarse figures."""
    return ForkServer(IMPORTS.format(tests=str(Path(__file__).parents[1])), COLUMNS="200")


def start_command(*arguments) -> Fork:
    """Start ``python -m clip_randlora`` in a fork."""
    code = "import runpy; runpy.run_module('clip_randlora', run_name='__main__', alter_sys=True)"
    return of_the_package().start(code, arguments)


def run_command(*arguments) -> subprocess.CompletedProcess:
    """Run ``python -m clip_randlora`` in a fork to its end."""
    fork = start_command(*arguments)
    output, errors = fork.communicate(300)
    return subprocess.CompletedProcess(arguments, fork.returncode, output, errors)
