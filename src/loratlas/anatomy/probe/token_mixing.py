"""Which modules mix tokens by what they do themselves, found by trying them out one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from loratlas.anatomy.dummy_inputs import inputs, silent_towers, tower_inputs
from loratlas.anatomy.probe.replay import (
    EVERYWHERE,
    Forward,
    ModuleCall,
    Recorded,
    Reruns,
    copied,
    replaced,
    tensors,
)
from loratlas.anatomy.trace.observe import built

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loratlas.anatomy.structure import Matrix

TOKENS, OTHERS = 23, 29
"""Tokens of the text, and of what else it attends to: primes, so that no width of a model is taken for them."""

_CARRIED = 4.0
"""Cosine between what is changed and what comes out of it, above which the stream goes through, in units of what
chance gives: one over the root of the number of features.
"""


class Mixing(Reruns):
    """A model that ran once, and whose modules are asked one by one.

    Args:
        model: small, with weights, in eval mode.
        matrices: its matrices.

    Raises:
        Exception: what the model raised on tokens alone.
    """

    def __init__(self, model: PreTrainedModel, matrices: list[Matrix]) -> None:
        super().__init__({TOKENS, OTHERS})
        self.matrices = matrices
        self.chains = {matrix.path: _chain(matrix) for matrix in matrices if matrix.block is not None}
        self.holding = {name for chain in self.chains.values() for name in chain}
        self._look(model)
        if self._watch(model):
            self._look(model)
            self._watch(model)

    def _look(self, model: PreTrainedModel) -> None:
        """Which modules there are in blocks that are not built like an earlier one."""
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.twins = self._twins()
        first = set(self.twins.values())
        kernels = {
            matrix.module
            for matrix in self.matrices
            if matrix.kind == "conv" and max(matrix.shape[2:], default=1) > 1
        }
        maps = {matrix.module for matrix in self.matrices} - self.holding - kernels
        self.names = [name for name in self.modules if name not in maps and _block(name, first) is not None]
        # What mixes and holds no matrix: convolutions, and whatever has no weights.
        self.bare = {name for name in self.names if name not in self.holding}
        self.inside: dict[str, list[str]] = {}
        for name in self.names:
            self.inside[name] = [other for other in self.names if other.startswith(name + ".")]

    def _twins(self) -> dict[str, str]:
        """Block → an earlier one of its list that is built alike and stands in for it."""
        first: dict[Any, str] = {}
        return {
            block: first.setdefault((block.rpartition(".")[0], *built(self.modules[block])), block)
            for block in dict.fromkeys(matrix.block for matrix in self.matrices)
            if block is not None
        }

    def _watch(self, model: PreTrainedModel) -> bool:
        """Run the model once, keep what every module was first called with; whether it exchanged modules meanwhile."""
        running: list[str] = []
        raised: Exception | None = None
        torch.manual_seed(0)
        with self._noting(running):
            for given in inputs(model, tokens=TOKENS, others=OTHERS):
                self.seen.clear()
                running.clear()
                try:
                    model(**given)
                    break
                except Exception as error:
                    raised = raised or error
            for tower in silent_towers(model, self.twins, self.seen.keys()):
                for given in tower_inputs(tower, tokens=TOKENS, others=OTHERS):
                    running.clear()
                    with contextlib.suppress(Exception):  # then it stays silent
                        tower(**given)
                        break
            if raised is not None and not self.seen:
                raise raised
        return dict(model.named_modules()) != self.modules

    @contextlib.contextmanager
    def _noting(self, running: list[str]) -> Iterator[None]:
        def around(name: str, forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                if name not in self.seen:
                    self.seen[name] = ModuleCall(copied(args), copied(kwargs))
                if not running:
                    self.heed((args, kwargs), self.modules[name])
                running.append(name)
                output = forward(*args, **kwargs)
                running.pop()
                return output

            return run

        with replaced(
            (self.modules[name], lambda forward, name=name: around(name, forward)) for name in self.names
        ):
            yield

    def mixers(self, name: str, *, owner: str, but: str = "") -> frozenset[str]:
        """The modules inside ``name`` that mix by what they do themselves.

        Args:
            name: of the module around them.
            owner: of the matrix. What it owns beside the matrix and holds no matrix itself, a convolution or a
                product of attention, is part of what the owner does.
            but: a module; what holds it is left out.
        """
        mixing = set[str]()
        for other in self.inside.get(name, ()):
            if f"{but}.".startswith(other + ".") or any(
                other.startswith(one + ".") for one in mixing & self.bare
            ):
                continue
            if other in self.bare:
                own = other.rpartition(".")[0] != owner and self.mixes(other)
            else:
                own = self.mixes(other, self.mixers(other, owner=other))
            if own:
                mixing.add(other)
        return frozenset(mixing)

    def mixes(self, name: str, inner: frozenset[str] = frozenset()) -> bool | None:
        """Whether it mixes while ``inner`` let only the changed token through; None where that cannot be seen.

        It does where another token of what it returns moves, or of what it hands to one of ``inner``.
        """
        seen = self.seen.get(name)
        if seen is None:
            return None
        if inner not in seen.mixes:
            try:
                seen.mixes[inner] = self._mixes(name, inner)
            except Exception:
                # A module that runs only inside its model says nothing; the one around it is asked.
                seen.mixes[inner] = None
        return seen.mixes[inner]

    def _mixes(self, name: str, inner: frozenset[str]) -> bool | None:
        kept: dict[str, list[Recorded]] = {}
        with self.recorded(inner, kept):
            before = self.call(name, None)
        outermost = {one for one in inner if not any(one.startswith(other + ".") for other in inner)}
        mixes: bool | None = None
        for position in (1, -2):
            with self.held(kept, position) as handed:
                after = self.call(name, position)
            said = [
                self.moves(old, new, position)
                for old, new in zip(tensors(before), tensors(after), strict=True)
            ]
            if any(said) or any(handed.get(one, False) for one in outermost):
                return True
            if said.count(None) < len(said):
                mixes = False
        return mixes

    def takes_part(self, name: str, path: str) -> bool:
        """Whether a module that ran returns something else once this parameter in it is changed."""
        parameter = self.parameters[path]
        before, kept = tensors(self.call(name, None)), parameter.clone()
        try:
            parameter.add_(torch.randn_like(parameter))
            after = tensors(self.call(name, None))
        finally:
            parameter.copy_(kept)
        return not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))

    def reads_result(self, name: str, module: str, inner: frozenset[str]) -> bool:
        """Whether ``module`` reads nothing but what ``inner`` return, and they return no stream."""
        kept: dict[str, list[Recorded]] = {}
        read: list[list[torch.Tensor]] = []

        def note(forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                read.append([value.clone() for value in tensors((args, kwargs))])
                return forward(*args, **kwargs)

            return run

        with replaced([(self.modules[module], note)]):
            with self.recorded(inner, kept):
                self.call(name, None)
            calls = len(read)
            with self.held(kept, None):
                self.call(name, EVERYWHERE)  # an expert sees few tokens
        before = [value for values in read[:calls] for value in values]
        after = [value for values in read[calls:] for value in values]
        same = len(before) == len(after) and all(
            old.shape == new.shape and torch.equal(old, new) for old, new in zip(before, after, strict=True)
        )
        return same and bool(before) and not any(self._carries(one) for one in inner)

    def _carries(self, name: str) -> bool:
        """Whether a module adds its result to the stream: what is changed in its input comes out as it went in."""
        if name not in self.seen:
            return False
        old, new = (tensors(self.call(name, position)) for position in (None, EVERYWHERE))
        given = [tensors(self.given(name, position)) for position in (None, EVERYWHERE)]
        for before, after in zip(old, new, strict=True):
            for first, second in zip(*given, strict=True):
                if before.shape == first.shape == after.shape and self.axis(before) is not None:
                    change = (after - before).flatten(), (second - first).flatten()
                    if float(torch.cosine_similarity(*change, dim=0)) > _CARRIED / before.numel() ** 0.5:
                        return True
        return False


def _chain(matrix: Matrix) -> list[str]:
    """Modules around a matrix, the smallest first, up to its block; one that is only a map is not asked."""
    name = matrix.module if matrix.kind == "parameter" else matrix.module.rpartition(".")[0]
    block = matrix.block or ""
    chain = []
    while len(name) > len(block):
        chain.append(name)
        name = name.rpartition(".")[0]
    return [*chain, block]


def _block(name: str, blocks: set[str]) -> str | None:
    """The block that a module is or stands in."""
    while name and name not in blocks:
        name = name.rpartition(".")[0]
    return name or None
