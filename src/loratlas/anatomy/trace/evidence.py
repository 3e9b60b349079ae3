"""What one observed pass says about each matrix so far, and the questions that are put to it.

Which matrices an input was made of, who reads an output, whether tokens were mixed on the way: the readers of
attention, recurrences and feed-forwards ask here, and say here what they found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratlas.anatomy.trace.flow_records import (
    MIXED,
    ROUTED,
    Attended,
    Flow,
    Labels,
    MatrixCall,
    Stream,
    View,
)
from loratlas.anatomy.trace.row_layout import layout

if TYPE_CHECKING:
    from loratlas.anatomy.structure import Matrix

Part = tuple[str, str | None]
"""Part of a role, and the row layout of a fused one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What the trace takes a matrix for.

    Args:
        role: e.g. ``"attn.q"``, or a family alone.
        layout: row layout of a fused role.
    """

    role: str
    layout: str | None = None


class TraceEvidence:
    """See the module's docstring.

    Args:
        flow: what was observed.
        matrices: the matrices; their shapes and blocks are looked at, no name.
        kv_heads: of the config, to name layouts.
        heads: of the config.
    """

    def __init__(self, flow: Flow, matrices: list[Matrix], kv_heads: int, heads: int) -> None:
        self.flow, self.kv_heads, self.heads = flow, kv_heads, heads
        self.blocks = {matrix.path: matrix.block for matrix in matrices}
        self.matrices = {matrix.path: matrix for matrix in matrices}
        self.given: dict[str, Opinion] = {}
        self.unclear: set[str] = set()
        self.calls = flow.calls
        self.readers: dict[str, list[str]] = {}
        self.after: dict[int, list[str]] = {}
        for path, call in flow.calls.items():
            for label in call.labels:
                if isinstance(label.origin, View):
                    known = self.readers.setdefault(label.origin.path, [])
                    if path not in known:
                        known.append(path)
                elif isinstance(label.origin, Attended):
                    self.after.setdefault(label.origin.event, []).append(path)

    def say(self, path: str, role: str, layout: str | None = None) -> None:
        """Note a role; a second, different one makes the matrix unclear, unless one only refines the other."""
        opinion = Opinion(role=role, layout=layout)
        known = self.given.setdefault(path, opinion)
        if known != opinion:
            if known.role.startswith(role + "."):
                return
            if role.startswith(known.role + ".") or (known.role, role) == ("embed", "attn.rel"):
                self.given[path] = opinion
            else:
                self.unclear.add(path)

    def is_router(self, path: str) -> bool:
        """Whether this was found to be a router."""
        return path in self.given and self.given[path].role == "router"

    def is_routed(self, path: str) -> bool:
        """Whether a choice picked parts of this matrix, or the tokens that it reads."""
        return path in self.flow.routed or any(
            label.marks & ROUTED
            and not (isinstance(label.origin, View) and self.is_router(label.origin.path))
            for label in self.calls[path].labels
        )

    def pairs(self, matrices: Iterable[str]) -> dict[str, str]:
        """Of matrices whose outputs were summed: the second one of a pair beside another matrix → the first.

        The other reads what the first one reads and is as wide as the second, and nothing lies between the two:
        an adapter that the model brings along.
        """
        matrices = set(matrices)
        pairs: dict[str, str] = {}
        for path in matrices:
            feeders = self.direct(path)
            if len(feeders) != 1 or any(label.marks for label in self.calls[path].labels):
                continue
            first = next(iter(feeders))
            call = self.calls[first]
            if first not in matrices and any(
                other != path
                and self.calls[other].reads == call.reads
                and self.calls[other].width == self.calls[path].width
                for other in matrices
            ):
                pairs[path] = first
        return pairs

    def chain(self, path: str) -> set[str]:
        """Matrices of which alone this one's input is made, and theirs."""
        above: set[str] = set()
        labels = self.calls[path].labels
        if labels and all(isinstance(label.origin, View) for label in labels):
            for feeder in paths(labels):
                if not self.calls[feeder].lookup and feeder not in above and feeder != path:
                    above |= {feeder} | self.chain(feeder)
        return above

    def direct(self, path: str) -> set[str]:
        """The matrices whose outputs this one reads."""
        return paths(self.calls[path].labels)

    def sources(self, labels: Labels) -> frozenset[str]:
        """The matrices whose outputs these are, without those that only feed another of them."""
        makers = {path for path in paths(labels) if path in self.calls and not self.calls[path].kernel}
        inner = {one for path in makers for one in paths(self.calls[path].labels) if one in makers}
        return frozenset(makers - inner if makers - inner else makers)

    def streams(self, matrices: Iterable[str]) -> set[int]:
        """Which of the block's inputs these matrices read, directly or through others."""
        numbers, seen, todo = set[int](), set[str](), list(matrices)
        while todo:
            path = todo.pop()
            if path in seen or path not in self.calls:
                continue
            seen.add(path)
            for label in self.calls[path].labels:
                if isinstance(label.origin, Stream):
                    numbers.add(label.origin.number)
                elif isinstance(label.origin, View):
                    todo.append(label.origin.path)
        return numbers

    def reads(self, matrices: Iterable[str]) -> set[tuple[int, ...]]:
        """Keys of the tensors that these matrices read."""
        return {self.calls[path].reads for path in matrices}

    def fed_by(self, path: str, others: Iterable[str]) -> bool:
        """Whether this matrix reads the output of one of the others."""
        return any(one in others for one in paths(self.calls[path].labels))

    def only_reader(self, path: str) -> str | None:
        """The one matrix that reads this one's output and nothing else, where there is one."""
        readers = self.readers.get(path, [])
        if len(readers) != 1 or self.blocks.get(readers[0]) is None:
            return None
        labels = self.calls[readers[0]].labels
        if self.calls[readers[0]].kernel or self.calls[path].kernel:
            return None
        alone = all(isinstance(i.origin, View) and i.origin.path == path and not i.marks for i in labels)
        return readers[0] if alone and self.blocks[readers[0]] == self.blocks[path] else None

    def mixes(self, call: MatrixCall) -> bool:
        """Whether tokens were mixed, without a softmax, on the way to what this call reads."""
        return any(label.marks & MIXED for label in call.labels)

    def layout(self, parts: dict[str, Labels]) -> str | None:
        """Row layout of these parts of one matrix."""
        return layout(parts, kv_heads=self.kv_heads, heads=self.heads)


def paths(labels: Labels) -> set[str]:
    """The matrices among the origins."""
    return {label.origin.path for label in labels if isinstance(label.origin, View)}
