"""Sweeps: data sets x methods x shots x seeds, each combination one run folder."""

from clip_randlora.sweep.config import Cell, Resources, SweepConfig, read_sweep
from clip_randlora.sweep.engines import Stopped, run_sweep
from clip_randlora.sweep.sweep_folder import SweepFolder

__all__ = [
    "Cell",
    "Resources",
    "Stopped",
    "SweepConfig",
    "SweepFolder",
    "read_sweep",
    "run_sweep",
]
