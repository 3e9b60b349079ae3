"""Whether the shapes of the matrices around one bear out what it is called.

The third witness, asked where the pass did not show a matrix: queries, keys and values read the same width, the
output leads back, gate and up are alike and down undoes them.
"""

from __future__ import annotations

from loratlas.anatomy.structure import Matrix


def bears_out(matrix: Matrix, role: str, block: list[Matrix], named: dict[str, str]) -> bool:
    """Check the relations among the matrices of one attention or feed-forward.

    Args:
        matrix: the one in question.
        role: what its name says.
        block: all matrices of its block.
        named: path → role by name.

    Returns:
        False where a partner is missing or its shape does not fit.
    """
    family = role.partition(".")[0]
    best = False
    for depth in range(matrix.path.count("."), (matrix.block or "").count("."), -1):
        around = ".".join(matrix.path.split(".")[:depth]) + "."
        parts: dict[str, set[tuple[int, int]]] = {}
        for other in block:
            said = named.get(other.path, "")
            if other.path.startswith(around) and said.partition(".")[0] == family:
                parts.setdefault(said.partition(".")[2], set()).add(_shape(other))
        if family in ("attn", "xattn"):
            best = _attention(parts, family)
        elif family in ("ffn", "moe", "shared"):
            best = _feedforward(parts)
        if best:
            return True
    return best


def _shape(matrix: Matrix) -> tuple[int, int]:
    if matrix.kind == "parameter" and len(matrix.shape) == 3 and matrix.raw:
        return matrix.shape[-2], matrix.shape[-1]
    return matrix.linear_shape


def _attention(parts: dict[str, set[tuple[int, int]]], family: str) -> bool:
    outputs = parts.get("o", set())
    if len(outputs) != 1:
        return False
    o_out, o_in = next(iter(outputs))
    if "kv_a" in parts or "kv_b" in parts:
        return _latent(parts, o_out, o_in)
    if "qkv" in parts:
        return all(rows > o_in and (rows - o_in) % 2 == 0 and into == o_out for rows, into in parts["qkv"])
    q = parts.get("q", set())
    if len(q) != 1:
        return False
    q_rows, q_in = next(iter(q))
    if "kv" in parts:
        return q_rows == o_in and all(rows % 2 == 0 for rows, _ in parts["kv"])
    k, v = parts.get("k", set()), parts.get("v", set())
    if len(k) != 1 or len(v) != 1:
        return False
    (k_rows, k_in), (v_rows, v_in) = next(iter(k)), next(iter(v))
    same = k_in == v_in and (family == "xattn" or q_in == k_in)
    return same and q_rows % k_rows == 0 and o_in * k_rows == q_rows * v_rows


def _latent(parts: dict[str, set[tuple[int, int]]], o_out: int, o_in: int) -> bool:
    """Queries or keys and values through a narrow middle; beside the latter may stand keys of the position."""
    if any(len(sizes) != 1 for sizes in parts.values()) or not {"kv_a", "kv_b"} <= parts.keys():
        return False
    shapes = {part: next(iter(sizes)) for part, sizes in parts.items()}
    (kv_a_rows, kv_a_in), (kv_b_rows, kv_b_in) = shapes["kv_a"], shapes["kv_b"]
    if kv_a_in != o_out or kv_b_in > kv_a_rows or o_in > kv_b_rows:
        return False
    if "q" in shapes:
        return shapes["q"][1] == o_out
    return {"q_a", "q_b"} <= shapes.keys() and shapes["q_a"] == (shapes["q_b"][1], o_out)


def _feedforward(parts: dict[str, set[tuple[int, int]]]) -> bool:
    down = parts.get("down", set())
    if len(down) != 1:
        return False
    width, inner = next(iter(down))
    if "gate_up" in parts:
        return parts["gate_up"] == {(2 * inner, width)}
    return parts.get("up") == {(inner, width)} and parts.get("gate", {(inner, width)}) == {(inner, width)}
