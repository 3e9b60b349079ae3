"""The largest memory of a run, from the allocator's own count and never from the process's resident size.

On a GPU the allocator keeps a high-water mark. On a CPU torch keeps none, so allocations and frees are recorded
during two steps, the first and the one with the most tokens, and added up in order; what lives through all steps
(weights, masters, moments) is counted beside them. Recording costs about a third of a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class PeakMeter:
    """Watches the steps of one run.

    Args:
        device: where the model lies.
        tokens: of every step to come, padding excluded.
        first: number of the first step to come.
    """

    def __init__(self, device: Any, tokens: np.ndarray, *, first: int) -> None:
        import torch

        self._device = torch.device(device)
        self._watched = {first, first + int(np.argmax(tokens))} if len(tokens) else set()
        self._step = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def measures(self, step: int) -> bool:
        """Whether this step is one to be recorded."""
        return self._device.type != "cuda" and step in self._watched

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Measure what happens within, if this step is one to be measured."""
        if not self.measures(step):
            yield
            return
        with allocations() as changes:
            yield
        level = np.cumsum(changes) if changes else np.zeros(1)
        self._step = max(self._step, int(level.max()))

    def bytes(self, tensors: Iterable[torch.Tensor]) -> int | None:
        """The peak; ``tensors`` are those that live through all steps. None if no step was measured."""
        import torch

        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if not self._step:
            return None
        return self._step + resident_bytes(tensors)


def resident_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once however many tensors share it."""
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def free_bytes(device: torch.device | str) -> int:
    """Memory that can still be taken on a device; on a CPU within the limits that containers set."""
    import psutil
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [
        psutil.virtual_memory().available,
        *(free for group in _groups() if (free := _left(group)) is not None),
    ]
    return max(0, min(limits))


CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def _groups() -> list[Path]:
    """This process's control group and those around it, of version 2; the mount itself where a container hides them."""
    try:
        lines = MEMBERSHIP.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    path = CGROUPS / own.lstrip("/")
    return [group for group in (path, *path.parents) if group == CGROUPS or CGROUPS in group.parents]


def _left(group: Path) -> int | None:
    """What a control group may still take; None where it sets no limit.

    Its count of used memory holds the cache of files that were read, which the kernel gives back when it is asked:
    that is what is inactive of it.
    """
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="ascii"))
        rows = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return int(limit) - used + next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
    except (OSError, ValueError, IndexError):
        return None


TRIM = -1  # glibc's names of what `mallopt` sets (malloc.h)
MAP = -3

MAPPED = 2**25
"""Larger blocks come from the kernel one by one; glibc takes no higher limit. Its own rule ends here as well."""

KEPT = 2**30
"""Free memory at the end of the heap that stays with the process, in bytes."""


@contextmanager
def kept_pages() -> Iterator[bool]:
    """Within this context freed memory stays with the process, for the next step needs it again.

    Otherwise glibc hands the larger activations back to the kernel whenever they end the heap, and takes them anew,
    zeroed page by page, some 10,000 times a step: a tenth of a small model's step. Afterwards what is free goes back.

    Yields:
        Whether the allocator takes such settings (glibc); elsewhere nothing is changed.
    """
    import ctypes
    import platform

    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None:
        yield False
        return
    taken = bool(libc.mallopt(MAP, MAPPED)) and bool(libc.mallopt(TRIM, KEPT))
    try:
        yield taken
    finally:
        libc.mallopt(TRIM, 2 * MAPPED)
        libc.malloc_trim(0)


@contextmanager
def allocations() -> Iterator[list[int]]:
    """Collects, in order, every allocation (> 0) and free (< 0) on the CPU, in bytes.

    torch's older profiler does it without the seconds that the newer one takes to start.
    """
    from torch._C import _autograd, _profiler  # pyright: ignore[reportAttributeAccessIssue]

    changes: list[int] = []
    options = _profiler._ExperimentalConfig()
    config = _profiler.ProfilerConfig(_profiler.ProfilerState.CPU, False, True, False, False, False, options)
    if _autograd._profiler_enabled():
        # Somebody else is profiling; two profilers cannot run at a time.
        yield changes
        return
    # torch remarks on blocks that are older than the recording; that they are left out is what is wanted here.
    with without_lines(b"allocated before the profiling started"):
        _autograd._enable_profiler_legacy(config)
        try:
            yield changes
        finally:
            for thread in _autograd._disable_profiler_legacy():
                changes += [event.cpu_memory_usage() for event in thread if event.kind() == "memory_alloc"]


@contextmanager
def without_lines(words: bytes) -> Iterator[None]:
    """Hold back what is written to standard error; afterwards pass on all but the lines with ``words``."""
    import tempfile

    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held:
                if words not in line:
                    os.write(2, line)
