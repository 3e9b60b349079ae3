"""What every reader said about every matrix of a model, and where they contradict one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loratlas.anatomy.compare.decide_roles import agreed
from loratlas.anatomy.role_table import tokens
from loratlas.anatomy.sites import Anatomy

READERS = ("names", "trace", "probe")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixOpinions:
    """What every reader says about one matrix.

    Args:
        path: parameter name.
        role: what it was given before the probe was asked; None where it is unresolved.
        names: role by what its owners and its leaf are called; None where they say nothing.
        trace: role, or family, by one observed pass without weights.
        probe: ``"mixes tokens"`` or ``"pointwise"``, by trying.
        table: why the reviewed table says what it says; empty where it says nothing.
    """

    path: str
    role: str | None
    names: str | None = None
    trace: str | None = None
    probe: str | None = None
    table: str = ""

    def agrees(self, reader: str) -> bool | None:
        """Whether a reader agrees with the role; None where one of them says nothing.

        >>> one = MatrixOpinions(path="w", role="ffn.up", names="ffn.up", trace="attn.v", probe="pointwise")
        >>> [one.agrees(reader) for reader in READERS], one.disputed
        ([True, False, True], True)
        """
        said = getattr(self, reader)
        if said is None or self.role is None:
            return None
        if reader == "probe":
            wanted = tokens(self.role)
            return None if wanted is None else said == wanted
        if reader == "trace" and self.role.startswith("shared.") and said.startswith("ffn."):
            said = "shared" + said.removeprefix("ffn")  # it sees a feed-forward, and experts beside it
        return _alike(said, self.role)

    @property
    def disputed(self) -> bool:
        """Whether two readers contradict one another, settled or not."""
        if self.role is None:
            return None not in (self.names, self.trace) and not _alike(str(self.names), str(self.trace))
        return any(self.agrees(reader) is False for reader in READERS)

    def opinions(self) -> tuple[str, ...]:
        """What was said, as an unresolved matrix lists it."""
        return tuple(f"{name}: {said}" for name in READERS if (said := getattr(self, name)) is not None)


def _alike(one: str, other: str) -> bool:
    """Whether two roles agree, in whole or in their family."""
    return agreed(one, other) is not None or agreed(other, one) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A model's anatomy and what it rests on.

    Args:
        anatomy: with what the probe contradicts moved to the unresolved ones.
        matrices: of every matrix, in the model's order.
        tried: what the probe ran on, in words.
        silent: why the probe did not run; empty where it did.
    """

    anatomy: Anatomy
    matrices: tuple[MatrixOpinions, ...]
    tried: str = ""
    silent: str = ""

    @property
    def disputes(self) -> tuple[MatrixOpinions, ...]:
        """Where readers contradict one another, whether the table settles it or not."""
        return tuple(one for one in self.matrices if one.disputed)

    @property
    def open(self) -> tuple[MatrixOpinions, ...]:
        """The disputes that the table does not settle."""
        return tuple(one for one in self.disputes if not one.table)

    def agreement(self, reader: str) -> tuple[int, int]:
        """In how many matrices a reader agrees with the role, and of how many it says anything."""
        said = [agrees for one in self.matrices if (agrees := one.agrees(reader)) is not None]
        return sum(said), len(said)

    def to_json(self) -> dict[str, Any]:
        """Plain data: per reader its agreement, per matrix what each said, and the disputes."""
        return {
            "tried": self.tried,
            "silent": self.silent,
            "agreement": {
                reader: dict(zip(("agrees", "speaks"), self.agreement(reader), strict=True))
                for reader in READERS
            },
            "matrices": [
                {"path": one.path, "role": one.role, **{reader: getattr(one, reader) for reader in READERS}}
                for one in self.matrices
            ],
            "disputes": [
                {"path": one.path, "opinions": list(one.opinions()), "settled": one.table or None}
                for one in self.disputes
            ],
        }
