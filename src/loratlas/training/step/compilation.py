"""Whether a run's layers go through torch.compile, and when: by evidence of this machine, never on faith.

Compiling takes from seconds to minutes and makes steps faster, or not: on a processor whose matrix products dominate,
there is little to fuse. With ``auto`` a run begins as it is, and its first steps say what a step takes. Then

    compile if  steps left · seconds of a step · (1 − ratio)  >  seconds of compiling

where ratio (compiled step over eager step) and seconds are what this machine remembers of the same base in the same
type. Where it remembers nothing, `GUESS` stands in, and compiling is tried in runs only that are so long that a trial
which turns out badly is a small part of them. After some compiled steps the two are compared: what is not faster is
switched off again, and either way the outcome is remembered.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loratlas.errors import SettingsError
from loratlas.modeling import device_of, unwrap
from loratlas.training.step.frozen_prefix import layers_of
from loratlas.training.step.measurement_cache import MeasurementCache

WATCHED = 10
"""Steps that a pace is judged by; the first `WARM` of them are left out."""

WARM = 4

FASTER = 0.97
"""A compiled step must take at most this share of an eager one to stay."""

CAUTION = 5.0
"""Without evidence, how many times its cost a trial must promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileMeasurement:
    """What compiling did.

    Args:
        ratio: seconds per token of compiled steps over those of eager steps.
        seconds: that compiling took.
    """

    ratio: float
    seconds: float


GUESS = CompileMeasurement(ratio=0.9, seconds=30.0)
"""Of a base that this machine has not compiled yet. Measured on one core, llama-mini: 0.88 and 19 s."""

BACKEND: Any = "inductor"
"""Of torch.compile."""


