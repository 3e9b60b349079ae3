"""llama.cpp and Ollama: an adapter is a GGUF file; the scale is one alpha over each tensor's own rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, final

from loratlas.serving.adapter_header import AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason, on_published_base, refused

OWN_RUNNER = frozenset(
    {
        "gemma3",
        "gemma3_text",
        "gemma3n",
        "gemma4",
        "gemma4_text",
        "gpt_oss",
        "llama4",
        "mistral3",
        "qwen2_5_vl",
    }
)
"""Types that Ollama runs on an engine of its own, which has no adapters."""


class GgufAdapters(Engine):
    """What the two share: the rule of ``convert_lora_to_gguf.py`` and of the loader."""

    reads: ClassVar[tuple[str, ...]] = ("lora_alpha",)
    ignores: ClassVar[tuple[str, ...]] = (
        "r",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
    )
    refuses: ClassVar[tuple[str, ...]] = (
        "tensors that are no factors (magnitudes, heads, biases)",
        "a head that is the embedding's matrix",
    )

    def form(self, model_type: str) -> Form:
        """Each factor keeps its rank: the scale divides by it."""
        return Form(container="gguf", one_rank=False, experts="peft")

    def rank_for(self, rank: int) -> int:
        """Any."""
        return rank

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """α of the config over the tensor's own rank; 1 where α is 0."""
        return header.alpha / pair.rank if header.alpha else 1.0

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """What the converter does not look at."""
        yield from on_published_base(header, self.title)

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Tied ends, and experts as PEFT names them."""
        tied = header.base is not None and header.base.tied
        if tied and (pair.leaf == "lm_head" or pair.kind == "embedding"):
            return refused(
                pair.a, "embedding and head are one tensor in the GGUF, and one of the two is adapted"
            )
        if pair.kind == "experts":
            return refused(pair.a, "experts in one tensor, which convert_lora_to_gguf.py does not split")
        return None

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """The converter stops at whatever is no factor, norms aside."""
        if ".base_layer.weight" in tensor or "_layernorm" in tensor or ".norm" in tensor:
            return None
        return refused(tensor, "convert_lora_to_gguf.py stops at a tensor that is no factor")


@final
class LlamaCpp(GgufAdapters):
    """llama.cpp's ``--lora``."""

    name: ClassVar[str] = "llama.cpp"
    title: ClassVar[str] = "llama.cpp"
    version: ClassVar[str] = "b11549"
    evidence: ClassVar[str] = "engine"


@final
class Ollama(GgufAdapters):
    """Ollama's ``ADAPTER``."""

    name: ClassVar[str] = "ollama"
    title: ClassVar[str] = "Ollama"
    version: ClassVar[str] = "0.22"

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """The alpha, and types that its own engine runs."""
        yield from super().whole_reasons(header)
        alpha: Any = header.config.get("lora_alpha", 8)
        if type(alpha) is not int or alpha < 0:
            yield refused("lora_alpha", f"{alpha!r}; Ollama reads it as an unsigned whole number")
        if header.model_type in OWN_RUNNER:
            yield refused(
                "base_model_name_or_path", f"Ollama runs {header.model_type} on an engine without adapters"
            )
