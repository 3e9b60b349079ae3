"""What holds while a run lasts and is put back afterwards: modes and random streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
