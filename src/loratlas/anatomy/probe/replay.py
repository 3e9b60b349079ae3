"""Run single modules again: on what they were given once, with one token changed, with others in them held."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from loratlas.modeling import patched_forwards

if TYPE_CHECKING:
    from torch import nn

EVERYWHERE = 10_000
"""Instead of a token: all of them."""

_TOLERANCE = 1e-5
"""Of the largest value: a smaller change is rounding."""

Forward = Callable[..., Any]


@dataclass(slots=True)
class ModuleCall:
    """What a module was called with, once, and what was found out about it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mixes: dict[frozenset[str], bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call of a module: the tensors that it was given, and what it returned."""

    given: list[torch.Tensor]
    output: Any


class Reruns:
    """See the module's docstring.

    Args:
        lengths: sizes that mark an axis as that of tokens.
    """

    def __init__(self, lengths: set[int]) -> None:
        self.lengths = lengths
        self.modules: dict[str, nn.Module] = {}
        self.seen: dict[str, ModuleCall] = {}

    def heed(self, given: Any, block: nn.Module) -> None:
        """A model may pad or pool its text before the blocks: what they are given has another length then.

        It is the first size that is no width of the block's parameters: a sound comes with its channels in front.
        """
        for value in tensors(given)[:1]:
            if value.ndim == 3 and value.shape[0] == 1 and not self.lengths & set(value.shape):
                widths = {size for parameter in block.parameters() for size in parameter.shape}
                self.lengths.update([size for size in value.shape[1:] if size > 1 and size not in widths][:1])

    def call(self, name: str, position: int | None) -> Any:
        """Run a module on what it was given, one token of which is changed."""
        args, kwargs = self.given(name, position)
        torch.manual_seed(2)
        return self.modules[name](*args, **kwargs)

    def given(self, name: str, position: int | None) -> tuple[Any, Any]:
        seen = self.seen[name]
        args, kwargs = copied(seen.args), copied(seen.kwargs)
        if position is None:
            return args, kwargs
        torch.manual_seed(1)
        return _mapped(lambda value: self._changed(value, position), (args, kwargs))

    def _changed(self, value: torch.Tensor, position: int) -> torch.Tensor:
        axis = self.axis(value)
        if axis is None:
            return value
        value = value.clone()
        token = value if position == EVERYWHERE else value.select(axis, position)
        size = float(value.abs().mean()) or 1.0
        token.add_(torch.randn_like(token), alpha=min(size, 1.0))
        return value

    def axis(self, value: torch.Tensor) -> int | None:
        """The axis of tokens; none where there is none, or two as in scores and masks."""
        if not value.is_floating_point():
            return None
        axes = [axis for axis, size in enumerate(value.shape) if size in self.lengths]
        return axes[0] if len(axes) == 1 else None

    def moves(self, old: torch.Tensor, new: torch.Tensor, position: int) -> bool | None:
        """Whether anything but the changed token moved; None where there is no axis of tokens."""
        axis = self.axis(old)
        if axis is None or old.shape != new.shape:
            return None
        moved = (new - old).abs()
        moved.select(axis, position).zero_()
        return float(moved.max()) > _TOLERANCE * float(old.abs().max())

    @contextlib.contextmanager
    def recorded(self, names: frozenset[str], kept: dict[str, list[Recorded]]) -> Iterator[None]:
        """Keep what these modules are given and return, call by call."""

        def keeping(name: str) -> Callable[[Forward], Forward]:
            calls = kept.setdefault(name, [])

            def around(forward: Forward) -> Forward:
                def run(*args: Any, **kwargs: Any) -> Any:
                    given = [value.clone() for value in tensors((args, kwargs))]
                    output = forward(*args, **kwargs)
                    calls.append(Recorded(given, copied(output)))
                    return output

                return run

            return around

        with replaced((self.modules[name], keeping(name)) for name in names):
            yield

    @contextlib.contextmanager
    def held(self, kept: dict[str, list[Recorded]], position: int | None) -> Iterator[dict[str, bool]]:
        """Let these modules return what they returned before, at every token but the changed one.

        Yields:
            Name → whether another token of what it is given moves, of those that were called since.
        """
        moved: dict[str, bool] = {}

        def replaying(name: str, calls: Iterator[Recorded]) -> Callable[[Forward], Forward]:
            def around(forward: Forward) -> Forward:
                def run(*args: Any, **kwargs: Any) -> Any:
                    last = next(calls)
                    output = copied(last.output)
                    if position is None:
                        return output
                    now = tensors((args, kwargs))
                    both = zip(last.given, now, strict=True) if len(now) == len(last.given) else ()
                    moved[name] = moved.get(name, False) or any(self.moves(*pair, position) for pair in both)
                    return tree_map(functools.partial(self._only, position), output, forward(*args, **kwargs))

                return run

            return around

        with replaced((self.modules[name], replaying(name, iter(calls))) for name, calls in kept.items()):
            yield moved

    def _only(self, position: int, old: Any, new: Any) -> Any:
        """The old value, but at one token the new one."""
        if isinstance(old, torch.Tensor) and (axis := self.axis(old)) is not None and old.shape == new.shape:
            old.select(axis, position).copy_(new.select(axis, position))
        return old


@contextlib.contextmanager
def replaced(around: Iterable[tuple[nn.Module, Callable[[Forward], Forward]]]) -> Iterator[None]:
    """Give modules another forward, made from their own: some are called by ``forward``, which no hook sees."""
    changes = [(module, functools.wraps(module.forward)(make(module.forward))) for module, make in around]
    with patched_forwards(changes):
        yield


def tensors(value: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(value) if isinstance(one, torch.Tensor)]


def copied(value: Any) -> Any:
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
