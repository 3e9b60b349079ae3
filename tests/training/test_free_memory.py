"""Free memory: within the limits of containers, and without counting what the kernel gives back."""

from __future__ import annotations

import psutil
import pytest

from loratlas.training.step import memory
from loratlas.training.step.memory import free_bytes

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A control group inside another, as files; returns what writes one of them."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/outer/inner\n")

    def write(path: str, limit: object, used: int, cache: int) -> None:
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 7\n")

    return write


def test_cache_of_files_is_free(groups):
    """A container that has read a large base: nearly all of its limit is page cache, and nothing is in want."""
    groups("outer/inner", GIB // 64, GIB // 64 - 4096, GIB // 128)
    assert free_bytes("cpu") == GIB // 128 + 4096


def test_the_tightest_group_around_a_process_counts(groups):
    groups("outer/inner", "max", GIB, 0)
    groups("outer", GIB // 32, GIB // 64, 0)
    assert free_bytes("cpu") == GIB // 64


def test_without_limits_it_is_the_machines(groups):
    assert free_bytes("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    groups("outer/inner", GIB // 64, GIB // 32, 0)  # a limit that was lowered
    assert free_bytes("cpu") == 0


def test_files_that_cannot_be_read_set_no_limit(groups, tmp_path):
    groups("outer/inner", "three", 1, 1)
    assert free_bytes("cpu") > 0
    (tmp_path / "membership").write_text("1:memory:/outer\n")
    assert free_bytes("cpu") > 0
