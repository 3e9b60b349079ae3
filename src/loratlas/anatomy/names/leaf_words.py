"""From the name of a leaf to a part: ``k_proj`` in an attention is ``k``, ``Wi`` in a feed-forward ``up``."""

from __future__ import annotations

from loratlas.anatomy.structure import Matrix, words

Votes = tuple[tuple[str, frozenset[str]], ...]

# Words that are only dressing.
_DRESS = frozenset({"proj", "linear", "lin", "layer", "head", "project", "kernel", "weight", "h", "to", "c"})

_ATTENTION: Votes = (
    ("q", frozenset({"q", "query", "wq"})),
    ("k", frozenset({"k", "key", "wk"})),
    ("v", frozenset({"v", "value", "wv"})),
    ("o", frozenset({"o", "out", "output", "wo", "dense", "post"})),
)
_MIXER: Votes = (
    ("out", frozenset({"out", "o", "output"})),
    ("gate", frozenset({"z", "g", "gate", "ogate", "receptance", "y"})),
    ("beta", frozenset({"b", "ba", "beta", "igate"})),
    ("decay", frozenset({"a", "f", "fgate", "decay"})),
    ("dt", frozenset({"dt"})),
    ("qkv", frozenset({"qkv"})),
    ("q", frozenset({"q", "query"})),
    ("k", frozenset({"k", "key"})),
    ("v", frozenset({"v", "value"})),
    ("in", frozenset({"in", "qkvz"})),
)
_FEEDFORWARD = {
    "w2": "down",
    "w3": "up",
    "v1": "up",
    "w_0": "gate",
    "w_1": "up",
    "w_out": "down",
    "wi_0": "gate",
    "wi_1": "up",
    "receptance": "gate",
    "proj_up_gate": "gate",
    "proj_up": "up",
    "c_fc": "up",
    "c_proj": "down",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
}


def leaf_words(matrix: Matrix) -> tuple[str, ...]:
    """Words of the leaf; of one that is only a wrapped ``linear`` those of the module around it."""
    said = words(matrix.leaf)
    if set(said) <= {"linear"} and matrix.trail and matrix.near[1] == ("linear",):
        return matrix.near[0]
    return said


def attention(matrix: Matrix, said: frozenset[str]) -> str | None:
    """Part of a matrix that an attention owns; None where its name says nothing certain."""
    bare = said - _DRESS
    near = {word for level in matrix.near for word in level}
    if near & {"moa", "experts"}:
        return next((part for word, part in (("input", "q"), ("output", "o")) if word in said), None)
    if matrix.kind == "embedding":
        return "rel" if said & {"rel", "pos"} else None
    if said & {"indexer", "indexers", "index"}:
        return "index"
    if (bare & {"conv", "dt", "sink", "static"} or "sconv" in near) and matrix.kind != "conv":
        return None
    if "gate" in said or bare == {"g"}:
        return "gate"
    if bare & {"pos", "rel", "relative", "position"} or bare == {"r"}:
        return "rel"
    if {"kv", "mqa"} <= said:
        return "kv_a"
    if bare & {"qkv", "wqkv"} or {"q", "k", "v"} <= said or {"query", "key", "value"} <= said:
        return "qkv"
    if "kv" in bare or {"k", "v"} <= said or {"key", "value"} <= said:
        return _half("kv", bare)
    if {"query", "key"} <= said or "qk" in bare:
        return "qk"
    for part, votes in _ATTENTION:
        if bare & votes:
            return _half(part, bare)
    if matrix.leaf in ("c_attn", "in_proj", "in_proj_weight"):
        # Its name does not say what it holds; its rows do.
        rows, columns = matrix.linear_shape
        return "kv" if rows == 2 * columns else "qkv"
    if matrix.leaf in ("c_proj", "proj") or (matrix.kind == "conv" and "post" in near):
        return "o"
    return None


def _half(part: str, bare: frozenset[str]) -> str:
    half = next((one for one in ("a", "b") if one in bare and part in ("q", "kv", "o")), None)
    return f"{part}_{half}" if half else part


def mixer(matrix: Matrix, said: frozenset[str], siblings: list[Matrix]) -> str | None:
    """Part of a matrix that a recurrence, linear attention or short convolution owns."""
    bare = said - {"proj", "linear", "weight", "preact"}
    if {"output", "gate"} <= bare:
        return "gate"
    if {"input", "gate"} <= bare:
        return "beta"  # how much of the input is written, as an mLSTM's input gate or a delta rule's strength
    if {"recurrent", "gate"} <= bare:
        return "decay"  # how much of the state is kept
    for half in ("f", "g"):
        if half in bare and bare & {"a", "b"}:
            return "decay" if half == "f" else "gate"
    if bare == {"x"}:
        # Mamba's x projection reads the convolved stream; a gated recurrence calls its input branch so.
        return "x" if any("dt" in words(other.leaf) for other in siblings) else "in"
    last = bare - {"in"} if len(bare) > 1 else bare
    return next((part for part, votes in _MIXER if last & votes), None)


def feedforward(matrix: Matrix, said: frozenset[str], siblings: list[Matrix]) -> str | None:
    """Part of a matrix that a feed-forward, a shared or a routed expert owns."""
    if matrix.kind == "embedding":
        return None
    if matrix.leaf == "w1":
        return "gate" if {other.leaf for other in siblings} & {"w3", "v1"} else "up"
    if matrix.leaf in _FEEDFORWARD:
        return _FEEDFORWARD[matrix.leaf]
    if {"gate", "up"} <= said:
        return "gate_up"
    for part in ("gate", "up", "down"):
        if part in said:
            return part
    near = {word for level in matrix.near for word in level}
    if said & {"wi", "intermediate", "input", "in"} or "intermediate" in near or _numbered(matrix, "1"):
        return _up_or_both(matrix, siblings)
    if said & {"wo", "output", "out"} or "output" in near or _numbered(matrix, "2"):
        return "down"
    if "key" in said:
        return "up"
    if "value" in said:
        return "down"
    rows, columns = matrix.linear_shape
    return None if rows == columns else "up" if rows > columns else "down"


def inner(siblings: list[Matrix]) -> int:
    """Width between the matrices of a feed-forward, read off the one called ``down``; 0 without one."""
    return next((other.linear_shape[1] for other in siblings if "down" in words(other.leaf)), 0)


def _numbered(matrix: Matrix, number: str) -> bool:
    """``fc1``, ``lin1``, ``linear_1``, ``dense1``, ``layer_1``: the first or second of two."""
    said = words(matrix.leaf)
    return (
        len(said) > 1 and said[-1] == number and said[-2] in {"fc", "fc1", "lin", "linear", "dense", "layer"}
    )


def _up_or_both(matrix: Matrix, siblings: list[Matrix]) -> str:
    others = [other.linear_shape[1] for other in siblings if other.path != matrix.path]
    return "gate_up" if len(others) == 1 and matrix.linear_shape[0] == 2 * others[0] else "up"
