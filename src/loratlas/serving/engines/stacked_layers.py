"""TGI and LoRAX: the factors of one kind of matrix are stacked over all layers, or dropped.

Both descend from one code. The scale is α/r of the config, except that the first kind of matrix that is loaded
replaces r by the rank to which its kernels pad; a rank that needs no padding is the only one that all kinds share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, final

from loratlas.serving.adapter_header import LINEAR, AdapterHeader, FactorPair
from loratlas.serving.engine import Engine, Form, Reason, dropped, on_published_base, refused
from loratlas.serving.engines.vllm_engine import rank_scale

SMALLEST, BLOCK, LARGEST = 8, 16, 128
"""Ranks up to 8 are padded to 8, others to the next multiple of 16; the kernels end at 128."""

_ATTENTION = {
    leaf: f"model.layers.{{}}.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")
}
_MLP = {leaf: f"model.layers.{{}}.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")}
_HEAD = {"lm_head": "lm_head"}
_LLAMA = {**_ATTENTION, **_MLP}
_PHI3 = {
    "qkv_proj": "model.layers.{}.self_attn.qkv_proj",
    "o_proj": "model.layers.{}.self_attn.o_proj",
    "gate_up_proj": "model.layers.{}.mlp.gate_up_proj",
    "down_proj": "model.layers.{}.mlp.down_proj",
}
_PHI = {
    **{leaf: f"model.layers.{{}}.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "dense")},
    **{leaf: f"model.layers.{{}}.mlp.{leaf}" for leaf in ("fc1", "fc2")},
    **_HEAD,
}
_GPT2 = {
    leaf: f"transformer.h.{{}}.{leaf}" for leaf in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}


def padded_rank(rank: int) -> int:
    """The rank to which the kernels pad.

    >>> [padded_rank(rank) for rank in (1, 8, 9, 16, 20)]
    [8, 8, 16, 16, 32]
    """
    return SMALLEST if rank <= SMALLEST else -(-rank // BLOCK) * BLOCK


class StackedLayers(Engine):
    """What the two share."""

    reads: ClassVar[tuple[str, ...]] = ("r", "lora_alpha", "use_rslora")
    ignores: ClassVar[tuple[str, ...]] = (
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "use_dora",
        "bias",
        "init_lora_weights",
    )
    refuses: ClassVar[tuple[str, ...]] = ("unlike ranks of one kind of matrix", "ranks above 128")
    slots: ClassVar[Mapping[str, Mapping[str, str]]]
    """Model type → kind of matrix → name in every layer, in the order in which kinds are loaded."""

    @abstractmethod
    def form(self, model_type: str) -> Form:
        """One rank, every layer."""

    def rank_for(self, rank: int) -> int | None:
        """The next rank that the kernels do not pad."""
        padded = padded_rank(rank)
        return padded if padded <= LARGEST else None

    def scale(self, header: AdapterHeader, pair: FactorPair) -> float:
        """α/r of the config; for every kind behind the first one r is the padded rank."""
        first = self._loaded(header)[0]
        rank = header.rank if self._kind(header, pair) == first else padded_rank(header.rank)
        return rank_scale(header.alpha, rank, rslora=header.rslora)

    def whole_reasons(self, header: AdapterHeader) -> Iterator[Reason]:
        """Whether there are slots for adapters at all, and what is stacked with what."""
        if header.model_type and header.model_type not in self.slots:
            yield refused("base_model_name_or_path", f"{self.title} has no LoRA for {header.model_type}")
        yield from on_published_base(header, self.title)
        ranks: dict[str, set[int]] = {}
        for pair in header.pairs:
            kind = self._kind(header, pair)
            if kind is not None:
                ranks.setdefault(kind, set()).add(padded_rank(pair.rank))
        for kind, sizes in ranks.items():
            if len(sizes) > 1:
                yield refused(kind, f"{self.title} stacks {kind} of all layers, which have unlike ranks here")
        largest = max((pair.rank for pair in header.pairs), default=0)
        if largest > LARGEST:
            yield refused("r", f"rank {largest}; the kernels of {self.title} end at {LARGEST}")

    def pair_reason(self, header: AdapterHeader, pair: FactorPair) -> Reason | None:
        """Kinds that it stacks, in all layers."""
        kind = self._kind(header, pair)
        if kind is None:
            return dropped(pair.a, f"{self.title} has no place for {pair.module}")
        if kind not in self._complete(header):
            return dropped(
                pair.a, f"{kind} is not adapted in every layer, and {self.title} then drops it in all"
            )
        return None

    def other_reason(self, header: AdapterHeader, tensor: str) -> Reason | None:
        """The published embedding, which PEFT saves along, is passed over rightly."""
        if tensor.endswith(".base_layer.weight"):
            return None
        return dropped(tensor, f"{self.title} loads factors alone")

    def _names(self, header: AdapterHeader) -> Mapping[str, str]:
        return self.slots.get(header.model_type, {**_LLAMA, **_HEAD})

    def _kind(self, header: AdapterHeader, pair: FactorPair) -> str | None:
        if pair.kind != LINEAR or not pair.a.startswith("base_model.model."):
            return None
        return next(
            (
                kind
                for kind, name in self._names(header).items()
                if pair.module == (name.format(pair.layer) if pair.layer is not None else name)
            ),
            None,
        )

    def _complete(self, header: AdapterHeader) -> list[str]:
        """Kinds that are adapted in every layer, in the order in which they are loaded."""
        there = {pair.module for pair in header.pairs if pair.kind == LINEAR}
        return [
            kind
            for kind, name in self._names(header).items()
            if all(name.format(layer) in there for layer in range(header.layers if "{}" in name else 1))
        ]

    def _loaded(self, header: AdapterHeader) -> list[str]:
        return self._complete(header) or [""]


@final
class Tgi(StackedLayers):
    """Hugging Face's text-generation-inference."""

    name: ClassVar[str] = "tgi"
    title: ClassVar[str] = "TGI"
    version: ClassVar[str] = "3.3"
    slots: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **dict.fromkeys(("llama", "mistral", "granite", "qwen2", "gemma2", "gemma3_text"), _LLAMA),
        "mixtral": _ATTENTION,
        "phi3": {name: _PHI3[name] for name in ("qkv_proj", "o_proj", "down_proj")},
        "starcoder2": {
            **_ATTENTION,
            **{leaf: f"model.layers.{{}}.mlp.{leaf}" for leaf in ("c_fc", "c_proj")},
        },
    }

    def form(self, model_type: str) -> Form:
        """One rank, every layer, groups as they come."""
        return Form(all_layers=True)


@final
class Lorax(StackedLayers):
    """Predibase's LoRAX."""

    name: ClassVar[str] = "lorax"
    title: ClassVar[str] = "LoRAX"
    version: ClassVar[str] = "0.12"
    slots: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **{kind: {**_LLAMA, **_HEAD} for kind in ("llama", "mistral", "granite", "solar")},
        **dict.fromkeys(("qwen2", "gemma", "gemma2"), _LLAMA),
        "mixtral": _ATTENTION,
        "phi": _PHI,
        "phi3": _PHI3,
        "gpt2": _GPT2,
    }

    def form(self, model_type: str) -> Form:
        """One rank, every layer, groups as they come."""
        return Form(all_layers=True)
