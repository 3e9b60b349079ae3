"""The coordinator's end of the workers: start them, give them jobs, hear what they say, stop them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from loratlas import errors
from loratlas.child_process import child_environment, module_command
from loratlas.errors import LoratlasError, RunError


class Process:
    """One worker process and the job it has."""

    def __init__(self, setup: Path, log: Path, threads: int | None) -> None:
        environment = child_environment({"TOKENIZERS_PARALLELISM": "false"})
        if threads is not None:
            environment |= {
                name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            }
        self.log = log
        self.job: Any = None
        self.ready = False
        with log.open("ab") as sink:
            # A session of its own: Ctrl-C in the terminal reaches the coordinator only, which then decides.
            self.process = subprocess.Popen(
                [*module_command("loratlas.study.execution.worker"), str(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment,
                start_new_session=True,
            )
        self._partial = b""

    def give(self, job: Any, message: Mapping[str, Any]) -> None:
        """Hand over a job; a process that died meanwhile is noticed when it is read."""
        self.job = job
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Whole messages that have arrived, and whether the process has closed its end."""
        assert self.process.stdout is not None
        piece = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._partial = (self._partial + piece).split(b"\n")
        return [json.loads(line) for line in lines], not piece

    def stop(self) -> None:
        """End the process and wait for it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Pool:
    """Some workers, all with one setup.

    Use as a context: at its end every process is gone, whatever happened.
    """

    def __init__(self, setup: Path, logs: Path, *, workers: int, threads: int | None) -> None:
        self._setup, self._logs, self._threads = setup, logs, threads
        self._wanted, self._started = workers, 0
        self._selector = selectors.DefaultSelector()
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        for _ in range(self._wanted):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for process in self.processes:
            process.stop()

    def _start(self) -> None:
        self._started += 1
        log = self._logs / f"worker-{self._started}.log"
        process = Process(self._setup, log, self._threads)
        self.processes.append(process)
        self._selector.register(process.process.stdout, selectors.EVENT_READ, process)  # type: ignore[arg-type]

    @property
    def idle(self) -> Sequence[Process]:
        """Processes that wait for a job."""
        return [p for p in self.processes if p.ready and p.job is None and p.process.poll() is None]

    @property
    def busy(self) -> Sequence[Process]:
        """Processes that have one."""
        return [p for p in self.processes if p.job is not None]

    def hear(self, timeout: float = 1.0) -> Iterator[tuple[Process, dict[str, Any]]]:
        """Messages that arrive within ``timeout`` seconds; a process that died says ``{"event": "died"}``."""
        for chosen, _ in self._selector.select(timeout):
            process: Process = chosen.data
            messages, closed = process.read()
            for message in messages:
                process.ready = process.ready or message["event"] == "ready"
                yield process, message
            if closed:
                self._selector.unregister(chosen.fileobj)
                process.stop()
                self.processes.remove(process)
                yield process, {"event": "died", "code": process.process.returncode}

    def replace(self) -> None:
        """Start a process in place of one that died."""
        self._start()


def rebuilt(described: Mapping[str, str]) -> LoratlasError:
    """The error that a worker described."""
    kind = getattr(errors, described["class"], RunError)
    if not (isinstance(kind, type) and issubclass(kind, LoratlasError)):
        kind = RunError
    return kind(given=described["given"], found=described["found"], instead=described["instead"])
