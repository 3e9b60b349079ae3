"""TensorRT-LLM: the scale follows each tensor's own rank, q, k and v go together, a short list of names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

from loratlas.serving.adapter_header import LINEAR, AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason, dropped, on_published_base, refused
from loratlas.serving.engines.vllm_engine import rank_scale

ATTENTION = ("q_proj", "k_proj", "v_proj")
LARGEST = 64
"""``max_lora_rank`` unless it is set."""

_LEAVES = frozenset(
    {*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"}
)


@final
class TensorRtLlm(Engine):
    """NVIDIA's TensorRT-LLM, PyTorch backend."""

    name: ClassVar[str] = "tensorrt-llm"
    title: ClassVar[str] = "TensorRT-LLM"
    version: ClassVar[str] = "1.2"
    reads: ClassVar[tuple[str, ...]] = ("r", "lora_alpha", "use_rslora")
    ignores: ClassVar[tuple[str, ...]] = (
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "bias",
        "init_lora_weights",
    )
    refuses: ClassVar[tuple[str, ...]] = (
        "names other than q, k, v, o, gate, up, down and gate_up",
        "experts in one tensor",
        "ranks above 64, unless max_lora_rank is set",
    )

    def form(self, model_type: str) -> Form:
        """Each factor keeps its rank: the scale divides by it."""
        return Form(one_rank=False, groups=(ATTENTION,), experts="each" if model_type == "mixtral" else "")

    def rank_for(self, rank: int) -> int | None:
        """Up to the default limit."""
        return rank if rank <= LARGEST else None

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """α of the config over the tensor's own rank."""
        return rank_scale(header.alpha, pair.rank, rslora=header.rslora)

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """DoRA, changed bases, q without k and v."""
        if header.config.get("use_dora"):
            yield refused("use_dora", "TensorRT-LLM wants magnitudes that were divided by the merged norms")
        yield from on_published_base(header, self.title)
        largest = max((pair.rank for pair in header.pairs), default=0)
        if largest > LARGEST:
            yield refused("r", f"rank {largest}; max_lora_rank is {LARGEST} unless it is set")
        layers: dict[str, set[str]] = {}
        for pair in header.pairs:
            if pair.leaf in ATTENTION:
                layers.setdefault(pair.module.rpartition(".")[0], set()).add(pair.leaf)
        for parent, leaves in layers.items():
            if len(leaves) < len(ATTENTION):
                missing = ", ".join(leaf for leaf in ATTENTION if leaf not in leaves)
                yield refused(
                    f"{parent}.{min(leaves)}",
                    f"q, k and v have adapters together or not at all; {missing} has none",
                )

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Names that it maps to its own."""
        if pair.leaf in ("lm_head", "embed_tokens"):
            return dropped(pair.a, "TensorRT-LLM passes factors of embedding and head over")
        if pair.kind != LINEAR or pair.leaf not in _LEAVES or pair.layer is None:
            return refused(pair.a, f"TensorRT-LLM has no module called {pair.leaf}")
        experts = ".experts." in pair.module
        if experts != (pair.leaf in ("w1", "w2", "w3")):
            return refused(pair.a, "experts are read by the names w1, w2, w3 alone")
        return None

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """Whole heads and embeddings are passed over by the PyTorch backend; other tensors make it stop."""
        if "lm_head" in tensor or "embed_tokens" in tensor:
            return dropped(tensor, "TensorRT-LLM's PyTorch backend passes whole embeddings and heads over")
        return refused(tensor, "TensorRT-LLM stops at a tensor of an unknown name")
