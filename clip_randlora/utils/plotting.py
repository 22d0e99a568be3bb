"""matplotlib, imported whatever ``MPLBACKEND`` says."""

from __future__ import annotations

import os
import sys

_BACKEND = "MPLBACKEND"

__all__ = ["Figure", "FigureCanvasAgg"]


def _import_without_backend() -> None:
    """Import matplotlib with ``MPLBACKEND`` out of sight: a notebook's may not be installed here.

    Figures are written by Agg and need no backend. The variable is back afterwards.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]  # what the import that failed has left
    backend = os.environ.pop(_BACKEND)
    try:
        import matplotlib  # noqa: F401
    finally:
        os.environ[_BACKEND] = backend


try:
    import matplotlib  # noqa: F401
except ValueError:
    if _BACKEND not in os.environ:
        raise
    _import_without_backend()

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
