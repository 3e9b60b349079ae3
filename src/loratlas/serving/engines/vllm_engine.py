"""vLLM: reads both patterns, knows the layouts of experts of its own classes, and refuses what it does not compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, final

from loratlas.serving.adapter_header import EMBEDDING, EXPERTS, AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason, changed_base, dropped, refused

STACKED = frozenset(
    {"gpt_oss", "interns1_pro", "qwen3_5_moe", "qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_vl_moe"}
)
"""Types whose experts vLLM keeps in one tensor, and reads as PEFT names them."""

EACH = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe"})
"""Types whose experts it reads one by one."""

WITHOUT = frozenset(
    {
        "bloom", "dbrx", "distilbert", "falcon", "falcon_mamba", "gemma3n", "gpt2", "gptj", "mamba", "mamba2",
        "modernbert", "mt5", "orion", "stablelm", "t5", "umt5", "zamba2",
    }
)  # fmt: skip
"""Types that it serves without adapters, or not at all."""

_OPTIONS = {
    "use_dora": "DoRA",
    "lora_bias": "biases of factors",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layers that are repeated",
    "use_bdlora": "block-diagonal factors",
    "use_qalora": "QA-LoRA",
}
_HEADS = ("classifier", "score")


@final
class Vllm(Engine):
    """vLLM's LoRA, as ``--enable-lora`` starts it."""

    name: ClassVar[str] = "vllm"
    title: ClassVar[str] = "vLLM"
    version: ClassVar[str] = "0.33"
    reads: ClassVar[tuple[str, ...]] = (
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "bias",
    )
    ignores: ClassVar[tuple[str, ...]] = ("target_modules", "target_parameters", "fan_in_fan_out")
    refuses: ClassVar[tuple[str, ...]] = (
        "DoRA",
        "lora_bias",
        "bias other than none",
        "PiSSA, OLoRA, CorDA and LoftQ",
        "modules_to_save other than one of classifier, score",
    )
    ranks: ClassVar[tuple[int, ...]] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    evidence: ClassVar[str] = "parser"

    def form(self, model_type: str) -> Form:
        """Releases before 0.33 pass the patterns over: one rank and one scale serve in all of them."""
        experts = "peft" if model_type in STACKED else "each" if model_type in EACH else ""
        return Form(experts=experts)

    def rank_for(self, rank: int) -> int | None:
        """Buffers have one of nine sizes; factors of fewer rows lie in them as they are."""
        return rank if rank <= self.ranks[-1] else None

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """PEFT's own rule, on the names in the file."""
        return pair.scale

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """Options that it checks before anything is loaded."""
        if header.model_type in WITHOUT:
            yield refused("base_model_name_or_path", f"vLLM has no LoRA for {header.model_type}")
        for option, what in _OPTIONS.items():
            if header.config.get(option):
                yield refused(option, f"vLLM does not compute {what}")
        if init := changed_base(header):
            yield refused("init_lora_weights", f"{init} changed the base, and vLLM serves the published one")
        if header.config.get("bias", "none") != "none":
            yield refused("bias", "vLLM loads no biases")
        saved: Any = header.config.get("modules_to_save") or ()
        strange = [name for name in saved if name not in _HEADS]
        if strange:
            yield refused(
                "modules_to_save", f"vLLM loads {' or '.join(_HEADS)} alone, not {', '.join(strange)}"
            )
        largest = max([header.rank, *(pair.rank for pair in header.pairs)])
        if largest > self.ranks[-1]:
            yield refused("r", f"rank {largest}; the largest --max-lora-rank is {self.ranks[-1]}")

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Names, and layouts of experts."""
        if pair.kind == EMBEDDING and pair.leaf not in ("embed_tokens", "lm_head"):
            return refused(pair.a, f"vLLM adapts no embedding called {pair.leaf}")
        if pair.kind == EXPERTS and header.model_type not in STACKED:
            return refused(
                pair.a, "experts in one tensor, which vLLM reads for classes alone that keep them so"
            )
        if pair.leaf in ("lm_head", "embed_tokens") and header.base is not None and header.base.tied:
            return dropped(pair.a, "embedding and head are one matrix in vLLM, and one of the two is adapted")
        return None

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """A classifier's head is loaded; the published embedding, which PEFT saves along, is passed over rightly."""
        words = tensor.split(".")
        if tensor.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
            return None
        if words[-1] in ("weight", "bias") and len(words) > 1 and words[-2] in _HEADS:
            return None
        return refused(tensor, "vLLM knows no tensor of this name in an adapter")


def rank_scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """α/r, or α/√r with rsLoRA."""
    return alpha / (math.sqrt(rank) if rslora else rank)
