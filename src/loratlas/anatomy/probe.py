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
import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from loratlas.anatomy.flow import built
from loratlas.anatomy.inputs import inputs, silent_towers, tower_inputs
from loratlas.anatomy.load import model_class, quiet

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
_EVERYWHERE = 10_000
"""In place of a token: all of them."""


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


@dataclass(slots=True)
class _Seen:
    """What a module was called with, once, and what was found out about it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mixes: dict[frozenset[str], bool | None] = field(default_factory=dict)


class _Bench:
    def __init__(self, model: PreTrainedModel, found: list[Matrix]) -> None:
        self.found = found
        self.chains = {matrix.path: _chain(matrix) for matrix in found if matrix.block is not None}
        self.holding = {name for chain in self.chains.values() for name in chain}
        self.lengths = {TOKENS, OTHERS}
        self.seen: dict[str, _Seen] = {}
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
                    self.seen[name] = _Seen(_copied(args), _copied(kwargs))
                if not running:
                    self._lengths((args, kwargs))
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

    def _lengths(self, given: Any) -> None:
        """A model may pad or pool its text before the blocks: what they are given has another length then."""
        for value in _tensors(given)[:1]:
            if (
                value.ndim == 3
                and value.shape[0] == 1 < value.shape[1]
                and not self.lengths & set(value.shape)
            ):
                self.lengths.add(value.shape[1])

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
        with self._recorded(inner, kept):
            before = self._call(name, None)
        found: bool | None = None
        for place in (1, -2):
            with self._held(kept, place):
                after = self._call(name, place)
            for old, new in zip(_tensors(before), _tensors(after), strict=True):
                axis = self._axis(old)
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
            read.append([value.clone() for value in _tensors((args, kwargs))])

        handle = self.modules[module].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with self._recorded(inner, kept):
                self._call(name, None)
            calls = len(read)
            with self._held(kept, None):
                self._call(name, _EVERYWHERE)  # an expert sees few tokens
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
        old, new = (_tensors(self._call(name, place)) for place in (None, _EVERYWHERE))
        given = [_tensors(self._given(name, place)) for place in (None, _EVERYWHERE)]
        for before, after in zip(old, new, strict=True):
            for first, second in zip(*given, strict=True):
                if before.shape == first.shape == after.shape and self._axis(before) is not None:
                    change = (after - before).flatten(), (second - first).flatten()
                    if float(torch.cosine_similarity(*change, dim=0)) > _CARRIED / before.numel() ** 0.5:
                        return True
        return False

    def _call(self, name: str, place: int | None) -> Any:
        """Run a module on what it was given, one token of which is changed."""
        args, kwargs = self._given(name, place)
        torch.manual_seed(2)
        return self.modules[name](*args, **kwargs)

    def _given(self, name: str, place: int | None) -> tuple[Any, Any]:
        seen = self.seen[name]
        args, kwargs = _copied(seen.args), _copied(seen.kwargs)
        if place is None:
            return args, kwargs
        torch.manual_seed(1)
        return _mapped(lambda value: self._changed(value, place), (args, kwargs))

    def _changed(self, value: torch.Tensor, place: int) -> torch.Tensor:
        axis = self._axis(value)
        if axis is None:
            return value
        value = value.clone()
        token = value if place == _EVERYWHERE else value.select(axis, place)
        size = float(value.abs().mean()) or 1.0
        token.add_(torch.randn_like(token), alpha=min(size, 1.0))
        return value

    def _axis(self, value: torch.Tensor) -> int | None:
        """The axis of tokens; none where there is none, or two as in scores and masks."""
        if not value.is_floating_point():
            return None
        axes = [axis for axis, size in enumerate(value.shape) if size in self.lengths]
        return axes[0] if len(axes) == 1 else None

    @contextlib.contextmanager
    def _recorded(self, names: frozenset[str], kept: dict[str, list[Any]]) -> Iterator[None]:
        """Keep what these modules return, call by call."""
        handles = []
        for name in names:
            outputs = kept.setdefault(name, [])
            handles.append(
                self.modules[name].register_forward_hook(
                    lambda _module, _args, output, outputs=outputs: outputs.append(_copied(output))
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _held(self, kept: dict[str, list[Any]], place: int | None) -> Iterator[None]:
        """Let these modules return what they returned before, at every token but the changed one."""
        for name, outputs in kept.items():
            self.modules[name].forward = self._replay(self.modules[name].forward, iter(outputs), place)
        try:
            yield
        finally:
            for name in kept:
                vars(self.modules[name]).pop("forward", None)

    def _replay(
        self, forward: Callable[..., Any], left: Iterator[Any], place: int | None
    ) -> Callable[..., Any]:
        def only(old: Any, new: Any) -> Any:
            if (
                isinstance(old, torch.Tensor)
                and (axis := self._axis(old)) is not None
                and old.shape == new.shape
            ):
                old.select(axis, place or 0).copy_(new.select(axis, place or 0))
            return old

        def run(*args: Any, **kwargs: Any) -> Any:
            kept = _copied(next(left))
            return kept if place is None else tree_map(only, kept, forward(*args, **kwargs))

        return run


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


def _tensors(value: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]


def _copied(value: Any) -> Any:
    """The same, unmoved by what a module does to its arguments in place."""
    return _mapped(torch.Tensor.clone, value)


def _mapped(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The same arguments with every tensor changed; keys and values that layers share are tensors as well."""
    from transformers.cache_utils import Cache

    def leaf(one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            return change(one)
        if isinstance(one, UserDict):
            other = copy.copy(one)
            other.data = {key: _mapped(change, held) for key, held in one.items()}
            return other
        return copy.deepcopy(one) if isinstance(one, Cache) else one

    return tree_map(leaf, value)
