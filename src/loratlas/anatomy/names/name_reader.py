"""The reader that looks at names: what the owners of a matrix and its leaf are called, and what shape it has.

Owners are read from the inside out, by class first and attribute second, with the model's own name taken off:
the nearest one that names a family decides. The leaf then names the part
(:mod:`loratlas.anatomy.names.leaf_words`). Where
a leaf says nothing (``dense``, ``fc1``, ``wi``), its owner's name or the shapes of the matrices beside it do;
where these do not either, nothing is proposed.
"""

from __future__ import annotations

from loratlas.anatomy.names import leaf_words
from loratlas.anatomy.structure import Level, Matrix, words

# Words of classes and attributes → family, in the order in which they outweigh one another at one level.
_FAMILIES: tuple[tuple[str, frozenset[str]], ...] = (
    ("adapter", frozenset({"adapter", "adapters"})),
    ("residual", frozenset({"bottleneck", "hc", "hyper", "altup", "laurel"})),
    ("norm", frozenset({"norm", "layernorm", "rmsnorm"})),
    ("attn.index", frozenset({"indexer"})),
    ("router", frozenset({"router", "routing"})),
    ("shared", frozenset({"shared"})),
    ("moe", frozenset({"expert", "experts"})),
    ("xattn", frozenset({"cross", "crossattention"})),
    (
        "mixer",
        frozenset({"mamba", "mamba2", "ssm", "rglru", "recurrent", "delta", "lightning", "mlstm", "forget"}),
    ),
    ("attn", frozenset({"attention", "attn", "att", "mla", "moa", "compressor", "attentions"})),
    ("conv", frozenset({"conv", "sconv", "convolution"})),
    ("ffn", frozenset({"mlp", "mlps", "ffn", "ffns", "feedforward", "intermediate", "ff"})),
)
# A cross-attention under an attribute such as EncDecAttention, encoder_attn, crossattention.self.
_CROSS = (frozenset({"enc", "dec"}), frozenset({"encoder", "attn"}))


def family(matrix: Matrix) -> str | None:
    """The family that the owners of a matrix are named after; None where no owner names one."""
    deaf = frozenset({"conv", "norm", "layer"}) if _pointwise(matrix) else frozenset[str]()
    levels = [(), *reversed(matrix.trail)]
    for number, level in enumerate(levels):
        attribute, cls = level or ((), _holder(matrix))
        vote = _vote(frozenset(cls) - deaf, frozenset(attribute) - deaf)
        if vote is not None:
            # The class here has had its vote; its attribute and all that stands around may refine it.
            return _refined(vote, [set(attribute), *({*a, *c} for a, c in levels[number + 1 :])])
    return None


def _holder(matrix: Matrix) -> tuple[str, ...]:
    """Of the class that holds the tensor only this is heard: a router or a stack of experts of its own."""
    said = matrix.held
    return said if set(said) & {"router", "experts"} and "adapter" not in said else ()


def _vote(cls: frozenset[str], attribute: frozenset[str]) -> str | None:
    if "shared" in attribute and attribute & {"expert", "experts", "mlp"}:
        return "shared"
    if {"linear", "attn"} <= attribute and "attention" not in cls:
        return "mixer"
    for said in (cls, attribute):
        if {"feed", "forward"} <= said or {"dense", "relu"} <= said:
            return "ffn"
        if {"short", "conv"} <= said:
            return "mixer"
        voted = next((name for name, votes in _FAMILIES if votes & said), None)
        if voted is not None:
            return voted
        if said is cls and "mixer" in said:
            return "mixer"
    return None


def _refined(found: str, around: list[set[str]]) -> str:
    """An attention inside a cross-attention is one as well, an MLP among experts an expert."""
    for said in around:
        if found == "attn" and (said & {"crossattention", "cross"} or any(one <= said for one in _CROSS)):
            return "xattn"
        if found == "moe" and "moa" in said:
            return "attn"
        if found == "ffn":
            if "shared" in said and said & {"expert", "experts", "mlp"}:
                return "shared"
            if said & {"expert", "experts"}:
                return "moe"
            if "router" in said:
                return "router"
            if said & {"norm", "layernorm"}:
                return "norm"
    return found


