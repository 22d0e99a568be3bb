"""The names of `import clip_randlora as cr`: one list, in the stub, imported on first use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clip_randlora as cr

STUB = Path(cr.__file__).with_suffix(".pyi")


def test_every_name_of_the_stub_is_there():
    stub = ast.parse(STUB.read_text(encoding="utf-8"))
    listed = [
        alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(listed) == cr.__all__
    assert set(cr.__all__) <= set(dir(cr))
    for name in cr.__all__:
        assert getattr(cr, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        cr.nonsense  # noqa: B018


def test_the_package_is_imported_without_torch():
    code = "import sys, clip_randlora as cr; print(cr.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [cr.__version__, "False"]


def test_type_checkers_find_the_hints():
    assert STUB.with_name("py.typed").exists()
