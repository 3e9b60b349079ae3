"""What each matrix does: its owner, its part in it, and the shape that must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratlas.anatomy.flow import Flow, observe
from loratlas.anatomy.sizes import Sizes
from loratlas.anatomy.structure import Matrix, class_words, model_prefix, words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = frozenset({"attention", "attn"})
_FEEDFORWARD = frozenset({"mlp", "ffn", "feedforward"})
_Q, _K, _V = frozenset({"q", "query"}), frozenset({"k", "key"}), frozenset({"v", "value"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The role of one matrix, or why it has none."""

    role: str | None = None
    layout: str | None = None
    flags: frozenset[str] = frozenset()
    input_group: str | None = None
    reason: str = ""
    opinions: tuple[str, ...] = ()


def decide(model: PreTrainedModel, found: list[Matrix], sizes: Sizes) -> dict[str, Decision]:
    """Give every matrix a role or a reason for having none."""
    prefix = model_prefix(model)
    flow = observe(model, {matrix.module for matrix in found})
    owners: dict[str, list[Matrix]] = {}
    for matrix in found:
        owners.setdefault(matrix.owner, []).append(matrix)
    groups = _groups(found, flow)
    result: dict[str, Decision] = {}
    for owner, members in owners.items():
        if members[0].block is None:
            roles = {m.path: _outside(m, model, sizes) for m in members}
        else:
            roles = _inside(model, owner, members, prefix, sizes, flow)
        for matrix in members:
            decision = roles.get(matrix.path) or Decision(reason="no reader has an opinion")
            result[matrix.path] = Decision(
                role=decision.role,
                layout=decision.layout,
                flags=decision.flags,
                input_group=groups.get(matrix.module),
                reason=decision.reason,
            )
    return result


def _groups(found: list[Matrix], flow: Flow) -> dict[str, str]:
    first: dict[int, str] = {}
    groups: dict[str, str] = {}
    for matrix in found:
        if matrix.module in flow.reads and matrix.kind != "embedding":
            groups[matrix.module] = first.setdefault(flow.reads[matrix.module], matrix.module)
    return groups


def _outside(matrix: Matrix, model: PreTrainedModel, sizes: Sizes) -> Decision:
    if matrix.kind == "embedding":
        return Decision(role="embed")
    if matrix.holder is model.get_output_embeddings():
        return Decision(role="head.lm")
    if matrix.kind == "linear" and sizes.hidden in matrix.shape:
        return Decision(role="proj")
    return Decision(reason="stands outside the blocks and is neither an embedding nor the output head")


def _inside(
    model, owner: str, members: list[Matrix], prefix: str, sizes: Sizes, flow: Flow
) -> dict[str, Decision]:
    if not flow.complete:
        return {}
    said = set(class_words(model.get_submodule(owner), prefix)) | set(words(owner.rpartition(".")[2]))
    members = sorted((m for m in members if m.module in flow.order), key=lambda m: flow.order[m.module])
    if said & _ATTENTION:
        return _attention(members, sizes)
    if said & _FEEDFORWARD or owner == members[0].block:
        return _feedforward(members, sizes)
    return {}


def _attention(members: list[Matrix], sizes: Sizes) -> dict[str, Decision]:
    shapes = [m.linear_shape for m in members]
    q, kv, hidden = sizes.q_width, sizes.kv_width, sizes.hidden
    if shapes == [(q + 2 * kv, hidden), (hidden, q)]:
        return {members[0].path: Decision(role="attn.qkv"), members[1].path: Decision(role="attn.o")}
    if len(members) != 4 or shapes[3] != (hidden, q):
        return {}
    roles = {members[3].path: Decision(role="attn.o")}
    for part, names, width in (("q", _Q, q), ("k", _K, kv), ("v", _V, kv)):
        named = [m for m in members[:3] if set(words(m.leaf)) & names and m.linear_shape == (width, hidden)]
        if len(named) != 1:
            return {}
        roles[named[0].path] = Decision(role=f"attn.{part}")
    return roles


def _feedforward(members: list[Matrix], sizes: Sizes) -> dict[str, Decision]:
    hidden = sizes.hidden
    shapes = [m.linear_shape for m in members]
    inner = shapes[-1][1]
    if shapes == [(inner, hidden), (hidden, inner)]:
        return {members[0].path: Decision(role="ffn.up"), members[1].path: Decision(role="ffn.down")}
    if shapes == [(2 * inner, hidden), (hidden, inner)]:
        return {members[0].path: Decision(role="ffn.gate_up"), members[1].path: Decision(role="ffn.down")}
    if shapes == [(inner, hidden), (inner, hidden), (hidden, inner)]:
        roles = {members[2].path: Decision(role="ffn.down")}
        for part in ("gate", "up"):
            named = [m for m in members[:2] if part in words(m.leaf)]
            if len(named) != 1:
                return {}
            roles[named[0].path] = Decision(role=f"ffn.{part}")
        return roles
    return {}
