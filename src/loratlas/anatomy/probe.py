"""The reader that tries it out: does a change at one token reach the others?

A small instance with random weights runs once on random tokens, and what every module was called with is kept.
Then one module after the other is run again with one token of *every* tensor that it is given changed, early and
late in the text. Where the output changes at another position, the module mixes tokens; where it does not, it
works on each token alone. No name is looked at, no operation is known.

A matrix is judged by the smallest module around it that mixes by what it does itself: what the modules inside it
that do so return is let through at the changed token only. If it then still mixes, the matrix is part of that. If it
does not, the matrix is part of the mixing only where it reads nothing but the result, without the stream (the output
projection beside the core of an attention); otherwise the next larger module is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from loratlas.anatomy.flow import built
from loratlas.anatomy.inputs import inputs, silent_towers, tower_inputs
from loratlas.anatomy.load import model_class, quiet
from loratlas.anatomy.rerun import EVERYWHERE, Reruns, Seen, copied, tensors

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from loratlas.anatomy.structure import Matrix

MIXES, POINTWISE = "mixes tokens", "pointwise"

TOKENS, OTHERS = 23, 29
"""Tokens of the text, and of what else it attends to: primes, so that no width of a model is taken for them."""

_MIXING = frozenset({"attn", "xattn", "mixer"})
_SINGLE = frozenset({"ffn", "shared", "moe", "router", "shared_gate"})
IN_BLOCKS = _MIXING | _SINGLE
"""Families of which a role says what it does to tokens."""

_TOLERANCE = 1e-5
"""Of the largest output: a smaller change is rounding."""
_CARRIED = 4.0
"""Cosine between what is changed and what comes out of it, above which the stream goes through, in units of what
chance gives: one over the root of the number of features.
"""


def expected(role: str) -> str | None:
    """What a role says about tokens; None where it says nothing.

    >>> expected("attn.q"), expected("ffn.down"), expected("embed")
    ('mixes tokens', 'pointwise', None)
    """
    family, _, part = role.partition(".")
    if part == "adapter":
        return None
    return MIXES if family in _MIXING else POINTWISE if family in _SINGLE else None


def instance(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model with random weights on the CPU, in which no parameter is zero, one or left unset by chance.

    Args:
        config: small (see :mod:`loratlas.anatomy.shrink`).
        seed: of the weights.
    """
    chosen = model_class(config)
    assert chosen is not None, config.model_type
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = chosen[0]._from_config(chosen[1], dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point:
                parameter.nan_to_num_(0.0, 0.0, 0.0).clamp_(-4, 4)
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.requires_grad_(False)


def probe(model: PreTrainedModel, found: list[Matrix]) -> dict[str, str]:
    """Try every module that holds a matrix.

    Args:
        model: small, with weights, in eval mode.
        found: its matrices.

    Returns:
        Path → :data:`MIXES` or :data:`POINTWISE`, of every matrix in a block that ran.

    Raises:
        Exception: what the model raised on tokens alone.
    """
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        bench = _Bench(model, found)
        said: dict[str, str] = {}
        for matrix in found:
            verdict = bench.verdict(matrix)
            if verdict is not None:
                said[matrix.path] = verdict
    return said


class _Bench(Reruns):
    def __init__(self, model: PreTrainedModel, found: list[Matrix]) -> None:
        super().__init__({TOKENS, OTHERS})
        self.found = found
        self.chains = {matrix.path: _chain(matrix) for matrix in found if matrix.block is not None}
        self.holding = {name for chain in self.chains.values() for name in chain}
        self._look(model)
        if self._watch(model):
            self._look(model)
            self._watch(model)

    def _look(self, model: PreTrainedModel) -> None:
        """Which modules there are in blocks that are not built like an earlier one."""
        self.modules = dict(model.named_modules())
        self.twins = self._twins()
        first = set(self.twins.values())
        kernels = {
            matrix.module
            for matrix in self.found
            if matrix.kind == "conv" and max(matrix.shape[2:], default=1) > 1
        }
        maps = {matrix.module for matrix in self.found} - self.holding - kernels
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
            for block in dict.fromkeys(matrix.block for matrix in self.found)
            if block is not None
        }

    def _watch(self, model: PreTrainedModel) -> bool:
        """Run the model once, keep what every module was first called with; whether it exchanged modules meanwhile."""
        running: list[str] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if name not in self.seen:
                    self.seen[name] = Seen(copied(args), copied(kwargs))
                if not running:
                    self.heed((args, kwargs))
                running.append(name)

            return hook

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            running.pop()

        handles = []
        for name in self.names:
            handles.append(self.modules[name].register_forward_pre_hook(keep(name), with_kwargs=True))
            handles.append(self.modules[name].register_forward_hook(leave))
        raised: Exception | None = None
        torch.manual_seed(0)
        try:
            for given in inputs(model, tokens=TOKENS, others=OTHERS):
                self.seen.clear()
                running.clear()
                try:
                    model(**given)
                    break
                except Exception as error:
                    raised = raised or error
            for tower in silent_towers(model, self.twins, self.seen.keys()):
                for given in tower_inputs(tower, tokens=TOKENS):
                    running.clear()
                    with contextlib.suppress(Exception):  # then it stays silent
                        tower(**given)
                        break
            if raised is not None and not self.seen:
                raise raised
        finally:
            for handle in handles:
                handle.remove()
        return dict(model.named_modules()) != self.modules

    # One matrix.

    def verdict(self, matrix: Matrix) -> str | None:
        if matrix.block is None:
            return None
        twin = self.twins[matrix.block]
        module = twin + matrix.module[len(matrix.block) :]
        chain = [twin + name[len(matrix.block) :] for name in self.chains[matrix.path]]
        known = False
        for name in chain:
            inner = self._mixers(name, owner=chain[0], but=module)
            mixes = self.mixes(name, inner)
            if mixes is None:
                continue
            known = True
            cores = inner - self.bare
            if mixes or (cores and self.mixes(name) and self._reads_result(name, module, cores)):
                return MIXES
        return POINTWISE if known else None

    def _mixers(self, name: str, *, owner: str, but: str = "") -> frozenset[str]:
        """The modules inside ``name`` that mix by what they do themselves.

        Args:
            name: of the module around them.
            owner: of the matrix. What it owns beside the matrix and holds no matrix itself, a convolution or a
                product of attention, is part of what the owner does.
            but: a module; what holds it is left out.
        """
        found = set[str]()
        for other in self.inside.get(name, ()):
            if f"{but}.".startswith(other + ".") or any(
                other.startswith(one + ".") for one in found & self.bare
            ):
                continue
            if other in self.bare:
                own = other.rpartition(".")[0] != owner and self.mixes(other)
            else:
                own = self.mixes(other, self._mixers(other, owner=other))
            if own:
                found.add(other)
        return frozenset(found)

    # One module.

    def mixes(self, name: str, inner: frozenset[str] = frozenset()) -> bool | None:
        """Whether it mixes while ``inner`` let only the changed token through; None where that cannot be seen."""
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
        kept: dict[str, list[Any]] = {}
        with self.recorded(inner, kept):
            before = self.call(name, None)
        found: bool | None = None
        for place in (1, -2):
            with self.held(kept, place):
                after = self.call(name, place)
            for old, new in zip(tensors(before), tensors(after), strict=True):
                axis = self.axis(old)
                if axis is None or old.shape != new.shape:
                    continue
                found = bool(found)
                moved = (new - old).abs()
                moved.select(axis, place).zero_()
                if float(moved.max()) > _TOLERANCE * float(old.abs().max()):
                    return True
        return found

    def _reads_result(self, name: str, module: str, inner: frozenset[str]) -> bool:
        """Whether ``module`` reads nothing but what ``inner`` return, and they return no stream."""
        kept: dict[str, list[Any]] = {}
        read: list[list[torch.Tensor]] = []

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.append([value.clone() for value in tensors((args, kwargs))])

        handle = self.modules[module].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with self.recorded(inner, kept):
                self.call(name, None)
            calls = len(read)
            with self.held(kept, None):
                self.call(name, EVERYWHERE)  # an expert sees few tokens
        finally:
            handle.remove()
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
        old, new = (tensors(self.call(name, place)) for place in (None, EVERYWHERE))
        given = [tensors(self.given(name, place)) for place in (None, EVERYWHERE)]
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
