"""Kill a command at random moments, go on with it, and say how often and what was left.

    PYTHONPATH=tests python -m helpers.crash --kills 20 --seed 1 -- train photos --out runs/x

runs ``clip-randlora train photos --out runs/x``, kills it with SIGKILL after a random part of the
time that an undisturbed run takes, and runs it again with ``--resume`` where its folder can be
resumed, until that many kills are done; then once more to its end.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers import forks


@dataclass
class Report:
    """How many runs were killed, how many ended before that, and standard error of the last."""

    kills: int = 0
    finished: int = 0
    errors: list[str] = field(default_factory=list)


OFTEN = """
from clip_randlora import cli
from clip_randlora.training import trainer
trainer.SECONDS_BETWEEN_CHECKPOINTS = 0.2
cli.main()
"""
"""The command with a checkpoint every 0.2 seconds, so that kills fall after some and into some."""


def run(arguments: Sequence[str], seconds: float | None = None) -> subprocess.CompletedProcess:
    """Run the command; kill it, with a return code of -9, after some seconds."""
    process = forks.of_the_package().start(OFTEN, arguments)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, "", errors)


def kill_and_go_on(
    arguments: Sequence[str],
    goes_on: Callable[[], Sequence[str]],
    is_done: Callable[[], bool],
    start_over: Callable[[], None],
    kills: int,
    seed: int,
    moments: Callable[[], tuple[float, float]],
    look: Callable[[], None] = lambda: None,
) -> Report:
    """Kill a command ``kills`` times, each at a random moment, then let it end.

    Args:
        arguments: of ``clip-randlora``.
        goes_on: returns what to add to them to go on after a kill.
        is_done: whether the output is complete.
        start_over: called when it is before there were kills enough.
        kills: how often.
        seed: of the moments.
        moments: returns the seconds between which the next kill falls.
        look: called after each kill, to check what is there.
    """
    drawn, report = random.Random(seed), Report()
    longest = float("inf")  # of a run that nothing ended
    print(f"crash harness: {kills} kills, seed {seed}")
    while report.kills < kills:
        low, high = (min(moment, longest) for moment in moments())
        began = time.monotonic()
        done = run([*arguments, *goes_on()], drawn.uniform(low, high))
        if done.returncode == -signal.SIGKILL:
            report.kills += 1
            look()
        elif done.returncode == 0 and is_done():
            report.finished += 1
            longest = 0.9 * (time.monotonic() - began)  # moments that come too late come sooner
        else:
            report.errors.append(done.stderr)
            return report
        if is_done():  # or killed between its last file and its end
            start_over()
    if not is_done():
        done = run([*arguments, *goes_on()])
        if done.returncode:
            report.errors.append(done.stderr)
    return report


def main() -> None:
    """Kill a ``train`` command again and again; exit status 1 if it could not go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30, help="the last moment of a kill")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    arguments = [word for word in options.command if word != "--"]
    if "--out" not in arguments:
        parser.error("give the command with --out FOLDER")
    out = Path(arguments[arguments.index("--out") + 1])
    started = time.monotonic()
    report = kill_and_go_on(
        arguments,
        lambda: ["--resume"] if (out / "config.yaml").exists() else [],
        lambda: (out / "metrics.json").exists(),
        lambda: sys.exit(f"ended before {options.kills} kills: give a smaller --seconds"),
        options.kills,
        options.seed,
        lambda: (0, options.seconds),
    )
    print(f"{report.kills} kills, {time.monotonic() - started:.0f} s, errors: {report.errors}")
    sys.exit(bool(report.errors))


if __name__ == "__main__":
    main()
