"""What was measured on this machine, kept in the user's cache so that it is measured once."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from loratlas.errors import StorageError
from loratlas.files import cache_folder, read_json, write_json

VERSION = 1


class MeasurementCache:
    """A table of measurements: key → plain data.

    It holds for one processor, torch version, device and number of threads, and lies in one file for each. A file that
    is missing, broken or about something else is an empty table; one that cannot be written costs the next process the
    same measurements and nothing else.

    Args:
        name: of the table.
        device: what was measured.
        folder: where it is kept; None for `cache_folder`.

    Example:
        ``table = MeasurementCache("speed", device); table.values["key"] = 1.5; table.save()``
    """

    def __init__(self, name: str, device: Any, folder: Path | None = None) -> None:
        self._machine = _machine(device)
        digest = hashlib.sha256(json.dumps(self._machine).encode()).hexdigest()[:16]
        self.file = (folder or cache_folder()) / f"{name}-{digest}.json"
        self.values: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            kept = read_json(self.file)
        except (OSError, ValueError):
            return {}
        current = (
            isinstance(kept, dict)
            and kept.get("version") == VERSION
            and kept.get("machine") == self._machine
            and isinstance(kept.get("values"), dict)
        )
        return kept["values"] if current else {}

    def save(self) -> None:
        """Write the table, whole or not at all; what other processes wrote meanwhile stays."""
        from filelock import FileLock

        with suppress(OSError, StorageError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock"), timeout=10):
                merged = self._read() | self.values
                write_json(self.file, {"version": VERSION, "machine": self._machine, "values": merged})


def _machine(device: Any) -> dict[str, Any]:
    import psutil
    import torch

    if device.type == "cuda":
        features: Any = torch.cuda.get_device_name(device)
    else:
        features = sorted(f"{name}={value}" for name, value in torch.cpu.get_capabilities().items())
    return {
        "device": features,
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
