"""From a model, or its config alone, to its anatomy.

>>> from transformers import LlamaConfig
>>> config = LlamaConfig(num_hidden_layers=2, hidden_size=48, num_attention_heads=6, num_key_value_heads=2,
...                      intermediate_size=80, vocab_size=96)
>>> anatomy = read(config)
>>> [(site.role, site.shape) for site in anatomy if site.layer == 0]  # doctest: +NORMALIZE_WHITESPACE
[('attn.q', (48, 48)), ('attn.k', (16, 48)), ('attn.v', (16, 48)), ('attn.o', (48, 48)),
 ('ffn.gate', (80, 48)), ('ffn.up', (80, 48)), ('ffn.down', (48, 80))]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.config_sizes import config_digest, sizes
from loratlas.anatomy.role_table import EXPERT_FAMILIES, ROLES, family_of
from loratlas.anatomy.scopes import scopes
from loratlas.anatomy.sites import Anatomy, Site, Unresolved
from loratlas.models.config import collector_paused, load_config
from loratlas.models.meta import copy_on_meta, meta_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.compare.decide_roles import RoleDecision
    from loratlas.anatomy.structure import Matrix


def read(source: str | Path | PretrainedConfig | Any) -> Anatomy:
    """Map every matrix of a causal language model.

    No weights are read and no memory is taken for them: the model is built on the meta device from its
    config, also where a live model is given, whose parameters are then checked to be those of the config.

    Args:
        source: a Hub id, a directory, a ``config.json``, a config, a model, or a PEFT model around one.

    Returns:
        Every parameter of two or more dimensions once: as a site, or as unresolved.

    Raises:
        ModelError: the model cannot be found or built, or a live model is not the one its config describes.
    """
    return examine(source)[0]


def examine(source: str | Path | PretrainedConfig | Any) -> tuple[Anatomy, dict[str, RoleDecision]]:
    """Map a model as :func:`read` does, and keep what led to each role.

    Args:
        source: as of :func:`read`.

    Returns:
        The anatomy, and the decisions by parameter name.
    """
    with collector_paused():
        return _examine(source)


def _examine(source: str | Path | PretrainedConfig | Any) -> tuple[Anatomy, dict[str, RoleDecision]]:
    from loratlas.anatomy.compare.decide_roles import decide
    from loratlas.anatomy.structure import matrices

    if isinstance(source, (str, Path)) or not hasattr(source, "named_parameters"):
        config = load_config(source)
        model = meta_model(config)
    else:
        model = copy_on_meta(source)
        config = model.config
    numbers = sizes(model.config)
    every = matrices(model)
    first: dict[int, str] = {}
    sites: list[Site] = []
    unresolved: list[Unresolved] = []
    decisions = decide(model, every, numbers)
    names = _names(every, decisions)
    towers = scopes(model, every)
    for matrix in every:
        tied_to = first.get(id(matrix.parameter))
        first.setdefault(id(matrix.parameter), matrix.path)
        decision = decisions[matrix.path]
        if decision.role is None:
            unresolved.append(
                Unresolved(
                    path=matrix.path,
                    module=matrix.module,
                    shape=matrix.shape,
                    reason=decision.reason,
                    opinions=decision.opinions,
                    scope=towers[matrix.path],
                )
            )
            continue
        experts = _experts(matrix, decision)
        sites.append(
            Site(
                path=matrix.path,
                module=matrix.module,
                layer=matrix.layer,
                scope=towers[matrix.path],
                role=decision.role,
                shape=_shape(matrix, decision),
                kind="experts" if experts is not None else matrix.kind,
                flags=_flags(matrix, decision, tied_to),
                layout=decision.layout,
                experts=experts,
                input_group=decision.input_group,
                tied_to=tied_to,
                called_as=names.get((id(matrix.parameter), decision.role), ()) if tied_to is None else (),
            )
        )
    embedding = next((site for site in sites if site.role == "embed"), None)
    anatomy = Anatomy(
        model=_name(source, config),
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=numbers.layers,
        sites=tuple(sites),
        unresolved=tuple(unresolved),
        config_digest=config_digest(model.config),
        hidden=numbers.hidden,
        vocabulary=embedding.shape[0] if embedding else int(getattr(config, "vocab_size", 0) or 0),
        heads=numbers.heads,
        context=numbers.context,
        active_experts=numbers.active_experts,
    )
    return anatomy, decisions


def _names(
    matrices: list[Matrix], decisions: dict[str, RoleDecision]
) -> dict[tuple[int, str], tuple[str, ...]]:
    """Parameter and role → every name under which the matrix is called in that role, where there are several."""
    names: dict[tuple[int, str], list[str]] = {}
    for matrix in matrices:
        decision = decisions[matrix.path]
        if decision.role is not None and (decision.call is not None or "dead" not in decision.flags):
            names.setdefault((id(matrix.parameter), decision.role), []).append(matrix.path)
    return {key: tuple(paths) for key, paths in names.items() if len(paths) > 1}


def _shape(matrix: Matrix, decision: RoleDecision) -> tuple[int, int]:
    """(d_out, d_in), as the matrix was used; of one that was not, as it is stored."""
    if matrix.kind == "parameter" and decision.call is not None and not decision.call.lookup:
        return decision.call.width, decision.call.into
    if matrix.kind == "parameter" and decision.role is not None and family_of(decision.role) == "moe":
        rows, columns = matrix.linear_shape
        return (columns, rows) if getattr(matrix.holder, "is_transposed", False) else (rows, columns)
    return matrix.linear_shape


def _experts(matrix: Matrix, decision: RoleDecision) -> int | None:
    """How many maps are stacked in one parameter; None where it is one map."""
    if matrix.kind != "parameter" or decision.role is None or not ROLES[decision.role].observed:
        return None
    rows, columns = _shape(matrix, decision)
    count = matrix.parameter.numel() // (rows * columns)
    stacked = family_of(str(decision.role)) in EXPERT_FAMILIES or "experts" in matrix.held
    return count if stacked and (count > 1 or len(matrix.shape) == 3) else None


def _flags(matrix: Matrix, decision: RoleDecision, tied_to: str | None) -> frozenset[str]:
    call = decision.call
    held = {
        "transposed": matrix.kind == "conv1d" or (call is not None and call.transposed),
        "interleaved": (decision.layout or "").startswith("interleaved"),
        "tied": tied_to is not None,
        "shared": "shared" in decision.flags,
        "inert": (matrix.kind == "embedding" and not _looks_up(matrix.holder)) or "dead" in decision.flags,
    }
    return frozenset(flag for flag, true in held.items() if true)


def _looks_up(holder: Any) -> bool:
    """Whether an embedding's forward is a plain look-up of its argument, scaled or not.

    OPT's learned positions take an attention mask and add an offset: an adapter would look up other rows.
    """
    from torch import nn

    return type(holder).forward is nn.Embedding.forward or hasattr(holder, "embed_scale")


def _name(source: Any, config: PretrainedConfig) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return config.name_or_path or config.model_type
