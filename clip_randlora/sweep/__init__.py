"""Sweeps: data sets x methods x shots x seeds, each combination one run folder."""

from clip_randlora.sweep.config import Cell, Resources, SweepConfig, read_sweep
from clip_randlora.sweep.folder import SweepFolder
from clip_randlora.sweep.run import Stopped, run_sweep

__all__ = [
    "Cell",
    "Resources",
    "Stopped",
    "SweepConfig",
    "SweepFolder",
    "read_sweep",
    "run_sweep",
]
