"""MLX-LM: a format of its own, with one rank and one scale, exact names, and DoRA computed by the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from loratlas.serving.adapter_header import AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason, refused

ALIKE = frozenset(
    {
        "cohere", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "granite", "helium", "llama", "mistral",
        "mixtral", "olmo", "olmo2", "olmoe", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
        "smollm3", "stablelm", "starcoder2",
    }
)  # fmt: skip
"""Types whose modules have the same names in MLX-LM as in transformers, experts aside."""


@final
class Mlx(Engine):
    """MLX-LM's adapters."""

    name: ClassVar[str] = "mlx"
    title: ClassVar[str] = "MLX-LM"
    version: ClassVar[str] = "0.32"
    reads: ClassVar[tuple[str, ...]] = ("fine_tune_type", "num_layers", "lora_parameters")
    refuses: ClassVar[tuple[str, ...]] = ("PEFT's format", "unlike ranks", "heads and biases")

    def form(self, model_type: str) -> Form:
        """One rank and one scale; factors transposed."""
        return Form(container="mlx", experts="peft", keeps_dora=True)

    def rank_for(self, rank: int) -> int:
        """Any."""
        return rank

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """None in PEFT's format, which it does not read."""
        return pair.scale

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """PEFT's folder is none of its own."""
        yield refused(
            "adapter_config.json", "MLX-LM reads adapters.safetensors and its own adapter_config.json"
        )

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """Said once, for the whole folder."""
        return None

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Said once, for the whole folder."""
        return None
