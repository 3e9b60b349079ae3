"""Run single modules again: on what they were given once, with one token changed, with others in them held."""

from __future__ import annotations

import contextlib
import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from torch import nn

EVERYWHERE = 10_000
"""In place of a token: all of them."""


@dataclass(slots=True)
class Seen:
    """What a module was called with, once, and what was found out about it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mixes: dict[frozenset[str], bool | None] = field(default_factory=dict)


class Reruns:
    """See the module's docstring.

    Args:
        lengths: numbers by which an axis of tokens is told.
    """

    def __init__(self, lengths: set[int]) -> None:
        self.lengths = lengths
        self.modules: dict[str, nn.Module] = {}
        self.seen: dict[str, Seen] = {}

    def heed(self, given: Any) -> None:
        """A model may pad or pool its text before the blocks: what they are given has another length then."""
        for value in tensors(given)[:1]:
            if (
                value.ndim == 3
                and value.shape[0] == 1 < value.shape[1]
                and not self.lengths & set(value.shape)
            ):
                self.lengths.add(value.shape[1])

    def call(self, name: str, place: int | None) -> Any:
        """Run a module on what it was given, one token of which is changed."""
        args, kwargs = self.given(name, place)
        torch.manual_seed(2)
        return self.modules[name](*args, **kwargs)

    def given(self, name: str, place: int | None) -> tuple[Any, Any]:
        seen = self.seen[name]
        args, kwargs = copied(seen.args), copied(seen.kwargs)
        if place is None:
            return args, kwargs
        torch.manual_seed(1)
        return _mapped(lambda value: self._changed(value, place), (args, kwargs))

    def _changed(self, value: torch.Tensor, place: int) -> torch.Tensor:
        axis = self.axis(value)
        if axis is None:
            return value
        value = value.clone()
        token = value if place == EVERYWHERE else value.select(axis, place)
        size = float(value.abs().mean()) or 1.0
        token.add_(torch.randn_like(token), alpha=min(size, 1.0))
        return value

    def axis(self, value: torch.Tensor) -> int | None:
        """The axis of tokens; none where there is none, or two as in scores and masks."""
        if not value.is_floating_point():
            return None
        axes = [axis for axis, size in enumerate(value.shape) if size in self.lengths]
        return axes[0] if len(axes) == 1 else None

    @contextlib.contextmanager
    def recorded(self, names: frozenset[str], kept: dict[str, list[Any]]) -> Iterator[None]:
        """Keep what these modules return, call by call."""
        handles = []
        for name in names:
            outputs = kept.setdefault(name, [])
            handles.append(
                self.modules[name].register_forward_hook(
                    lambda _module, _args, output, outputs=outputs: outputs.append(copied(output))
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def held(self, kept: dict[str, list[Any]], place: int | None) -> Iterator[None]:
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
                and (axis := self.axis(old)) is not None
                and old.shape == new.shape
            ):
                old.select(axis, place or 0).copy_(new.select(axis, place or 0))
            return old

        def run(*args: Any, **kwargs: Any) -> Any:
            kept = copied(next(left))
            return kept if place is None else tree_map(only, kept, forward(*args, **kwargs))

        return run


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
