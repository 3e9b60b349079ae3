"""The reader that looks at names: what the owner and the leaf of a matrix are called, if that says anything.

It can veto: a matrix that behaves like one thing and is called another is unresolved. Where a model could not
be run and so nothing was observed, it proposes, and the shapes decide; it proposes only for owners whose
matrices it can all name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratlas.anatomy.sizes import Sizes
from loratlas.anatomy.structure import Matrix, class_words, words
from loratlas.anatomy.trace import Opinion

if TYPE_CHECKING:
    from torch import nn

# Words of classes and attributes, the model's own name taken off → family.
_FAMILIES = {
    "attn": frozenset({"attention", "attn"}),
    "ffn": frozenset({"mlp", "ffn", "feedforward"}),
    "xattn": frozenset({"crossattention", "cross", "encoder", "enc"}),
    "moe": frozenset({"moe", "expert", "experts", "router", "sparse"}),
    "shared": frozenset({"shared"}),
    "mixer": frozenset({"mamba", "mamba2", "ssm", "recurrent", "rglru", "delta", "conv", "mixer", "rwkv"}),
    "adapter": frozenset({"adapter", "adapters", "lora"}),
    "norm": frozenset({"norm", "layernorm"}),
}
# A family that an enclosing module names outweighs a plain one: a shared expert is also an MLP.
_PLAIN = frozenset({"attn", "ffn"})
# Words of a leaf → part. Leaves that name several parts (query_key_value) are fused and say nothing here.
_PARTS = {
    "q": frozenset({"q", "query"}),
    "k": frozenset({"k", "key"}),
    "v": frozenset({"v", "value"}),
    "gate": frozenset({"gate"}),
    "up": frozenset({"up"}),
    "down": frozenset({"down"}),
}


def family(matrix: Matrix, model: nn.Module, prefix: str) -> frozenset[str]:
    """Families that the modules between the block and the matrix are named after.

    Attribute and class both vote, from the matrix's owner up to, not including, the block.
    """
    said: set[str] = set()
    name = matrix.owner
    while name and name != matrix.block:
        said |= set(words(name.rpartition(".")[2])) | set(class_words(model.get_submodule(name), prefix))
        name = name.rpartition(".")[0]
    if {"feed", "forward"} <= said:
        said.add("feedforward")
    voted = frozenset(one for one, votes in _FAMILIES.items() if votes & said)
    return voted - _PLAIN or voted


def part(matrix: Matrix) -> str | None:
    """The one part that the leaf is named after, if it is one."""
    said = set(words(matrix.leaf))
    named = [one for one, votes in _PARTS.items() if votes & said]
    return named[0] if len(named) == 1 else None


def propose(found: list[Matrix], model: nn.Module, prefix: str, sizes: Sizes) -> dict[str, Opinion]:
    """Roles of a model that did not run, by the owner's name, the leaves' names and the shapes.

    Returns:
        Module → opinion, without layouts: those can only be seen in a run.
    """
    owners: dict[str, list[Matrix]] = {}
    for matrix in found:
        if matrix.block is not None:
            owners.setdefault(matrix.owner, []).append(matrix)
    proposed: dict[str, Opinion] = {}
    for members in owners.values():
        voted = family(members[0], model, prefix)
        if voted == {"attn"}:
            roles = _attention(members, sizes)
        elif voted == {"ffn"}:
            roles = _feedforward(members, sizes)
        else:
            continue
        together = frozenset(roles)
        for module, role in roles.items():
            proposed[module] = Opinion(role=role, layout=None, together=together)
    return proposed


def _attention(members: list[Matrix], sizes: Sizes) -> dict[str, str]:
    by_part = {part(matrix): matrix.module for matrix in members}
    fused = [m for m in members if _fused(m) and m.linear_shape[0] == sizes.q_width + 2 * sizes.kv_width]
    if len(members) == 4 and {"q", "k", "v"} <= set(by_part):
        output = next(m.module for m in members if part(m) not in ("q", "k", "v"))
        return {by_part[one]: f"attn.{one}" for one in "qkv"} | {output: "attn.o"}
    if len(members) == 2 and len(fused) == 1:
        return {m.module: "attn.qkv" if m is fused[0] else "attn.o" for m in members}
    return {}


def _fused(matrix: Matrix) -> bool:
    said = set(words(matrix.leaf))
    return bool(said & {"qkv", "wqkv"}) or all(votes & said for votes in list(_PARTS.values())[:3])


def _feedforward(members: list[Matrix], sizes: Sizes) -> dict[str, str]:
    into = [m for m in members if m.linear_shape[1] == sizes.hidden != m.linear_shape[0]]
    out = [m for m in members if m.linear_shape[0] == sizes.hidden != m.linear_shape[1]]
    if len(out) != 1 or len(into) + 1 != len(members):
        return {}
    inner = out[0].linear_shape[1]
    roles = {out[0].module: "ffn.down"}
    if len(into) == 1 and into[0].linear_shape[0] == inner:
        return roles | {into[0].module: "ffn.up"}
    if sorted(str(part(m)) for m in into) == ["gate", "up"]:
        return roles | {m.module: f"ffn.{part(m)}" for m in into}
    return {}
