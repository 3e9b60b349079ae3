"""What of a base an engine looks at when it loads an adapter, from ``config.json`` alone.

No library is imported and no weight is read: checking an adapter for a base of 70 billion parameters takes a file of a
few kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratlas.files import read_json
from loratlas.models.gguf_base import readable

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_HEADS = ("num_attention_heads", "n_head")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOutline:
    """The shape of a base.

    Args:
        model_type: transformers' word for its architecture; empty where nothing says so.
        layers: number of blocks; None where unknown.
        experts: routed experts of a layer; 0 for a dense model.
        heads, kv_heads: of attention; 0 where unknown.
        hidden: width of the residual stream; 0 where unknown.
        tied: whether embedding and output head are one matrix.
    """

    model_type: str = ""
    layers: int | None = None
    experts: int = 0
    heads: int = 0
    kv_heads: int = 0
    hidden: int = 0
    tied: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BaseOutline:
        """Read the table of a ``config.json``; that of the language model where there are several towers.

        >>> BaseOutline.of({"model_type": "gpt2", "n_layer": 12, "n_head": 12}).layers
        12
        """
        text = config.get("text_config")
        table = {**config, **text} if isinstance(text, Mapping) else config
        heads = _number(table, _HEADS)
        return cls(
            model_type=str(table.get("model_type") or ""),
            layers=_number(table, _LAYERS) or None,
            experts=_number(table, _EXPERTS),
            heads=heads,
            kv_heads=_number(table, ("num_key_value_heads",)) or heads,
            hidden=_number(table, ("hidden_size", "n_embd", "d_model")),
            # A config that does not say so follows its class, and most small models of the last years are tied.
            tied=bool(table.get("tie_word_embeddings", str(table.get("model_type")) in _TIED_BY_CLASS)),
        )

    @classmethod
    def read(cls, source: str | Path | None) -> BaseOutline | None:
        """Of a folder, a ``config.json`` or a GGUF file; None where there is none."""
        if source is None:
            return None
        try:
            path = Path(readable(source))
            path = path / "config.json" if path.is_dir() else path
            if path.suffix != ".json" or not path.is_file():
                return None
            table = read_json(path)
        except (OSError, ValueError):
            return None
        return cls.of(table) if isinstance(table, dict) else None


_TIED_BY_CLASS = frozenset({"gpt2", "gemma", "gemma2", "gemma3_text", "t5", "bloom", "opt"})


def _number(table: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((table[name] for name in names if type(table.get(name)) is int), 0)
