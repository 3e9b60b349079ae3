"""Every signal there is: name → class, what it measures, its unit, whether it trains.

Help texts, the lists in errors and the contract tests read this table; a new signal is one file and one line here.
The trained ones have no class of this room: `loratlas.scan.trial_training` measures them, on columns declared here.

>>> untrained(), trained()
(('gradient', 'activation', 'alignment', 'attention', 'spectrum'), ('probe', 'probe_yield'))
>>> signal_of("gradient_energy"), signal_of("probe_descent")
('gradient', 'probe_yield')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from loratlas.errors import SettingsError
from loratlas.signals.column import Column

if TYPE_CHECKING:
    from loratlas.signals.base import Signal

ADAM = "what Adam itself did in the trial"

TRIAL_COLUMNS = {
    name: Column(name=name, unit=unit, pays="high", adam=ADAM)
    for name, unit in {
        "probe": "nats per token given back without it",
        "probe_energy": "squared Frobenius norm of the learned change",
        "probe_descent": "nats per token that the loss fell by its steps",
        "probe_yield": "norm of the learned change times root of nats per token",
    }.items()
}
"""Columns of trial training; all but the first need no removals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One signal.

    Args:
        module, kind: where its class stands; empty for one that trains.
        measures: what it measures, in a phrase.
        unit: of its first column, in words.
        trains: whether adapters are trained for it.
    """

    module: str = ""
    kind: str = ""
    measures: str
    unit: str
    trains: bool = False

    def load(self) -> type[Signal]:
        """The class; importing it imports torch."""
        return getattr(import_module(self.module), self.kind)


def _entry(kind: str, measures: str, unit: str) -> Entry:
    return Entry(module=f"loratlas.signals.{kind.lower()}", kind=kind, measures=measures, unit=unit)


SIGNALS: dict[str, Entry] = {
    "gradient": _entry("Gradient", "fall of the loss in a first step of Adam", "nats per token and step"),
    "activation": _entry("Activation", "variance of the input in its first directions", "share"),
    "alignment": _entry("Alignment", "answer of the matrix to its input, over that to noise", "ratio"),
    "attention": _entry("Attention", "movement of attention patterns", "probability per step"),
    "spectrum": _entry("Spectrum", "condition of the weights alone", "decades"),
    "probe": Entry(
        measures="loss given back when a trained adapter is removed", unit="nats per token", trains=True
    ),
    "probe_yield": Entry(
        measures="size of a short trial's changes, and what the loss gained by them",
        unit="norm times root of nats",
        trains=True,
    ),
}


def untrained() -> tuple[str, ...]:
    """Signals that share the passes of one scan."""
    return tuple(name for name, entry in SIGNALS.items() if not entry.trains)


def trained() -> tuple[str, ...]:
    """Signals that train."""
    return tuple(name for name, entry in SIGNALS.items() if entry.trains)


def columns_of(name: str, *, fisher: bool = False) -> tuple[str, ...]:
    """Columns of a signal; ``fisher`` adds the one that `gradient` has on request."""
    if SIGNALS[name].trains:
        return tuple(column for column in TRIAL_COLUMNS if name == "probe" or column != "probe")
    extra = ("fisher",) if fisher and name == "gradient" else ()
    return (*(column.name for column in SIGNALS[name].load().columns), *extra)


def signal_of(column: str) -> str:
    """The signal that has this column; of the two that train, the one that removes nothing where both do.

    Raises:
        SettingsError: no signal has it.
    """
    owners: dict[str, str] = {}
    for name in SIGNALS:
        owners |= dict.fromkeys(columns_of(name, fisher=True), name)
    if column not in owners:
        raise SettingsError(
            given=f"--by {column}", found="no such score", instead=f"one of {', '.join(owners)}"
        )
    return owners[column]


def check_signals(names: Sequence[str]) -> None:
    """Refuse names that are no signals, or none at all.

    Raises:
        SettingsError: so.
    """
    unknown = [name for name in names if name not in SIGNALS]
    if unknown or not names:
        raise SettingsError(
            given=f"the signal {unknown[0]!r}" if unknown else "no signal",
            found="no such signal" if unknown else "nothing to measure",
            instead=f"among {', '.join(SIGNALS)}",
        )


def make(names: Sequence[str], *, seed: int, fisher: bool) -> list[Signal]:
    """The signals among these that do not train."""
    check_signals(names)
    options = {"gradient": {"fisher": fisher}}
    kinds = {name: SIGNALS[name].load() for name in dict.fromkeys(names) if not SIGNALS[name].trains}
    return [kind(seed=seed, **options.get(name, {})) for name, kind in kinds.items()]
