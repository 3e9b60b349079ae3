"""SGLang: one rank, one scale α/r, fused groups whole, and a list of names for target_modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, final

from loratlas.serving.adapter_header import EMBEDDING, EXPERTS, AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason, dropped, on_published_base, refused

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

_LEAVES = frozenset(
    {
        *(leaf for group in GROUPS for leaf in group),
        "qkv_proj", "o_proj", "out_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head", "q_a_proj",
        "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "w1", "w2", "w3",
    }
)  # fmt: skip
EACH = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe"})


@final
class Sglang(Engine):
    """SGLang's LoRA, as ``--enable-lora`` starts it."""

    name: ClassVar[str] = "sglang"
    title: ClassVar[str] = "SGLang"
    version: ClassVar[str] = "0.5.23"
    reads: ClassVar[tuple[str, ...]] = ("target_modules", "r", "lora_alpha", "use_dora")
    ignores: ClassVar[tuple[str, ...]] = (
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_parameters",
        "modules_to_save",
        "bias",
        "init_lora_weights",
    )
    refuses: ClassVar[tuple[str, ...]] = (
        "target_modules as an expression",
        "DoRA",
        "factors of another rank than r",
        "experts in one tensor",
    )
    evidence: ClassVar[str] = "parser"

    def form(self, model_type: str) -> Form:
        """Everything of one rank; q, k, v and gate, up are one matrix each."""
        return Form(groups=GROUPS, experts="each" if model_type in EACH else "")

    def rank_for(self, rank: int) -> int:
        """Any; ``--max-lora-rank`` follows the adapters that are loaded at the start."""
        return rank

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """α/r of the config, whatever the patterns say."""
        return header.alpha / header.rank

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """What is looked at before the weights."""
        targets: Any = header.config.get("target_modules")
        if isinstance(targets, str) and targets not in ("all", "all-linear"):
            yield refused("target_modules", "SGLang takes a list, or the words all and all-linear")
        if targets is None:
            yield refused("target_modules", "SGLang wants a list of names")
        if header.config.get("use_dora"):
            yield refused("use_dora", "SGLang does not compute DoRA")
        yield from on_published_base(header, self.title)
        present: dict[str, set[str]] = {}
        for pair in header.pairs:
            present.setdefault(pair.module.rpartition(".")[0], set()).add(pair.leaf)
        for parent, leaves in present.items():
            for group in GROUPS:
                some = leaves & set(group)
                if some and not some >= set(group) and not some >= {"gate_proj"}:
                    missing = ", ".join(leaf for leaf in group if leaf not in leaves)
                    yield refused(
                        f"{parent}.{min(some)}", f"SGLang fuses {', '.join(group)}; {missing} is missing here"
                    )

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Names it knows, and shapes that its buffers have."""
        if pair.kind == EXPERTS:
            return refused(pair.a, "experts in one tensor; SGLang reads a pair of factors per expert")
        if pair.leaf not in _LEAVES:
            return refused(pair.a, f"SGLang has no buffers for {pair.leaf}")
        if pair.rank != header.rank:
            return refused(pair.a, f"rank {pair.rank} where the config says r={header.rank}")
        if pair.leaf in ("lm_head", "embed_tokens") and header.base is not None and header.base.tied:
            return dropped(
                pair.a, "embedding and head are one matrix in SGLang, and one of the two is adapted"
            )
        if pair.kind == EMBEDDING and pair.leaf != "embed_tokens":
            return dropped(pair.a, f"SGLang adapts no embedding called {pair.leaf}")
        return None

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """Only the published embedding, which PEFT saves along, may be passed over."""
        if tensor.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
            return None
        return dropped(tensor, "SGLang loads factors alone")
