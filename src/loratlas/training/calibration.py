"""From a rehearsal to seconds: every distinct operation of a step is timed once on this machine and remembered.

    seconds of a step = Σ over operations n_i · t_i + (number of all operations) · overhead

A transformer repeats its layers, so that a step of thousands of operations has some 150 distinct ones; timing them
takes about as long as a few steps, needs no weights, and the next placement only adds what is new in it. The overhead
(Python, autograd, dispatch) is what a step of a tiny model takes beyond its operations, per operation.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from loratlas.training.operations import Call
    from loratlas.training.rehearsal import Rehearsal

VERSION = 1

ENOUGH = 0.02
"""Seconds that an operation is repeated for, at most `MOST` times and at least twice; a slow one runs once more."""

MOST = 9

APART = 2**25
"""Bytes that the arguments of repetitions spread over, so that a cache does not hold what it would not in a step."""


def cache_folder() -> Path:
    """Where measurements of this machine are kept: ``LORATLAS_CACHE``, or loratlas' folder in the user's cache."""
    asked = os.environ.get("LORATLAS_CACHE")
    if asked:
        return Path(asked)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "loratlas"


class Calibration:
    """What is known about this machine's speed.

    Times hold for one processor, torch version, device and number of threads, and are kept in one file for each.

    Args:
        folder: where they are kept; None for the user's cache.
        clock: seconds; another one only for measuring on a busy machine.

    Example:
        ``known = Calibration(); known.learn([rehearsal]); known.seconds(rehearsal)``
    """

    def __init__(self, folder: Path | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = clock
        facts = _facts(self.device)
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.file = (folder or cache_folder()) / f"speed-{digest}.json"
        self._facts, self._seconds, self._overhead = facts, dict[str, float](), None
        self._read()

    def seconds(self, rehearsal: Rehearsal) -> float | None:
        """Seconds of one step; None where an operation has not been timed."""
        if self._overhead is None or self.missing([rehearsal]):
            return None
        return self._operations(rehearsal) + self._overhead * (_count(rehearsal))

    def missing(self, rehearsals: Iterable[Rehearsal]) -> list[Call]:
        """Operations of these steps that have not been timed, each once."""
        found = Counter(call for rehearsal in rehearsals for call in rehearsal.calls)
        return [call for call in found if call.key not in self._seconds]

    def learn(self, rehearsals: Sequence[Rehearsal]) -> int:
        """Time what is missing, and keep it.

        Returns:
            How many operations were timed.
        """
        from loratlas.training.memory import kept_pages

        with kept_pages():
            overhead = self._overhead is None
            tiny = [_tiny_rehearsal()] if overhead else []
            missing = self.missing([*tiny, *rehearsals])
            for call in missing:
                self._seconds[call.key] = _time(call, self.device, self.clock)
            if overhead:
                whole = _tiny_step(self.clock, self.device)
                self._overhead = max(0.0, (whole - self._operations(tiny[0])) / _count(tiny[0]))
        if missing:
            self._write()
        return len(missing)

    def _operations(self, rehearsal: Rehearsal) -> float:
        return sum(times * self._seconds[call.key] for call, times in rehearsal.calls.items())

    def _read(self) -> None:
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # nothing measured yet, or nothing that can be read: it is measured again
        if kept.get("version") == VERSION and kept.get("machine") == self._facts:
            self._seconds, self._overhead = kept["seconds"], kept["overhead"]

    def _write(self) -> None:
        kept = {
            "version": VERSION,
            "machine": self._facts,
            "overhead": self._overhead,
            "seconds": self._seconds,
        }
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.file.parent, delete=False, encoding="utf-8"
            ) as new:
                json.dump(kept, new)
            Path(new.name).replace(self.file)
        except OSError:
            return  # a cache that cannot be written costs the next process the same seconds, and nothing else


def _count(rehearsal: Rehearsal) -> int:
    return sum(rehearsal.calls.values()) + rehearsal.free


def _facts(device: torch.device) -> dict[str, Any]:
    import platform

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()
    return {
        "device": name if isinstance(name, str) else sorted(f"{key}={value}" for key, value in name.items()),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _time(call: Call, device: torch.device, clock: Callable[[], float]) -> float:
    """Median seconds of one operation, after a first time that does not count."""
    import torch

    copies = max(1, min(MOST, APART // max(1, call.bytes)))
    sets = [call.arguments(device) for _ in range(copies)]

    def once(turn: int) -> float:
        args, kwargs = sets[turn % copies]
        begun = clock()
        call.func(*args, **kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - begun

    with torch.no_grad():
        once(0)
        taken: list[float] = []
        while len(taken) < MOST and (len(taken) < 2 or sum(taken) < ENOUGH):
            taken.append(once(1 + len(taken)))
    return median(taken)


def _tiny() -> tuple[Any, Any, Any]:
    """Config, rows of the plan and rows of a step whose operations take next to no time themselves."""
    from transformers import LlamaConfig

    from loratlas.adapters.rows import Row
    from loratlas.anatomy.read import read
    from loratlas.training.rehearsal import even_rows

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
    config = LlamaConfig(**sizes, vocab_size=64)
    rows = [
        Row(site=site, rank=4, alpha=8.0) for site in read(config).adaptable if site.family in ("attn", "ffn")
    ]
    return config, rows, even_rows(2, 8)


def _tiny_rehearsal() -> Rehearsal:
    from loratlas.training.rehearsal import rehearse
    from loratlas.training.settings import Settings

    config, rows, examples = _tiny()
    return rehearse(config, rows, examples, Settings(dtype="float32"), packed=True)


def _tiny_step(clock: Callable[[], float], device: torch.device, steps: int = 20) -> float:
    """Seconds of a step of the tiny model, as a run takes it."""
    import torch
    from transformers import AutoModelForCausalLM

    from loratlas.adapters.attach import attach
    from loratlas.training.loop import fit
    from loratlas.training.rehearsal import as_step
    from loratlas.training.settings import Settings

    config, rows, examples = _tiny()
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False).to(device)
    laps = [clock()]
    settings = Settings(steps=steps, batch_size=len(examples), dtype="float32")
    fit(
        attach(rows, model),
        as_step(examples),
        settings,
        packed=True,
        on_step=lambda _event: laps.append(clock()),
    )
    return median(after - before for before, after in pairwise(laps[4:]))
