"""What a figure was measured on, with what, and by which command."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loratlas.study.execution import machine_record

FLAGS = ("amx", "avx", "f16c", "fma", "sve", "bf16", "asimd")
"""How the names of instructions begin that matrix products and bfloat16 depend on."""

BUSY = 0.3
"""Load average per core before the start, above which a figure is marked: others were at work too."""


def machine() -> dict[str, Any]:
    """Processor, its instructions, cores, device; no names of anybody."""
    return {**machine_record.machine(), "flags": _flags()}


def _flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    named = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return sorted({word for word in named.partition(":")[2].split() if word.startswith(FLAGS)})


def versions() -> dict[str, str]:
    """Of everything that takes part."""
    return {**machine_record.versions(), **{name: version(name) for name in ("trl", "accelerate")}}


def revision() -> str | None:
    """The code's git revision."""
    return machine_record.revision()


def load() -> float:
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def busy(before: float) -> bool:
    """Whether others were at work when a measurement began."""
    return before > BUSY * (os.cpu_count() or 1)
