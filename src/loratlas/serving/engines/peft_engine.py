"""PEFT itself: the definition of what an adapter means."""

from __future__ import annotations

from typing import ClassVar, final

from loratlas.serving.adapter_header import AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason


@final
class Peft(Engine):
    """PEFT, on transformers."""

    name: ClassVar[str] = "peft"
    title: ClassVar[str] = "PEFT"
    version: ClassVar[str] = "0.21"
    reads: ClassVar[tuple[str, ...]] = ("every key",)
    evidence: ClassVar[str] = "engine"

    def form(self, model_type: str) -> Form:
        """As it is."""
        return Form(one_rank=False, experts="peft", keeps_dora=True)

    def rank_for(self, rank: int) -> int:
        """Any."""
        return rank

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """α/r or α/√r, of the patterns."""
        return pair.scale

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """Magnitudes, biases, heads and embeddings are all loaded."""
        return None
