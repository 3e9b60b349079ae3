"""A PEFT adapter as its two headers describe it: ``adapter_config.json`` and the header of the safetensors file.

Nothing of the weights is read and no library is imported, so that an adapter of a large base is judged in a moment.
Ranks, scales and the names that patterns match are PEFT's own rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loratlas.adapters.stored.expressions import pattern_value
from loratlas.adapters.stored.lora_options import check_numbers, read_config
from loratlas.adapters.stored.read_adapter import (
    PREFIX,
    WEIGHTS,
    refuse_slow,
    refuse_without_config,
    refuse_without_weights,
)
from loratlas.adapters.stored.safetensors_header import TensorEntry, read_header
from loratlas.errors import ModelError
from loratlas.serving.base_outline import BaseOutline

LINEAR, EMBEDDING, EXPERTS = "linear", "embedding", "experts"

_FACTOR = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB])")
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_STACK_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""Parameters of a stack of experts in the order in which their modules register them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorPair:
    """The two factors at one site.

    Args:
        module: name in the bare model, ``model.layers.0.self_attn.q_proj``.
        parameter: of a stack of experts, ``down_proj``; empty for a module that is adapted as such.
        kind: ``linear``, ``embedding`` or ``experts``.
        experts: how many matrices; 1 unless it is a stack.
        rank: of each, as the shapes say.
        d_in, d_out: of each matrix.
        scale: in front of B A, as PEFT takes it from the config.
        a, b: the tensors' names.
    """

    module: str
    parameter: str = ""
    kind: str = LINEAR
    experts: int = 1
    rank: int
    d_in: int
    d_out: int
    scale: float
    a: str
    b: str

    @property
    def leaf(self) -> str:
        """Last word of the module's name."""
        return self.module.rpartition(".")[2]

    @property
    def layer(self) -> int | None:
        """Number of the block; None outside of the blocks."""
        match = _LAYER.search(self.module)
        return int(match[1]) if match else None

    @property
    def parameters(self) -> int:
        """Numbers in both factors."""
        return self.experts * self.rank * (self.d_in + self.d_out)


