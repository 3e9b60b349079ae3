"""What stands outside the blocks: embeddings, heads, projections between widths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.anatomy.role_table import TEXT_SCOPES
from loratlas.anatomy.scopes import scope
from loratlas.anatomy.structure import Matrix, words
from loratlas.anatomy.trace.flow_records import Flow, View

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADS = frozenset({"head", "heads", "classifier", "pooler", "predictions", "score", "summary", "cls"})
_RESIDUAL = frozenset({"hc", "hyper"})
_DISTANCE = frozenset({"rel", "relative", "distance"})


def outside(model: PreTrainedModel, matrices: list[Matrix], flow: Flow) -> dict[str, str]:
    """Path → role of every matrix outside the blocks that one of these fits."""
    base = getattr(model, "base_model", model)
    inner = next((name for name, module in model.named_modules() if module is base), "")
    heads = {label.origin.path for label in flow.outputs if isinstance(label.origin, View)}
    tables = {id(matrix.parameter) for matrix in matrices if matrix.kind == "embedding"}
    roles = {}
    for matrix in matrices:
        if matrix.block is None:
            role = _role(model, matrix, inner, heads, tables)
            if role is not None:
                roles[matrix.path] = role
    return roles


def _role(
    model: PreTrainedModel, matrix: Matrix, inner: str, heads: set[str], tables: set[int]
) -> str | None:
    config: Any = model.config.get_text_config(decoder=True)
    said = {word for attribute, cls in matrix.trail for word in (*attribute, *cls)} | set(words(matrix.leaf))
    leaf = set(words(matrix.leaf))
    if matrix.kind == "parameter" and max(matrix.shape) == matrix.parameter.numel():
        return "vector"
    if matrix.kind == "embedding" or "embedding" in matrix.held:
        # A table of distances between tokens, whether its rows are added to scores or meet queries and keys.
        return "attn.relbias" if leaf & {"bias", *_DISTANCE} or "bias" in matrix.held else "embed"
    if leaf & _DISTANCE and "bias" in leaf:
        return "attn.relbias"
    if matrix.kind == "conv":
        return "conv"
    if _RESIDUAL & said:
        return "residual"
    if matrix.raw and not leaf & {"proj", "projection"}:
        return "vector"
    vocabulary = getattr(config, "vocab_size", None)
    if matrix.holder is model.get_output_embeddings() or id(matrix.parameter) in tables:
        return "head.lm"
    mine = not (inner and matrix.module.startswith(inner + "."))
    tower = scope(model, matrix) not in TEXT_SCOPES
    if matrix.path in heads or (mine and not tower) or leaf & _HEADS or said & (_HEADS - {"cls"}):
        return _head(model, matrix, said, vocabulary, heads)
    return "proj" if matrix.kind in ("linear", "parameter", "conv1d") else None


def _head(
    model: PreTrainedModel, matrix: Matrix, said: set[str], vocabulary: int | None, heads: set[str]
) -> str:
    rows, into = matrix.linear_shape
    classifies = not type(model).__name__.endswith(("ForMaskedLM", "ForCausalLM", "LMHeadModel"))
    labels = getattr(model.config, "num_labels", None)
    if matrix.path in heads:
        return "head.cls" if rows == 1 or (classifies and rows == labels) else "head.lm"
    if vocabulary in (rows, into) and not (heads and rows == into):
        return "head.lm"
    if rows == 1 or (classifies and rows == labels) or {"classifier", "out"} <= {*said, *words(matrix.leaf)}:
        return "head.cls"
    return "head.transform"
