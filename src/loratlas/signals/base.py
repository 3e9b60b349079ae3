"""What all signals share: columns of numbers, sums that are kept fold by fold, and the abstract signal.

A signal watches some passes of a frozen model. It keeps sums, never what was summed, and it keeps them apart by
**fold**: pass number b belongs to fold b mod `FOLDS`. Scores can then be had from any set of folds: from all of them,
from all but one (the jackknife gives every score its error), from one half and the other (how stable is the order?).

>>> sums = FoldSums()
>>> import torch
>>> sums.add(0, ("w", 0), torch.ones(2)); sums.add(1, ("w", 0), torch.ones(2))
>>> sums.total(("w", 0), folds=(0, 1)).tolist(), sums.total(("w", 0), folds=(2,)) is None
([2.0, 2.0], True)
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from loratlas.anatomy.sites import Site
from loratlas.signals.column import Column

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch

FOLDS = 4
"""Parts that the calibration passes are dealt out to."""

ALL_FOLDS = tuple(range(FOLDS))
HALVES = (ALL_FOLDS[::2], ALL_FOLDS[1::2])

Key = tuple[str, int]
"""Path of a parameter, and the expert in its stack (0 where there is no stack)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a matrix as a map in a pass.

    Args:
        site: whose matrix it is.
        expert: its place in a stack.
        x: what it reads, [n, d_in]; rows of padding are left out.
        owner: int64 [n]; example of each row within the batch; None where rows are not the batch's tokens.
    """

    site: Site
    expert: int
    x: torch.Tensor
    owner: torch.Tensor | None

    @property
    def key(self) -> Key:
        """Names the matrix."""
        return self.site.path, self.expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a use gave; not kept until the backward pass.

    Args:
        y: [n, d_out], the bias included.
        bias: [d_out], if there is one.
        weight: the linear map of rows [m, d_in], without the bias.
    """

    y: torch.Tensor
    bias: torch.Tensor | None
    weight: Callable[[torch.Tensor], torch.Tensor]


class FoldSums:
    """Sums by fold and key."""

    def __init__(self) -> None:
        self._kept: dict[Key, list[torch.Tensor | None]] = {}

    def add(self, fold: int, key: Key, value: torch.Tensor) -> None:
        """Add a value, kept in float32 (float64 stays)."""
        value = value.detach()
        value = value if value.dtype == torch.float64 else value.float()
        folds = self._kept.setdefault(key, [None] * FOLDS)
        before = folds[fold]
        folds[fold] = value.clone() if before is None else before.add_(value)

    def total(self, key: Key, folds: Iterable[int]) -> torch.Tensor | None:
        """The sum over these folds; None where nothing was added."""
        sums = [kept for fold in folds if (kept := self._kept.get(key, [None] * FOLDS)[fold]) is not None]
        return torch.stack(sums).sum(0) if sums else None

    def keys(self) -> set[Key]:
        """For what anything was added."""
        return set(self._kept)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that is kept, under names; keys must be of a path and a number."""
        return {
            f"{fold} {index} {path}": kept
            for (path, index), folds in self._kept.items()
            for fold, kept in enumerate(folds)
            if kept is not None
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` gave."""
        self._kept = {}
        for name, kept in state.items():
            fold, index, path = name.split(" ", 2)
            self._kept.setdefault((path, int(index)), [None] * FOLDS)[int(fold)] = kept.clone()

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything that is kept."""
        for folds in self._kept.values():
            yield from (kept for kept in folds if kept is not None)


class Signal(ABC):
    """A measurement of every site.

    Args:
        seed: draws whatever is random in it; the same seed gives the same numbers, whatever the order of sites.

    A subclass is final. It says in its docstring: formula, unit, cost, source, departures, and whether it takes
    Adam's geometry into account.
    """

    name: ClassVar[str]
    columns: tuple[Column, ...]
    needs: ClassVar[str]
    """``"weights"`` (no pass), ``"forward"`` or ``"backward"``."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.sites: tuple[Site, ...] = ()
        self.fold = 0
        self.counted = [0] * FOLDS

    def begin(self, model: Any, sites: Sequence[Site]) -> None:
        """Forget everything and measure these sites."""
        self.sites = tuple(sites)
        self.fold, self.counted = 0, [0] * FOLDS
        self.reset(model)

    def count(self, batch: Batch) -> None:
        """A pass with this batch begins."""
        self.counted[self.fold] += batch.labelled

    def labelled(self, folds: Sequence[int]) -> int:
        """Counted tokens in these folds."""
        return sum(self.counted[fold] for fold in folds)

    @abstractmethod
    def reset(self, model: Any) -> None:
        """Forget everything."""

    def weigh(self, model: Any, site: Site) -> None:
        """Look at a site's weights; before any pass, and only of signals that need nothing else."""
        return

    def read(self, use: Use, output: Output) -> None:
        """The forward pass used a matrix."""
        return

    def learn(self, use: Use, g: torch.Tensor) -> None:
        """The backward pass came by.

        Args:
            use: what `read` was told.
            g: gradient of the summed loss at the output, [n, d_out].
        """
        return

    @contextmanager
    def during(self, model: Any, batch: Batch) -> Iterator[None]:
        """Within this context a pass with this batch goes through the model."""
        yield

    @abstractmethod
    def values(self, folds: Sequence[int] = ALL_FOLDS) -> dict[str, dict[str, float]]:
        """Column → path → value, from these folds alone; sites without one are left out."""

    def gains(self, ranks: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """Column → path → what rank 1, 2, … adds, for columns that know more than one number per site."""
        return {}

    def held(self) -> Iterator[torch.Tensor]:
        """The tensors that it keeps between passes."""
        for value in vars(self).values():
            if isinstance(value, FoldSums):
                yield from value.tensors()

    def draw(self, what: str, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        """Gaussian numbers [rows, columns] that depend on the seed and on ``what``, in the numbers of ``like``."""
        random = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {what}".encode()))
        return torch.randn(rows, columns, generator=random).to(like.device, like.dtype)

    def draw_basis(self, what: str, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        """An orthonormal basis [rows, columns] of a random subspace; better conditioned than the numbers themselves."""
        basis, _ = torch.linalg.qr(self.draw(what, rows, columns, like.new_empty((), dtype=torch.float32)))
        return basis.to(like.dtype)


def experts_of(site: Site) -> range:
    """Places of the matrices of a site."""
    return range(site.experts or 1)


def finite(value: float) -> float:
    """A number that can be ranked: what is not one becomes NaN."""
    return value if math.isfinite(value) else math.nan