class Compilation:
    """Watches the steps of one run and decides.

    Args:
        model: of the run.
        mode: ``"auto"``, ``"on"`` or ``"off"``.
        steps: of the whole run.
        dtype: of the base.
        dropout: whether masks are drawn, which compiled code draws in another order.
        folder: where evidence is kept; None for the user's cache.

    Attributes:
        on: whether layers are compiled now.
        reason: a sentence for the report.
    """

    def __init__(
        self, model: Any, mode: str, *, steps: int, dtype: str, dropout: bool, folder: Path | None = None
    ) -> None:
        self.on, self.reason = False, "not compiled: too few steps to judge by"
        self._mode, self._steps, self._dropout, self._folder = mode, steps, dropout, folder
        self._model = model
        self._key = _key(model, dtype)
        self._eager: list[tuple[float, int]] = []  # (seconds, tokens) of steps
        self._compiled: list[tuple[float, int]] = []
        self._settled = mode != "auto"
        if mode == "off":
            self.reason = "not compiled, as asked"

    @contextmanager
    def run(self) -> Iterator[Compilation]:
        """Around all steps; afterwards the model is as it was."""
        if self._mode == "on":
            switch_on(self._model)
            self.on, self.reason = True, "compiled, as asked"
        try:
            with warnings.catch_warnings():
                # Dynamo looks at every tensor's gradient and then warns that it did.
                warnings.filterwarnings(
                    "ignore", message="The .grad attribute of a Tensor that is not a leaf"
                )
                yield self
        finally:
            switch_off(self._model)

    def stepped(self, done: int, seconds: float, tokens: int) -> None:
        """Told after every step: how many are done, what this one took, its tokens."""
        if self._settled:
            return
        taken = self._compiled if self.on else self._eager
        taken.append((seconds, tokens))
        if len(taken) < WATCHED:
            return
        if self.on:
            self._judge()
        else:
            self._decide(self._steps - done)

    def failed(self, error: RuntimeError) -> None:
        """A step raised: if compiling is what failed, go on without.

        Raises:
            SettingsError: compiling was asked for.
            RuntimeError: ``error`` itself, where it is about something else.
        """
        if not self.on or not is_failure(error):
            raise error
        words = f"torch.compile failed ({type(error).__name__})"
        if self._mode == "on":
            raise SettingsError(
                given="--compile on", found=f"{words}: {str(error)[:200]}", instead="--compile auto"
            ) from error
        self._off(f"not compiled: {words}")
        self._remember(CompileMeasurement(ratio=1.0, seconds=GUESS.seconds))

    def _decide(self, left: int) -> None:
        self._settled = True
        if self._dropout:
            self.reason = "not compiled: compiled code would draw other dropout masks"
            return
        measured = MeasurementCache("compiled", self._device(), self._folder).values.get(self._key)
        evidence = CompileMeasurement(**measured) if measured else GUESS
        if evidence.ratio > FASTER:
            self.reason = (
                f"not compiled: compiled steps took {evidence.ratio:.2f} of the time of others before"
            )
            return
        step = _pace(self._eager) * _mean_tokens(self._eager)
        saved = left * step * (1 - evidence.ratio)
        known = "as measured before" if measured else "as a guess"
        words = (
            f"{left:,} steps of {step:.2g} s are left; compiling, {known}, takes {evidence.seconds:.0f} s "
        )
        words += f"and saves {saved:.0f} s"
        if saved <= evidence.seconds * (1.0 if measured else CAUTION):
            self.reason = f"not compiled: {words}"
            return
        switch_on(self._model)
        self.on, self.reason, self._settled = True, f"compiled: {words}", False

    def _judge(self) -> None:
        self._settled = True
        before, after = _pace(self._eager), _pace(self._compiled)
        cost = sum(max(0.0, seconds - after * tokens) for seconds, tokens in self._compiled[:WARM])
        evidence = CompileMeasurement(ratio=after / before, seconds=cost)
        self._remember(evidence)
        words = f"compiled steps took {evidence.ratio:.2f} of the time of others"
        if evidence.ratio > FASTER:
            self._off(f"compiled and switched off again: {words}")
        else:
            self.reason = f"compiled: {words}; compiling took {cost:.0f} s"

    def _off(self, reason: str) -> None:
        switch_off(self._model)
        self.on, self.reason, self._settled = False, reason, True

    def _remember(self, evidence: CompileMeasurement) -> None:
        kept = MeasurementCache("compiled", self._device(), self._folder)
        kept.values[self._key] = {"ratio": evidence.ratio, "seconds": evidence.seconds}
        kept.save()

    def _device(self) -> Any:
        return device_of(self._model)


def _key(model: Any, dtype: str) -> str:
    inner = unwrap(model)
    text = inner.config.get_text_config()
    sizes = [getattr(text, name, "?") for name in ("num_hidden_layers", "hidden_size")]
    return f"{type(inner).__name__}, {sizes[0]} × {sizes[1]}, {dtype}"


def _pace(steps: list[tuple[float, int]]) -> float:
    """Seconds per token, the first steps left out."""
    return median(seconds / max(1, tokens) for seconds, tokens in steps[WARM:])


def _mean_tokens(steps: list[tuple[float, int]]) -> float:
    return sum(tokens for _, tokens in steps) / len(steps)


def switch_on(model: Any) -> None:
    """Compile the layers when they are next called: one code for all that are alike, for any number of tokens.

    Attention of packed batches stays outside: its blocks differ from batch to batch, and each would be compiled anew.
    """
    for layer in _layers(model):
        layer.compile(dynamic=True, backend=BACKEND)


def switch_off(model: Any) -> None:
    """Call the layers as they are again."""
    for layer in _layers(model):
        layer._compiled_call_impl = None


def _layers(model: Any) -> list[Any]:
    """The layers that a model repeats; all of it where there is no list of them."""
    layers = layers_of(model)
    return list(layers.modules) if layers is not None else [unwrap(model).base_model]


def is_failure(error: RuntimeError) -> bool:
    """Whether an exception says that compiling failed, and nothing else."""
    import torch._dynamo.exc

    return isinstance(error, torch._dynamo.exc.TorchDynamoException)
