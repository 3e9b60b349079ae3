"""The one table of roles: what a matrix can do in a model, and everything else that is known by its role.

The words of placements, the readers, the FLOP count and the probe read this table. A new role is one row.

>>> sorted(ROLES["attn.q"].sets), ROLES["attn.q"].tokens, ROLES["attn.q_b"].after
(['all', 'attention'], 'mixes tokens', ('q_a',))
>>> ROLES["router"].sets, "mixer.dt" in ROLES
(frozenset(), True)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TEXT_SCOPES = frozenset({"decoder", "encoder"})
"""The towers that read and write text: what a word means without a scope."""

SCOPES = ("decoder", "encoder", "vision", "audio", "connector")
"""All towers."""

SETS = ("all", "attention", "feedforward")
"""Words for many roles at once."""

MIXES, POINTWISE = "mixes tokens", "pointwise"
"""What a matrix is part of: something that lets tokens reach one another, or work on each token alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One row: what a matrix with this role does.

    Args:
        family: of the role, e.g. ``"attn"``.
        part: after the dot; empty where the family has no parts.
        sets: of `SETS`, those that hold it. A role in none of them is adapted only by name.
        block: the step of a block in which it works: ``mixing``, ``cross``, ``pointwise``; empty for what stands
            outside the blocks or on the residual stream.
        stage: order among the roles of its family: what reads the block's stream is 0, and every lower stage of the
            family leads into a higher one.
        after: parts that lead into it, where that is not every lower stage of its family.
        tokens: `MIXES` or `POINTWISE`: what the probe is expected to find; None where a role says nothing.
        observed: whether it shows in an observed pass: a matrix that is named so and does not behave so is not it.
        use: ``map`` (multiplied with an activation), ``rows`` (looked up) or ``values`` (no linear map).
        differentiable: whether a gradient of the loss passes its output.
        covers: parts whose work it does, wholly or in part: a fused ``qkv`` covers q, k and v.
    """

    family: str
    part: str = ""
    sets: frozenset[str] = frozenset()
    block: Literal["mixing", "cross", "pointwise", ""] = ""
    stage: int = 0
    after: tuple[str, ...] | None = None
    tokens: str | None = None
    observed: bool = False
    use: Literal["map", "rows", "values"] = "map"
    differentiable: bool = True
    covers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``family.part``, or the family alone."""
        return f"{self.family}.{self.part}" if self.part else self.family


_ATTENTION, _FEEDFORWARD, _ALL = (frozenset({"all", name}) for name in ("attention", "feedforward", "all"))


def _attention(part: str, **known: object) -> list[Role]:
    """A row of both attentions."""
    both = (("attn", "mixing"), ("xattn", "cross"))
    given = {"sets": _ATTENTION, "tokens": MIXES, "observed": True, **known}
    return [Role(family=family, part=part, block=block, **given) for family, block in both]  # pyright: ignore[reportArgumentType]


def _mixer(part: str, **known: object) -> list[Role]:
    """A row of state spaces, linear attention and short convolution blocks."""
    given = {"sets": _ALL, "tokens": MIXES, "observed": True, **known}
    return [Role(family="mixer", part=part, block="mixing", **given)]  # pyright: ignore[reportArgumentType]


def _feedforward(part: str, **known: object) -> list[Role]:
    """A row of dense feed-forwards, shared and routed experts."""
    given = {"sets": _FEEDFORWARD, "tokens": POINTWISE, "observed": True, "block": "pointwise", **known}
    return [Role(family=family, part=part, **given) for family in ("ffn", "shared", "moe")]  # pyright: ignore[reportArgumentType]


