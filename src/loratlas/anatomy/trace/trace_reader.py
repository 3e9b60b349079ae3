"""The reader that looks at behaviour: roles from one observed forward pass, without any name.

An opinion is a role, or only a family (``"mixer"``) where the pass shows what a matrix belongs to and not which
part of it it is: the chunked arithmetic of linear attention does not tell its queries from its keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratlas.anatomy.trace.attention_flow import attention
from loratlas.anatomy.trace.evidence import Opinion, TraceEvidence
from loratlas.anatomy.trace.feedforward_flow import feedforward, gated_outputs
from loratlas.anatomy.trace.flow_records import Flow
from loratlas.anatomy.trace.recurrence import recurrences
from loratlas.anatomy.trace.topk_choice import choices

if TYPE_CHECKING:
    from loratlas.anatomy.structure import Matrix

__all__ = ["Opinion", "opinions"]


def opinions(flow: Flow, matrices: list[Matrix], *, kv_heads: int, heads: int) -> dict[str, Opinion]:
    """Path → opinion; a matrix that plays two different parts, or an unclear one, has none.

    Args:
        flow: what was observed.
        matrices: the matrices; their shapes and blocks are looked at, no name.
        kv_heads: of the config, to name layouts.
        heads: of the config.
    """
    return _spread(_read(TraceEvidence(flow, matrices, kv_heads, heads)), flow, matrices)


def _spread(seen: dict[str, Opinion], flow: Flow, matrices: list[Matrix]) -> dict[str, Opinion]:
    """The same opinions for blocks that were built like an observed one."""
    for matrix in matrices:
        twin = flow.twins.get(matrix.block or "")
        if twin is not None and matrix.block is not None:
            like = seen.get(twin + matrix.path[len(matrix.block) :])
            if like is not None:
                seen[matrix.path] = like
    return seen | _experts(seen, matrices)


def _experts(seen: dict[str, Opinion], matrices: list[Matrix]) -> dict[str, Opinion]:
    """What experts that were not chosen are: the same as their neighbours in a list of nothing but their like."""
    lists: dict[str, dict[str, dict[str, Matrix]]] = {}
    for matrix in matrices:
        parts = matrix.path.split(".")
        for at in range((matrix.block or matrix.path).count(".") + 1, len(parts) - 2):
            inside = lists.setdefault(".".join(parts[:at]), {}).setdefault(parts[at], {})
            inside[".".join(parts[at + 1 :])] = matrix
    by_path: dict[str, Opinion] = {}
    for items in lists.values():
        built = {tuple((rest, one.shape, one.kind) for rest, one in item.items()) for item in items.values()}
        if len(items) < 2 or len(built) != 1 or len(next(iter(built))) < 2:
            continue
        for rest in next(iter(items.values())):
            alike = [item[rest].path for item in items.values()]
            said = {seen[path] for path in alike if path in seen}
            if len(said) == 1 and next(iter(said)).role.startswith("moe."):
                by_path |= dict.fromkeys(alike, next(iter(said)))
    return by_path


def _read(seen: TraceEvidence) -> dict[str, Opinion]:
    """In this order: what an earlier reader took, a later one leaves alone."""
    for path, call in seen.calls.items():
        if call.kernel:
            seen.say(path, "conv")
        elif call.lookup:
            seen.say(path, "attn.relbias" if path in seen.flow.biases else "embed")
    choices(seen)
    for number, event in enumerate(seen.flow.attentions):
        attention(seen, event, seen.after.get(number, []))
    recurrences(seen)
    for path in seen.calls:
        feedforward(seen, path)
    gated_outputs(seen)
    return {path: said for path, said in seen.given.items() if path not in seen.unclear}
