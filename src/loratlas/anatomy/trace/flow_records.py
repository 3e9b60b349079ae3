"""What an observed forward pass leaves behind: who read what, what was multiplied, chosen and mixed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

# Sizes, strides and offset of a view.
Geometry = tuple[tuple[int, ...], tuple[int, ...], int]

# Marks that a label collects on its way.
ACTIVATED, MIXED, ROUTED, POSITIVE = 1, 2, 4, 8
"""Through a nonlinearity; across tokens without softmax; picked by a router's choice; exp or softplus."""


@dataclass(frozen=True, slots=True)
class View:
    """Part of a matrix's output: how the view lies in it, and the width of a whole row."""

    path: str
    geometry: Geometry | None
    width: int


@dataclass(frozen=True, slots=True)
class Attended:
    """What left attention number ``event``."""

    event: int


@dataclass(frozen=True, slots=True)
class Stream:
    """What entered the block: 0 is the residual stream, others are a second stream or an encoder's states."""

    number: int


@dataclass(frozen=True, slots=True)
class Label:
    """One origin of an activation, and the marks collected on the way."""

    origin: View | Attended | Stream
    marks: int = 0

    @property
    def activated(self) -> bool:
        """Whether a nonlinearity lay on the way."""
        return bool(self.marks & ACTIVATED)


Labels = frozenset[Label]
NOTHING: Labels = frozenset()


@lru_cache(maxsize=64)  # the blocks of a model look alike
def columns(geometry: Geometry, width: int) -> frozenset[int]:
    """Which columns of an output of this width a view with this geometry holds.

    >>> sorted(columns(((1, 4, 2, 3), (48, 12, 6, 1), 2), 12))
    [2, 3, 4, 8, 9, 10]
    """
    sizes, strides, offset = geometry
    if 0 in sizes:
        return frozenset()
    touched = {offset % width}
    for size, stride in zip(sizes, strides, strict=True):
        if size > 1 and stride % width:
            touched = {(column + step * stride) % width for column in touched for step in range(size)}
    return frozenset(touched)


@dataclass(frozen=True, slots=True)
class MatrixCall:
    """The first use of a matrix as a map.

    Args:
        order: position among all calls.
        stage: number of the block's run in which it happened.
        reads: key of the tensor it reads; equal keys are the same tensor.
        labels: where that tensor comes from.
        width: features of the output.
        into: features of what it reads.
        transposed: whether it is stored as (d_in, d_out).
        lookup: whether rows were looked up instead of multiplied.
        kernel: whether it is a convolution over more than one token.
        alive: whether its module's own forward did it, and read it there: what replaces the module acts.
    """

    order: int
    stage: int
    reads: tuple[int, ...]
    labels: Labels
    width: int
    into: int = 0
    transposed: bool = False
    lookup: bool = False
    kernel: bool = False
    alive: bool = True


@dataclass(slots=True)
class AttentionFlow:
    """One product → softmax → product, and what went in.

    ``pairs`` are all products that were summed to the scores; ``lengths`` the numbers of queries and keys.
    """

    pairs: frozenset[tuple[Labels, Labels]]
    v: Labels
    lengths: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Gate:
    """One elementwise product of an activated output with another one."""

    gate: Labels
    up: Labels


@dataclass(frozen=True, slots=True)
class Choice:
    """A top-k: over what it chose, and whether the scores came from a product of activations."""

    labels: Labels
    size: int
    scored: bool


@dataclass(slots=True)
class Flow:
    """What one forward pass showed.

    Args:
        calls: parameter → its first use as a map.
        attentions: all attention operations.
        gates: all gating products.
        choices: all top-k.
        biases: parameters whose look-ups or outputs were added to attention scores.
        routed: parameters of which a choice picked parts.
        uses: parameter → names of the elementwise operations that read it.
        outputs: labels of what the model returned as logits.
        repeated: parameters that served more than one block.
        odd: parameters whose module returns something else than their map's result.
        twins: block → an earlier block that is built alike and was observed in its place.
        complete: whether the pass came to its end.
        reason: why it did not.
    """

    calls: dict[str, MatrixCall] = field(default_factory=dict)
    attentions: list[AttentionFlow] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    biases: set[str] = field(default_factory=set)
    routed: set[str] = field(default_factory=set)
    uses: dict[str, set[str]] = field(default_factory=dict)
    outputs: Labels = NOTHING
    repeated: set[str] = field(default_factory=set)
    odd: set[str] = field(default_factory=set)
    twins: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    reason: str = ""