_ROWS: tuple[Role, ...] = (
    Role(family="embed", use="rows"),
    *_attention("q", covers=("q",)),
    *_attention("k", covers=("k",)),
    *_attention("v", covers=("v",)),
    *_attention("o", stage=2, covers=("o",)),
    *_attention("qkv", covers=("q", "k", "v")),
    *_attention("kv", covers=("k", "v")),
    *_attention("qk", covers=("q", "k")),
    *_attention("q_a", covers=("q",)),
    *_attention("q_b", stage=1, after=("q_a",), covers=("q",)),
    *_attention("kv_a", covers=("k", "v")),
    *_attention("kv_b", stage=1, after=("kv_a",), covers=("k", "v")),
    *_attention("o_a", stage=2, covers=("o",)),
    *_attention("o_b", stage=3, covers=("o",)),
    *_attention("gate"),
    *_attention("rel", sets=frozenset(), observed=False),
    # An index says which keys are attended to: a choice, which passes no gradient on.
    *_attention("index", stage=1, after=("q_a",), sets=frozenset(), observed=False, differentiable=False),
    *_attention("relbias", sets=frozenset(), observed=False, use="rows"),
    # Adapters that a base brings along, such as Zamba2's beside its tied blocks.
    *_attention("adapter", sets=frozenset(), observed=False, tokens=None),
    *_feedforward("gate", covers=("gate",)),
    *_feedforward("up", covers=("up",)),
    *_feedforward("gate_up", covers=("gate", "up")),
    *_feedforward("down", stage=1),
    Role(family="ffn", part="adapter", block="pointwise"),
    Role(family="router", block="pointwise", tokens=POINTWISE),
    Role(family="shared_gate", block="pointwise", tokens=POINTWISE),
    *_mixer("in"),
    *_mixer("q", covers=("q",)),
    *_mixer("k", covers=("k",)),
    *_mixer("v", covers=("v",)),
    *_mixer("qkv", covers=("q", "k", "v")),
    *_mixer("gate"),
    *_mixer("decay", sets=frozenset()),
    *_mixer("beta", sets=frozenset()),
    *_mixer("x", sets=frozenset(), stage=1, after=("in",)),
    *_mixer("dt", sets=frozenset(), stage=2, after=("in", "x")),
    *_mixer("out", stage=3, covers=("o",)),
    Role(family="conv", block="mixing", stage=1, after=("in", "qkv", "q", "k", "v")),
    Role(family="adapter"),
    Role(family="residual"),
    Role(family="proj"),
    Role(family="head", part="transform"),
    Role(family="head", part="lm", stage=1),
    Role(family="head", part="cls", stage=1),
    Role(family="vector", use="values"),
)

ROLES: dict[str, Role] = {row.name: row for row in _ROWS}
"""Name → row, in the order in which words are listed to people."""

FAMILIES = tuple(dict.fromkeys(row.family for row in _ROWS))

PARTS_OF: dict[str, tuple[str, ...]] = {
    family: parts
    for family in FAMILIES
    if (parts := tuple(row.part for row in _ROWS if row.family == family and row.part))
}
"""Family → its parts, of families that have some."""

PARTS = tuple(dict.fromkeys(part for parts in PARTS_OF.values() for part in parts))

_FAMILY_TOKENS: dict[str, str] = {row.family: row.tokens for row in _ROWS if row.tokens is not None}
OBSERVED_FAMILIES = frozenset(row.family for row in _ROWS if row.observed)
"""Families whose work shows in an observed pass."""

ATTENTION_FAMILIES = frozenset(row.family for row in _ROWS if "attention" in row.sets)
"""Families of softmax attention."""

EXPERT_FAMILIES = frozenset({"moe", "shared"})
"""Families whose matrices may be stacks of experts, routed or shared."""


def family_of(role: str) -> str:
    """The family of a role, or of a family alone.

    >>> family_of("attn.q"), family_of("router")
    ('attn', 'router')
    """
    return role.partition(".")[0]


def tokens(role: str) -> str | None:
    """What a role, or a family alone, says about tokens: `MIXES`, `POINTWISE`, or nothing.

    >>> tokens("attn.q"), tokens("ffn.down"), tokens("embed"), tokens("mixer"), tokens("attn.adapter")
    ('mixes tokens', 'pointwise', None, 'mixes tokens', None)
    """
    row = ROLES.get(role)
    return row.tokens if row is not None else _FAMILY_TOKENS.get(role)


def observable(role: str) -> bool:
    """Whether a matrix of this role, or of some role of this family, shows in an observed pass.

    >>> observable("attn.q"), observable("attn.rel"), observable("mixer"), observable("embed")
    (True, False, True, False)
    """
    row = ROLES.get(role)
    return row.observed if row is not None else role in OBSERVED_FAMILIES


def in_set(name: str, role: str) -> bool:
    """Whether a set holds a role.

    Args:
        name: ``all``, ``attention`` or ``feedforward``.
        role: ``family.part``, or a family without parts.

    >>> in_set("attention", "attn.q"), in_set("attention", "attn.relbias"), in_set("all", "mixer.in")
    (True, False, True)
    """
    row = ROLES.get(role)
    return row is not None and name in row.sets


def related_parts(part: str) -> tuple[str, ...]:
    """Parts that do the work of this one, or some of it, on models that fuse or split differently.

    >>> related_parts("gate_up"), related_parts("v")
    (('gate', 'up'), ('qkv', 'kv', 'kv_a', 'kv_b'))
    """
    mine = {one for row in _ROWS if row.part == part for one in row.covers}
    return tuple(dict.fromkeys(row.part for row in _ROWS if row.part != part and mine & {*row.covers}))
