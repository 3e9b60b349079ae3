"""Products of two tensors: of a matrix with what it maps, or of two activations with one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loratlas.anatomy.trace.flow_records import MIXED, NOTHING, Label, MatrixCall, View
from loratlas.anatomy.trace.provenance import Labelled, marked

# Product → positions of its factors among the tensors it is given. Names are without the underscore of in-place.
PRODUCTS: dict[str, tuple[int, int]] = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "mv": (0, 1),
    "dot": (0, 1),
    "convolution": (0, 1),
    "_grouped_mm": (0, 1),
}

Made = frozenset[str] | None
"""The parameters that alone a tensor was made of; None where it is an activation, or a constant."""


def product(
    known: Labelled, packet: str, inputs: list[torch.Tensor], made: list[Made], output: torch.Tensor
) -> bool:
    """Carry labels through one product.

    Returns:
        False where neither factor is a matrix and the operation is no product of activations either.
    """
    first, second = PRODUCTS[packet]
    left, right = inputs[first], inputs[second]
    mine = _mine(known, made[first], left), _mine(known, made[second], right)
    if mine[0] and mine[1]:
        # Both made of parameters: the one whose own module runs is the map, the other what it reads.
        mine = (
            mine[0] if known.is_running(mine[0]) else None,
            mine[1] if known.is_running(mine[1]) else None,
        )
    if bool(mine[0]) != bool(mine[1]):
        weight, other = (left, right) if mine[0] else (right, left)
        use = _Use(weight=weight, after=not mine[0], convolution=packet == "convolution")
        _apply(known, mine[0] or mine[1] or frozenset(), other, output, use)
        return True
    if packet == "convolution":
        return False
    _multiply(known, left, right, output)
    return True


def look_up(known: Labelled, made: frozenset[str], numbers: torch.Tensor, output: torch.Tensor) -> None:
    """Rows of a matrix are picked by number."""
    _apply(known, made, numbers, output, None)


def _mine(known: Labelled, made: Made, tensor: torch.Tensor) -> Made:
    return None if made is None or known.of(tensor) else made


def _multiply(known: Labelled, left: torch.Tensor, right: torch.Tensor, output: torch.Tensor) -> None:
    """Activation times activation: scores, or what attends, or a step of a recurrence."""
    out, first, second = known.key(output), known.key(left), known.key(right)
    q, k = known.of(left), known.of(right)
    mine, theirs = known.weights.get(first), known.weights.get(second)
    known.roots.pop(out, None)
    if mine and theirs:
        known.weights[out], known.lengths[out] = mine | theirs, known.lengths[first]
        known.labels[out] = q | k
    elif mine or theirs:
        at = first if mine else second
        known.attend(output, mine or theirs or frozenset(), k if mine else q, known.lengths[at])
    else:
        known.labels[out] = marked(q | k, MIXED)
        if q and k:
            known.products[out] = frozenset({(q, k)})
            known.lengths[out] = (left.shape[-2], right.shape[-1])


def _apply(
    known: Labelled, made: frozenset[str], read: torch.Tensor, output: torch.Tensor, use: _Use | None
) -> None:
    """A matrix is used as a map: what comes out has it as its origin from here on. No use is a look-up."""
    labels = NOTHING if use is None else known.of(read)
    out = known.key(output)
    width, into = (output.shape[-1], 0) if use is None else use.widths(read, output)
    kernel = use is not None and use.kernel
    outside = use is not None and known.from_outside(use.weight)
    used = [(path, alive and not outside) for path, alive in map(known.alias, sorted(made))]
    for first, alive in used:
        before = known.flow.calls.get(first)
        if before is not None and before.stage != known.stage:
            known.flow.repeated.add(first)
        if before is None:
            known.flow.calls[first] = MatrixCall(
                order=len(known.flow.calls),
                stage=known.stage,
                reads=(known.stage, known.key(read), int(read.storage_offset()), read.numel()),
                labels=labels,
                width=width,
                into=into,
                transposed=use is not None and use.transposed,
                lookup=use is None,
                kernel=kernel,
                alive=alive,
            )
    known.products.pop(out, None)
    known.roots.pop(out, None)
    if use is not None and use.convolution:
        own = {Label(View(path, None, width), MIXED if kernel else 0) for path, _ in used}
        known.labels[out] = (marked(labels, MIXED) if kernel else NOTHING) | own
        return
    known.roots[out] = tuple((path, width) for path, _ in used)
    known.labels.pop(out, None)


@dataclass(frozen=True, slots=True)
class _Use:
    """How a factor made of a parameter stood in a product: before or after what it was multiplied with."""

    weight: torch.Tensor
    after: bool
    convolution: bool

    @property
    def kernel(self) -> bool:
        """A convolution over more than one token."""
        return self.convolution and any(size > 1 for size in self.weight.shape[2:])

    @property
    def transposed(self) -> bool:
        """Whether the contracted dimension is the outer one in memory: stored as (d_in, d_out)."""
        if self.weight.ndim < 2 or self.convolution:
            return False
        contracted, kept = (-2, -1) if self.after else (-1, -2)
        return self.weight.stride(contracted) > self.weight.stride(kept)

    def widths(self, read: torch.Tensor, output: torch.Tensor) -> tuple[int, int]:
        """Features that come out, and that go in."""
        if self.convolution:
            return output.shape[1], read.shape[1]
        if not self.after and output.ndim > 1:
            return output.shape[-2], read.shape[-2]  # W x, a column for every token
        return output.shape[-1], read.shape[-1]
