"""Where every tensor comes from, kept by storage: a view carries what its base carries."""

from __future__ import annotations

from typing import Any

import torch

from loratlas.anatomy.trace.flow_records import (
    NOTHING,
    Attended,
    AttentionFlow,
    Choice,
    Flow,
    Gate,
    Label,
    Labels,
    Stream,
    View,
)

Pairs = frozenset[tuple[Labels, Labels]]
"""Products of activations that were summed: what went into each, left and right."""


class Labelled:
    """The labels of all tensors since the last block was entered.

    Args:
        flow: what is filled.
        parameters: parameter → its names, in the model's order; all of two or more dimensions.
    """

    def __init__(self, flow: Flow, parameters: list[tuple[torch.Tensor, list[str]]]) -> None:
        self.flow = flow
        self.parameters = parameters
        self.running: list[str] = []
        self.stage = 0
        self.forget()

    def forget(self) -> None:
        """Drop all labels: what comes next is followed by itself (called at the entry of every block)."""
        self.stage += 1
        self.kept: list[Any] = []  # storages stay alive, so that their addresses stay distinct
        # Outputs of matrices, and sums of several: path and width of each.
        self.roots: dict[int, tuple[tuple[str, int], ...]] = {}
        self.labels: dict[int, Labels] = {}
        # Scores that products of activations made, before and after their softmax.
        self.products: dict[int, Pairs] = {}
        self.weights: dict[int, Pairs] = {}
        self.lengths: dict[int, tuple[int, int]] = {}
        self.chosen: dict[int, Choice] = {}
        self.made_of: dict[int, frozenset[str]] = {}
        self.parts: set[tuple[int, int]] = set()  # of parameters, cut out while their module did not run
        self.names: dict[str, list[str]] = {}
        for parameter, names in self.parameters:
            self.names[names[0]] = names
            self.made_of[self.key(parameter)] = frozenset({names[0]})

    def stream(self, tensor: torch.Tensor, number: int) -> None:
        """What enters a block."""
        self.labels[self.key(tensor)] = frozenset({Label(Stream(number))})
        self.roots.pop(self.key(tensor), None)

    def of(self, tensor: torch.Tensor) -> Labels:
        """Where a tensor comes from; numbers and masks come from nowhere."""
        if not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
            return NOTHING
        key = self.key(tensor)
        if key in self.roots:
            geometry = (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
            return frozenset(Label(View(path, geometry, width)) for path, width in self.roots[key])
        return self.labels.get(key, NOTHING)

    def key(self, tensor: torch.Tensor) -> int:
        """One number per storage."""
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        return storage._cdata

    def sum(self, terms: list[torch.Tensor], output: torch.Tensor) -> bool:
        """Keep what a sum of two whole outputs can be cut into; false where it is no such sum."""
        keys = [self.key(term) for term in terms]
        whole = all(term.shape == output.shape and term.is_contiguous() for term in terms)
        if len(keys) != 2 or not whole or any(key not in self.roots for key in keys):
            return False
        out = self.key(output)
        self.roots[out] = tuple(dict.fromkeys(self.roots[keys[0]] + self.roots[keys[1]]))
        self.labels.pop(out, None)
        return True

    def attend(self, output: torch.Tensor, pairs: Pairs, v: Labels, lengths: tuple[int, int]) -> None:
        """Note one attention operation; ``output`` is what came out."""
        key = self.key(output)
        self.roots.pop(key, None)
        self.labels[key] = frozenset({Label(Attended(len(self.flow.attentions)))})
        self.flow.attentions.append(AttentionFlow(pairs, v, lengths))

    def gate(self, left: Labels, right: Labels) -> None:
        """Note an elementwise product of two different outputs, one of them activated."""
        if not left or not right or {item.origin for item in left} & {item.origin for item in right}:
            return
        first, second = (any(item.activated for item in side) for side in (left, right))
        if first != second:
            self.flow.gates.append(Gate(left, right) if first else Gate(right, left))
        elif first:
            self.flow.gates += [Gate(left, right), Gate(right, left)]

    def cut(self, whole: torch.Tensor, views: list[torch.Tensor]) -> None:
        """Note parts of a parameter that are cut out where its own module does not run."""
        made = self.made_of.get(self.key(whole))
        if made is not None and not self.is_running(made):
            self.parts |= {
                (self.key(view), int(view.storage_offset())) for view in views if view.numel() < whole.numel()
            }

    def from_outside(self, weight: torch.Tensor) -> bool:
        """Whether this is such a part: what stands in for its module came too late to change it."""
        return (self.key(weight), int(weight.storage_offset())) in self.parts

    def alias(self, name: str) -> tuple[str, bool]:
        """Of the names of one parameter the one whose module runs, and whether one of them does."""
        running = set(self.running)
        for path in self.names[name]:
            if path.rpartition(".")[0] in running:
                return path, True
        return name, False

    def named(self, made: frozenset[str]) -> set[str]:
        """The parameters that something was made of, by the names under which they are in use."""
        return {self.alias(name)[0] for name in made}

    def is_running(self, made: frozenset[str]) -> bool:
        """Whether the module of one of these parameters is at work."""
        return any(self.alias(name)[1] for name in made)


def marked(labels: Labels, marks: int) -> Labels:
    """The same origins, marked."""
    return frozenset(Label(label.origin, label.marks | marks) for label in labels)
