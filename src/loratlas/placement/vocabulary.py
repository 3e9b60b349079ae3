"""The words of the placement language that name matrices, and what each holds.

A word means the same on every model; all of them come from the one table of roles
(:mod:`loratlas.anatomy.role_table`). Whether a model has such a matrix is the resolver's business.

>>> holds("feedforward", "ffn.down"), holds("attention", "attn.relbias"), holds("q", "xattn.q")
(True, False, True)
"""

from __future__ import annotations

from loratlas.anatomy.role_table import FAMILIES, SETS, in_set

ALIASES = {"full": "all", "mlp": "feedforward"}
"""Other spellings of the sets; the canonical text never holds one."""


def holds(word: str, role: str) -> bool:
    """Whether a word, with or without a part behind a dot, holds a role.

    Args:
        word: a set, a family, a part, or a set or family with ``.part`` behind it.
        role: ``family.part``, or a family that has no parts.
    """
    first, _, wanted = word.partition(".")
    family, _, part = role.partition(".")
    if wanted and part != wanted:
        return False
    if first in SETS:
        return in_set(first, role)
    if first in FAMILIES:
        return family == first
    return part == first
