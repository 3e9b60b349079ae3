"""What holds while a run lasts and is put back afterwards: modes, random streams, the meaning of Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from loratlas.modeling import modes_kept, unwrap

DROPOUT_STREAM = 3
"""Word that follows the seed. Order and subset use 1 (`loratlas.data.batches.batching`), initialisation is `attach`'s
own."""


@contextmanager
def training_mode(model: Any, *, checkpointing: bool) -> Iterator[None]:
    """Training mode, with or without recomputation; every module's mode is put back.

    Recomputation does not re-enter the graph (``use_reentrant=False``), so that it works although no input of the
    first layer requires a gradient.
    """
    inner = unwrap(model)
    before = any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())
    if checkpointing and not before:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    with modes_kept(model):
        model.train()
        try:
            yield
        finally:
            if checkpointing and not before:
                inner.gradient_checkpointing_disable()


def step_seed(seed: int, step: int) -> int:
    """What starts the dropout masks of a step (from 0) of the run with this seed."""
    words = np.random.SeedSequence([seed, DROPOUT_STREAM, step]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


@contextmanager
def dropout_stream(seed: int) -> Iterator[Callable[[int], None]]:
    """Random numbers of their own for dropout; the caller's streams continue afterwards as if nothing had been drawn.

    Yields:
        A function that starts the stream of a step. Masks depend on (seed, step) and on nothing else, so that a
        resumed run draws what the uninterrupted one draws.
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):

        def begin(step: int) -> None:
            torch.manual_seed(step_seed(seed, step))

        yield begin


FINISHING = "finishing this step…"


class Stop:
    """Whether somebody asked for an end.

    Attributes:
        requested: whether.
        by: what asked: ``"Ctrl-C"`` or ``"SIGTERM"``.
    """

    requested = False
    by = "Ctrl-C"

    def check(self) -> None:
        """Raises:
        KeyboardInterrupt: an end was asked for.
        """
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def interruptible(say: str = FINISHING) -> Iterator[Stop]:
    """Within this context the first Ctrl-C, or SIGTERM as schedulers send it, only asks for an end, so that no
    update is left half done; standard error says so at once.

    The second one interrupts at once. Where another handler has been installed, or in a thread that cannot install
    one, a signal keeps its meaning.

    Args:
        say: what standard error says.
    """
    stop = Stop()
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
    defaults = (signal.default_int_handler, signal.SIG_DFL)
    main = threading.current_thread() is threading.main_thread()
    mine = [number for number in names if main and signal.getsignal(number) in defaults]

    def handle(number: int, frame: Any) -> None:
        if stop.requested:
            signal.default_int_handler(number, frame)
        stop.requested, stop.by = True, names[signal.Signals(number)]
        with suppress(OSError):
            # Not through a buffer, which the interrupted code may be writing to.
            os.write(2, f"\n{say}\n".encode())

    before = {number: signal.signal(number, handle) for number in mine}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
