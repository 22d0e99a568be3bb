"""The process that measures one row: ``python -m benchmarks.common.worker MODULE:FUNCTION``.

Packages named after the function are as if not installed. Settings come as JSON on standard input;
the answer, ``{"result": ...}`` or ``{"failed": reason}``, is one line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Call the function and print what it returns, with threads and peak memory."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not get between the lines
    sys.modules.update(dict.fromkeys(sys.argv[2:]))  # None: importing it is an ImportError
    answer = call(sys.argv[1], json.load(sys.stdin))
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def call(function: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Call ``MODULE:NAME`` with settings; return its ``result``, or why it ``failed``."""
    module, _, name = function.partition(":")
    try:
        result = getattr(import_module(module), name)(**settings)
    except ImportError as error:
        return {"failed": f"{error.name or error}: not installed ({error})"}
    except Exception as error:  # a row that cannot run is a result too
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"failed": reason[:300]}
    return {"result": result | _footprint()}


def _footprint() -> dict[str, Any]:
    """Measure this process: threads, peak resident memory, peak CUDA memory."""
    found: dict[str, Any] = {"peak_memory_bytes": peak_resident_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_initialized():
            found["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    return found


def peak_resident_bytes() -> int | None:
    """Return the most memory this process held; None where the system does not say.

    From ``VmHWM``: unlike ``ru_maxrss``, it does not count the parent's memory before exec.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _peak_by_rusage()
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else _peak_by_rusage()


def _peak_by_rusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
