"""What stands outside the blocks: embeddings, heads, projections between widths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.anatomy.records import Flow, View
from loratlas.anatomy.structure import Matrix, words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADS = frozenset(
    {"head", "heads", "classifier", "pooler", "predictions", "score", "summary", "cls", "classification"}
)
_RESIDUAL = frozenset({"hc", "hyper"})


def outside(model: PreTrainedModel, found: list[Matrix], flow: Flow) -> dict[str, str]:
    """Path → role of every matrix outside the blocks that one of these fits."""
    base = getattr(model, "base_model", model)
    inner = next((name for name, module in model.named_modules() if module is base), "")
    heads = {label.origin.path for label in flow.outputs if isinstance(label.origin, View)}
    told = {}
    for matrix in found:
        if matrix.block is None:
            role = _role(model, matrix, inner, heads)
            if role is not None:
                told[matrix.path] = role
    return told


def _role(model: PreTrainedModel, matrix: Matrix, inner: str, heads: set[str]) -> str | None:
    config: Any = model.config.get_text_config(decoder=True)
    said = {word for attribute, cls in matrix.trail for word in (*attribute, *cls)} | set(words(matrix.leaf))
    leaf = set(words(matrix.leaf))
    if matrix.kind == "embedding" or "embedding" in matrix.held:
        return "attn.relbias" if {"bias"} & leaf or "bias" in matrix.held else "embed"
    if leaf & {"rel", "relative"} and "bias" in leaf:
        return "attn.relbias"
    if matrix.kind == "conv":
        return "conv"
    if _RESIDUAL & said:
        return "residual"
    if matrix.raw and not leaf & {"proj", "projection"}:
        return "vector"
    rows, into = matrix.linear_shape
    vocabulary = getattr(config, "vocab_size", None)
    if matrix.holder is model.get_output_embeddings():
        return "head.lm"
    mine = not (inner and matrix.module.startswith(inner + "."))
    if mine or leaf & _HEADS or said & (_HEADS - {"cls"}):
        return _head(model, matrix, (rows, into), vocabulary, heads)
    return "proj" if matrix.kind in ("linear", "parameter", "conv1d") else None


def _head(
    model: PreTrainedModel, matrix: Matrix, shape: tuple[int, int], vocabulary: int | None, heads: set[str]
) -> str | None:
    rows, into = shape
    if vocabulary in (rows, into):
        return "head.lm"
    classifies = not type(model).__name__.endswith(("ForMaskedLM", "ForCausalLM", "LMHeadModel"))
    labels = getattr(model.config, "num_labels", None)
    if matrix.path in heads:
        return "head.cls" if classifies and rows == labels else "head.lm"
    if classifies and rows == labels:
        return "head.cls"
    if rows == 1:
        return "head.cls"
    return "head.transform"
