"""What an engine makes of an adapter: the contract that one class per engine fulfils.

An engine's rule is applied to the header of a folder and says, per tensor, whether the engine refuses it, drops it or
scales it by another factor than PEFT does. Nothing is loaded and no engine has to be installed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

from loratlas.serving.adapter_header import AdapterHeader, FactorPair

RIGHT, DIFFERS, REFUSED = "right", "differs", "refused"
DROPPED, RESCALED = "dropped", "rescaled"

CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that took a part out of the base: their factors mean something else on the published one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that an engine does otherwise than PEFT.

    Args:
        tensor: name of a tensor, or of a key of ``adapter_config.json``.
        what: ``refused``, ``dropped`` or ``rescaled``.
        why: the rule, in words.
        factor: what a rescaled one is multiplied by, beside PEFT; 0 for a dropped one, None for a refused one.
    """

    tensor: str
    what: str
    why: str
    factor: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``loratlas check --json`` prints it."""
        return {"tensor": self.tensor, "what": self.what, "why": self.why, "factor": self.factor}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an engine does with one adapter.

    Args:
        engine: its name.
        verdict: ``right`` (as PEFT), ``differs`` (served, but as another adapter) or ``refused``.
        reasons: every tensor or option that is not as in PEFT; empty where it is right.
    """

    engine: str
    verdict: str
    reasons: tuple[Reason, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As ``loratlas check --json`` prints it."""
        return {"verdict": self.verdict, "reasons": [reason.to_json() for reason in self.reasons]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How an adapter has to be written for an engine.

    Args:
        container: ``peft`` (a folder in PEFT's format), ``mlx`` or ``gguf``.
        one_rank: whether all factors have one rank; else each keeps its own.
        groups: words that stand for one fused matrix: where one of them is adapted, all are.
        all_layers: whether a kind of matrix is adapted in every layer or in none.
        experts: how stacks of experts are written: ``peft``, ``each`` (a pair per expert) or "" (not at all).
        keeps_dora: whether the engine computes DoRA itself.
    """

    container: str = "peft"
    one_rank: bool = True
    groups: tuple[tuple[str, ...], ...] = ()
    all_layers: bool = False
    experts: str = ""
    keeps_dora: bool = False


class Engine(ABC):
    """The rules of one engine for LoRA adapters.

    Attributes:
        name: as ``--for`` takes it.
        title: as people write it.
        version: whose sources were read.
        reads: keys of ``adapter_config.json`` that it obeys.
        ignores: keys that it passes over.
        refuses: what it does not load at all, in words.
        ranks: the maximal ranks that it can be started with; empty where any will do.
        evidence: ``engine`` (run in the tests), ``parser`` (its own loading code was run on our folders) or
            ``sources`` (read, and its rule rebuilt in the tests).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    ignores: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[tuple[str, ...]] = ()
    ranks: ClassVar[tuple[int, ...]] = ()
    evidence: ClassVar[str] = "sources"

    @final
    def verdict(self, header: AdapterHeader) -> Verdict:
        """What this engine does with an adapter.

        Args:
            header: as :func:`loratlas.serving.adapter_header.read_adapter_header` returns it.

        Returns:
            Right only where every tensor has PEFT's effect.

        Raises:
            ModelError: the file contradicts itself.
        """
        reasons = tuple(self._reasons(header))
        kinds = {reason.what for reason in reasons}
        word = REFUSED if REFUSED in kinds else DIFFERS if kinds else RIGHT
        return Verdict(engine=self.name, verdict=word, reasons=reasons)

    @abstractmethod
    def form(self, model_type: str) -> Form:
        """How an adapter for a base of this type has to be written."""

    @abstractmethod
    def rank_for(self, rank: int) -> int | None:
        """The smallest rank that the engine serves right and that holds this one; None where there is none."""

    @abstractmethod
    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """The scale that the engine puts in front of B A."""

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """What the config as a whole leads to."""
        yield from ()

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Why one pair of factors is refused or dropped; None where it is loaded."""
        return None

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """What becomes of a tensor that is no factor; dropped unless the engine says otherwise."""
        return Reason(tensor=tensor, what=DROPPED, why=f"{self.title} loads factors alone", factor=0.0)

    def _reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        yield from self.whole_reasons(header)
        for pair in header.pairs:
            reason = self.pair_reason(header, pair)
            if reason is not None:
                yield reason
                continue
            scale = self.scale(header, pair)
            factor = scale / pair.scale if pair.scale else math.inf if scale else 1.0
            if not math.isclose(factor, 1.0, rel_tol=1e-6):
                yield Reason(
                    tensor=pair.b,
                    what=RESCALED,
                    why=f"{self.title} scales it by {scale:g}, PEFT by {pair.scale:g}",
                    factor=factor,
                )
        for tensor in header.others:
            reason = self.other_reason(header, tensor)
            if reason is not None:
                yield reason


def refused(tensor: str, why: str) -> Reason:
    """A tensor or an option for which the engine loads nothing."""
    return Reason(tensor=tensor, what=REFUSED, why=why)


def dropped(tensor: str, why: str) -> Reason:
    """A tensor that the engine passes over in silence."""
    return Reason(tensor=tensor, what=DROPPED, why=why, factor=0.0)


def changed_base(header: AdapterHeader) -> str | None:
    """The initialisation that took a part out of the base, if one did."""
    init = header.config.get("init_lora_weights")
    return init if isinstance(init, str) and init.lower().startswith(CHANGED_BASE) else None


def on_published_base(header: AdapterHeader, title: str) -> Iterator[Reason]:
    """What an engine that does not look at the initialisation does to an adapter that changed its base."""
    if init := changed_base(header):
        yield Reason(
            tensor="init_lora_weights",
            what=RESCALED,
            why=f"{init} took its first factors out of the base; {title} adds the trained ones to the published base",
            factor=None,
        )
