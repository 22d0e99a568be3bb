"""Import matplotlib, even if ``MPLBACKEND`` names a backend that is not installed."""

from __future__ import annotations

import os
import sys

_BACKEND = "MPLBACKEND"

__all__ = ["Figure", "FigureCanvasAgg"]


def _import_without_backend() -> None:
    """Import matplotlib without ``MPLBACKEND``, which a notebook may have set.

    Figures are written by Agg and need no backend. The variable is restored afterwards.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        del sys.modules[name]  # left by the import that failed
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