@dataclass(frozen=True, kw_only=True)
class AdapterHeader:
    """What an engine sees of an adapter before it loads a number.

    Args:
        folder: where it lies.
        config: ``adapter_config.json``.
        tensors: of ``adapter_model.safetensors``, by name.
        base: shape of its base; None where its config is not at hand.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    base: BaseOutline | None = field(default=None)

    @cached_property
    def pairs(self) -> tuple[FactorPair, ...]:
        """The factors, in the order of the file.

        Raises:
            ModelError: a factor without its partner, or of a shape that cannot be.
        """
        return tuple(self._pairs())

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Names of tensors that are no factors: magnitudes, biases, heads and embeddings trained whole."""
        return tuple(name for name in self.tensors if not _FACTOR.fullmatch(name))

    @property
    def rank(self) -> int:
        """The config's ``r``."""
        return int(self.config.get("r", 8))

    @property
    def alpha(self) -> float:
        """The config's ``lora_alpha``."""
        return float(self.config.get("lora_alpha", 8))

    @property
    def rslora(self) -> bool:
        """Whether PEFT scales by α/√r."""
        return bool(self.config.get("use_rslora"))

    @property
    def model_type(self) -> str:
        """Of the base; empty where unknown."""
        return self.base.model_type if self.base else ""

    @cached_property
    def layers(self) -> int:
        """Blocks of the base; where it is unknown, as many as the adapter reaches."""
        if self.base and self.base.layers:
            return self.base.layers
        return 1 + max((pair.layer for pair in self.pairs if pair.layer is not None), default=-1)

    def rank_of(self, name: str) -> int:
        """The rank that the config gives a module or a parameter."""
        return int(pattern_value(self.config.get("rank_pattern"), name, self.rank))

    def scale_of(self, name: str) -> float:
        """The scale that PEFT gives a module or a parameter: α/r, or α/√r."""
        alpha = float(pattern_value(self.config.get("alpha_pattern"), name, self.alpha))
        rank = self.rank_of(name)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _pairs(self) -> Iterator[FactorPair]:
        for name, entry in self.tensors.items():
            match = _FACTOR.fullmatch(name)
            if match is None:
                continue
            stem, word = match.groups()
            partner = f"{stem}.{word.replace('_A', '_B') if '_A' in word else word.replace('_B', '_A')}"
            if partner not in self.tensors:
                raise self._broken(f"{name[:200]} without {partner.rpartition('.lora_')[2]}")
            if "_A" in word:
                yield self._pair(stem, name, partner, entry.shape, self.tensors[partner].shape)

    def _pair(self, stem: str, a: str, b: str, first: tuple[int, ...], second: tuple[int, ...]) -> FactorPair:
        if len(first) != 2 or len(second) != 2 or first[0] != second[1]:
            raise self._broken(f"factors of shapes {first} and {second} at {stem[:200]}")
        module = stem.removeprefix(PREFIX)
        depth = 0
        while module.endswith(".base_layer"):
            module, depth = module.removesuffix(".base_layer"), depth + 1
        parameter = self._parameter(module, depth)
        key = f"{module}.{parameter}" if parameter else module
        rank, experts = first[0], 1
        if parameter:
            wanted = self.rank_of(key)
            if wanted < 1 or first[0] % wanted:
                raise self._broken(f"a stack of factors of {first[0]} rows at {key[:200]}, of rank {wanted}")
            rank, experts = wanted, first[0] // wanted
        # A matrix may be adapted by its parameter, and a stack may be called "weight".
        stacked = experts > 1 or parameter not in ("", "weight")
        kind = EMBEDDING if "lora_embedding" in a else EXPERTS if stacked else LINEAR
        return FactorPair(
            module=module,
            parameter=parameter if kind == EXPERTS else "",
            kind=kind,
            experts=experts,
            rank=rank,
            d_in=first[1],
            d_out=second[0],
            scale=self.scale_of(key),
            a=a,
            b=b,
        )

    def _parameter(self, module: str, depth: int) -> str:
        """The parameter that a wrapper of PEFT stands for: wrappers nest, the last one registered outermost."""
        names = []
        for target in self.config.get("target_parameters") or ():
            owner, _, parameter = str(target).rpartition(".")
            if module == owner or module.endswith(f".{owner}") or not owner:
                names.append(parameter)
        order = [*_STACK_ORDER, *sorted(set(names) - set(_STACK_ORDER))]
        names = [name for name in order if name in names]
        return names[len(names) - 1 - depth] if depth < len(names) else ""

    def _broken(self, found: str) -> ModelError:
        return ModelError(
            given=str(self.folder / WEIGHTS),
            found=found,
            instead="the adapter's files as they were written together",
        )


def read_adapter_header(folder: str | Path, *, base: str | Path | None = None) -> AdapterHeader:
    """Read an adapter's two headers; whatever it is, as long as it is PEFT's LoRA.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: folder or ``config.json`` of its base; None for the one that it names, where that is a folder here.

    Raises:
        ModelError: there is no adapter, weights as a pickle alone, a broken file, or another method than LoRA.
    """
    folder = Path(folder)
    refuse_without_config(folder)
    config = read_config(folder)
    if config["peft_type"].upper() != "LORA":
        raise ModelError(
            given=str(folder),
            found=f"an adapter of PEFT's type {config['peft_type'][:40]}",
            instead="a LoRA adapter",
        )
    check_numbers(config, folder)
    refuse_without_weights(folder)
    named = config.get("base_model_name_or_path")
    outline = BaseOutline.read(base if base is not None else named if isinstance(named, str) else None)
    tensors = read_header(folder / WEIGHTS)
    refuse_slow(config, tensors, folder)
    return AdapterHeader(folder=folder, config=config, tensors=tensors, base=outline)