def propose(matrices: list[Matrix]) -> dict[str, str]:
    """Roles of the matrices in blocks, and of those outside that a family claims.

    Args:
        matrices: all matrices of the model.

    Returns:
        Path → role, for those that have one.
    """
    siblings: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        siblings.setdefault(matrix.owner, []).append(matrix)
    mixed = {matrix.block for matrix in matrices if matrix.block and family(matrix) == "moe"}
    routers = {
        matrix.owner
        for matrix in matrices
        if _role(matrix, siblings[matrix.owner]) == "router" and matrix.block
    }
    proposed: dict[str, str] = {}
    for matrix in matrices:
        role = _role(matrix, siblings[matrix.owner])
        if role is None:
            continue
        if role.startswith("shared.") and matrix.block not in mixed:
            role = "ffn." + role.removeprefix("shared.")  # shared with nobody: the only feed-forward
        if role.startswith("ffn.") and matrix.owner in routers:
            role = "shared." + role.removeprefix("ffn.")  # a mixture's own projections, beside its router
        proposed[matrix.path] = role
    return proposed


def _role(matrix: Matrix, siblings: list[Matrix]) -> str | None:
    said = frozenset(leaf_words.leaf_words(matrix))
    voted = family(matrix)
    if matrix.kind == "parameter" and _no_map(matrix, said):
        return "vector"
    if said & {"rel", "relative"} and "bias" in said:
        return "attn.relbias"
    if matrix.kind == "conv":
        role = _inside(matrix, said, voted, siblings) if _pointwise(matrix) else None
        return role or "conv"
    return _inside(matrix, said, voted, siblings)


def _no_map(matrix: Matrix, said: frozenset[str]) -> bool:
    if max(matrix.shape) == matrix.parameter.numel():
        return True  # one row, however many dimensions it is written in
    named = said & {"bias", "biases", "scale", "embed", "log", "mix", "token", "emb", "norm"} or said == {"d"}
    return bool(named) and not (said & {"pos"} and said & {"rel"})


def _inside(matrix: Matrix, said: frozenset[str], voted: str | None, siblings: list[Matrix]) -> str | None:
    if voted == "adapter":
        return _adapter(matrix)
    if matrix.block is not None and ("per" in said and "layer" in said):
        return "residual"
    if ("router" in said and voted != "residual") or _gate_of_experts(matrix, voted):
        return "router"
    if any(other.leaf == "receptance" for other in siblings) and voted == "attn":
        voted = "mixer"  # RWKV calls its recurrence attention
    if voted is None:
        return _bare(matrix, said, siblings)
    if voted in ("residual", "router", "attn.index"):
        return voted
    if voted == "norm":
        return "residual" if matrix.kind == "linear" and matrix.block is not None else None
    part = None
    if voted in ("attn", "xattn"):
        part = leaf_words.attention(matrix, said)
    elif voted == "mixer":
        part = leaf_words.mixer(matrix, said, siblings)
    elif voted in ("ffn", "moe", "shared"):
        if {"shared", "gate"} <= said:
            return "shared_gate"
        part = leaf_words.feedforward(matrix, said, siblings)
        if (
            part == "gate"
            and voted == "ffn"
            and _sparse(matrix)
            and leaf_words.inner(siblings) != matrix.shape[0]
        ):
            return "router"
    return f"{voted}.{part}" if part else None


def _adapter(matrix: Matrix) -> str:
    """An adapter of the base itself: of attention, of the feed-forward, or of the stream."""
    for attribute, cls in reversed(matrix.trail):
        vote = _vote(frozenset(cls), frozenset(attribute))
        if vote in ("attn", "ffn"):
            return f"{vote}.adapter"
    return "adapter"


def _gate_of_experts(matrix: Matrix, voted: str | None) -> bool:
    attribute, cls = matrix.near
    return voted in (None, "ffn") and set(attribute) == {"gate"} and "gate" in cls


def _sparse(matrix: Matrix) -> bool:
    return any("moe" in level or {"sparse", "block"} <= set(level) for level in matrix.near)


def _pointwise(matrix: Matrix) -> bool:
    return matrix.kind == "conv" and all(size == 1 for size in matrix.shape[2:])


def _bare(matrix: Matrix, said: frozenset[str], siblings: list[Matrix]) -> str | None:
    """No owner names a family: the leaf stands in the block itself, or in ``output`` beside ``intermediate``."""
    if matrix.block is None:
        return None
    near: Level = matrix.near
    if said & {"ffn", "fc", "intermediate"} or {"intermediate", "output"} & {*near[0], *near[1]}:
        part = leaf_words.feedforward(matrix, said, siblings)
        return f"ffn.{part}" if part else None
    if said == {"linear"} and words(matrix.leaf) == ("linear",):
        return "residual"
    return None
