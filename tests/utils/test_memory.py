"""Free memory in a container is what its limit leaves."""

import psutil
import pytest
import torch

from clip_randlora.utils import memory


def write_limit(folder, limit: str) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("700000\n")
    (folder / "memory.stat").write_text("anon 400000\ninactive_file 200000\n")


@pytest.mark.parametrize(("limit", "left"), [("1000000", 500_000), ("400000", 0), ("max", None)])
def test_a_container_s_limit_counts(tmp_path, limit, left):
    write_limit(tmp_path, limit)
    assert memory._left_in_container(tmp_path) == left


def test_without_a_container_the_machine_s_memory_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_left_in_container", lambda: None)
    free = memory.free_memory(torch.device("cpu"))
    assert 0 < free <= psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_left_in_container", lambda: 1000)
    assert memory.free_memory(torch.device("cpu")) == 1000
