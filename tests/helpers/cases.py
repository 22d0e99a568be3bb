"""Which tests are slow, and how large load tests are."""

import os

import pytest

LARGE = os.environ.get("CLIP_RANDLORA_LARGE") == "1"
"""Whether load tests run at the size that docs/reliability.md states, and not small as in CI."""


def slow_cases(cases, *slow):
    """Mark some cases of a parametrised test as slow: one of the others stays in `make test`."""
    return [pytest.param(c, marks=pytest.mark.slow) if c in slow else c for c in cases]
