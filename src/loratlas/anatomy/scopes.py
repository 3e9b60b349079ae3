"""Which tower a matrix stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.role_table import TEXT_SCOPES
from loratlas.anatomy.structure import Matrix, words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# In this order: a projector inside a vision tower belongs to the connection, not to the tower.
_TOWERS = (
    ("connector", frozenset({"projector", "connector", "qformer", "multimodal"})),
    ("vision", frozenset({"vision", "visual", "image", "img", "patch", "pixel"})),
    ("audio", frozenset({"audio", "speech", "acoustic", "semantic", "ctc", "conformer", "transcribe"})),
)


def scopes(model: PreTrainedModel, matrices: Sequence[Matrix]) -> dict[str, str]:
    """Path → ``decoder``, ``encoder``, ``vision``, ``audio`` or ``connector``.

    What stands beside the blocks of a tower, such as the map into it, belongs to that tower, whatever it is called.
    """
    towers = {matrix.path: scope(model, matrix) for matrix in matrices}
    inside: dict[str, set[str]] = {}
    for matrix in matrices:
        if matrix.layer is not None:
            for around in _around(matrix.path):
                inside.setdefault(around, set()).add(towers[matrix.path])
    for matrix in matrices:
        if matrix.layer is None and towers[matrix.path] in TEXT_SCOPES:
            blocks = next((inside[around] for around in _around(matrix.path) if around in inside), set())
            if len(blocks) == 1:
                (towers[matrix.path],) = blocks
    return towers


def _around(path: str) -> list[str]:
    """The modules around the one that holds a matrix, from the innermost out."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 2, 0, -1)]


def scope(model: PreTrainedModel, matrix: Matrix) -> str:
    """The tower that a matrix's own name and those of the modules around it speak of."""
    attributes = [word for attribute, _ in matrix.trail for word in attribute]
    said = (
        set(attributes) | {word for _, cls in matrix.trail[1:] for word in cls} | set(matrix.path.split("."))
    )
    if {"multi", "modal", "projector"} <= said | set(words(matrix.leaf)):
        return "connector"
    for tower, votes in _TOWERS:
        if votes & said and _several(model):
            return tower
    return text_scope(model, matrix.path)


def text_scope(model: PreTrainedModel, path: str) -> str:
    """Encoder or decoder, of a model for text."""
    config: Any = model.config
    if config.is_encoder_decoder:
        parts = path.split(".")
        inside = next((part for part in parts if part.split("_")[-1] in ("encoder", "decoder")), "decoder")
        return inside.split("_")[-1]
    return "encoder" if reads_both_ways(model) else "decoder"


def reads_both_ways(model: PreTrainedModel) -> bool:
    """Whether every token sees those after it: a masked language model, or a classifier on one."""
    from transformers.models.auto import modeling_auto as auto

    config: Any = model.config
    if getattr(config, "is_decoder", False) or getattr(config, "causal", False) is True:
        return False
    kind = config.model_type
    if kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return False
    name = type(model).__name__
    if name.endswith("ForMaskedLM") or kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    if name.endswith("ForCausalLM") or kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    return not any(getattr(module, "is_causal", False) is True for module in model.modules())


def _several(model: PreTrainedModel) -> bool:
    return (
        bool(getattr(model.config, "sub_configs", None)) or model.config is not model.config.get_text_config()
    )
