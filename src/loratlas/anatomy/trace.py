"""The reader that looks at behaviour: roles from one observed forward pass, without any name.

An opinion is a role, or only a family (``"mixer"``) where the pass shows what a matrix belongs to and not which
part of it it is: the chunked arithmetic of linear attention does not tell its queries from its keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from loratlas.anatomy.records import (
    MIXED,
    POSITIVE,
    Attended,
    Attention,
    Call,
    Flow,
    Geometry,
    Labels,
    Stream,
    View,
    columns,
)

if TYPE_CHECKING:
    from loratlas.anatomy.structure import Matrix


Paths = frozenset[str]
Part = tuple[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What the trace takes a matrix for.

    Args:
        role: e.g. ``"attn.q"``, or a family alone.
        layout: row layout of a fused role.
    """

    role: str
    layout: str | None = None


def opinions(flow: Flow, found: list[Matrix], *, kv_heads: int, heads: int) -> dict[str, Opinion]:
    """Path → opinion; a matrix that plays two different parts, or an unclear one, has none.

    Args:
        flow: what was observed.
        found: the matrices; their shapes and blocks are looked at, no name.
        kv_heads: of the config, to name layouts.
        heads: of the config.
    """
    return _spread(_Reader(flow, found, kv_heads, heads).read(), flow, found)


def _spread(seen: dict[str, Opinion], flow: Flow, found: list[Matrix]) -> dict[str, Opinion]:
    """The same opinions for blocks that were built like an observed one."""
    for matrix in found:
        twin = flow.twins.get(matrix.block or "")
        if twin is not None and matrix.block is not None:
            like = seen.get(twin + matrix.path[len(matrix.block) :])
            if like is not None:
                seen[matrix.path] = like
    return seen


class _Reader:
    def __init__(self, flow: Flow, found: list[Matrix], kv_heads: int, heads: int) -> None:
        self.flow, self.kv_heads, self.heads = flow, kv_heads, heads
        self.blocks = {matrix.path: matrix.block for matrix in found}
        self.matrices = {matrix.path: matrix for matrix in found}
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

    def read(self) -> dict[str, Opinion]:
        for path, call in self.calls.items():
            if call.kernel:
                self._say(path, "conv")
            elif call.lookup:
                self._say(path, "attn.relbias" if path in self.flow.biases else "embed")
        self._choices()
        for number, event in enumerate(self.flow.attentions):
            self._attention(event, self.after.get(number, []))
        self._recurrences()
        for path in self.calls:
            self._feedforward(path)
        self._gated_outputs()
        return {path: said for path, said in self.given.items() if path not in self.unclear}

    def _say(self, path: str, role: str, layout: str | None = None) -> None:
        opinion = Opinion(role=role, layout=layout)
        known = self.given.setdefault(path, opinion)
        if known != opinion:
            if known.role.startswith(role + "."):
                return
            if role.startswith(known.role + "."):
                self.given[path] = opinion
            else:
                self.unclear.add(path)

    # What a top-k chooses by: a router, or an index of keys.

    def _choices(self) -> None:
        for choice in self.flow.choices:
            for path in paths(choice.labels):
                if path not in self.calls or self.calls[path].lookup:
                    continue
                if choice.scored or any(label.marks & MIXED for label in choice.labels):
                    self._say(path, "attn.index")
                elif self._fits(path, choice.size):
                    self._say(path, "router")
                    for feeder in self._chain(path):
                        self._say(feeder, "router")

    def _fits(self, path: str, size: int) -> bool:
        width = self.calls[path].width
        return width == size or (size > 0 and width % size == 0 and width // size <= 8)

    def _chain(self, path: str) -> set[str]:
        """Matrices of which alone this one's input is made, and theirs."""
        found: set[str] = set()
        labels = self.calls[path].labels
        if labels and all(isinstance(label.origin, View) for label in labels):
            for feeder in paths(labels):
                if not self.calls[feeder].lookup and feeder not in found and feeder != path:
                    found |= {feeder} | self._chain(feeder)
        return found

    # Attention.

    def _attention(self, event: Attention, outputs: list[str]) -> None:
        v = self._sources(event.v)
        pairs = [(self._sources(q), self._sources(k)) for q, k in event.pairs]
        chosen = self._content(pairs, v)
        if chosen is None:
            self._queries(pairs, v, outputs)
            return
        if not v:
            return
        number = pairs.index(chosen)
        labels = list(event.pairs)[number]
        q, k = chosen
        family = "xattn" if self._cross(event, q, k | v) else "attn"
        roles = self._fused(q, k, v, labels, event.v)
        if roles is None:
            for path in q | k | v:
                self.unclear.add(path)
            return
        for path, (part, layout) in roles.items():
            low = self._low_rank(path)
            if low is not None and part in ("q", "kv"):
                self._say(low, f"{family}.{part}_a")
                part = f"{part}_b"
            self._say(path, f"{family}.{part}", layout)
        for other, relative in pairs:
            for path in (other | relative) - q - k - v:
                if not self._streams([path]):
                    self._say(path, f"{family}.rel")
        self._outputs(outputs, family, q | k | v)

    def _queries(self, pairs: list[tuple[Paths, Paths]], v: Paths, outputs: list[str]) -> None:
        """Keys and values that another block made: what is left are queries and the output."""
        q = {path for found, k in pairs for path in found if not k}
        if v or len(q) != 1 or len(pairs) != 1:
            return
        for path in q:
            self._say(path, "attn.q")
        self._outputs(outputs, "attn", frozenset(q))

    def _content(self, pairs: list[tuple[Paths, Paths]], v: Paths) -> tuple[Paths, Paths] | None:
        """Of the products that were summed to the scores the one of queries and keys."""
        real = [(q, k) for q, k in pairs if q and k]
        if len(real) <= 1:
            return real[0] if real else None
        reads = {self.calls[path].reads for path in v}
        both = [(q, k) for q, k in real if {self.calls[path].reads for path in k} & reads]
        same = [(q, k) for q, k in both if {self.calls[path].reads for path in q} & reads] or both
        return same[0] if len({(frozenset(q), frozenset(k)) for q, k in same}) == 1 else None

    def _sources(self, labels: Labels) -> frozenset[str]:
        """The matrices whose outputs these are, without those that only feed another of them."""
        found = {path for path in paths(labels) if path in self.calls and not self.calls[path].kernel}
        feeding = {one for path in found for one in paths(self.calls[path].labels) if one in found}
        return frozenset(found - feeding if found - feeding else found)

    def _fused(
        self, q: Paths, k: Paths, v: Paths, labels: tuple[Labels, Labels], values: Labels
    ) -> dict[str, Part] | None:
        parts = {"q": (q, labels[0]), "k": (k, labels[1]), "v": (v, values)}
        if q == k == v and len(q) == 1:
            return {next(iter(q)): ("qkv", self._layout({n: x for n, (_, x) in parts.items()}))}
        if k == v and len(k) == 1 and not q & k:
            layout = self._layout({"k": labels[1], "v": values})
            return {next(iter(k)): ("kv", layout)} | dict.fromkeys(q, ("q", None))
        if q == k and len(q) == 1 and not q & v:
            return {next(iter(q)): ("qk", None), **dict.fromkeys(v, ("v", None))}
        if q & k or q & v or k & v:
            return None
        return {path: (name, None) for name, (found, _) in parts.items() for path in found}

    def _low_rank(self, path: str) -> str | None:
        """The matrix that compresses what this one expands: its only source, read by nothing outside."""
        labels = self.calls[path].labels
        feeders = paths(labels)
        if len(feeders) != 1 or not all(isinstance(i.origin, View) and not i.marks for i in labels):
            return None
        feeder = next(iter(feeders))
        call = self.calls[feeder]
        if call.lookup or call.kernel or self.blocks.get(feeder) is None:
            return None
        others = [
            one
            for one in self.readers.get(feeder, [])
            if one != path and self.given.get(one, Opinion(role="")).role != "attn.index"
        ]
        return None if others else feeder

    def _cross(self, event: Attention, q: frozenset[str], k: frozenset[str]) -> bool:
        mine, theirs = self._streams(q), self._streams(k)
        if mine and theirs:
            return not mine & theirs
        return event.lengths[0] != event.lengths[1] and bool(q) and not self._origins(q) & self._origins(k)

    def _streams(self, found: Iterable[str]) -> set[int]:
        """Which of the block's inputs these matrices read, directly or through others."""
        numbers, seen, todo = set[int](), set[str](), list(found)
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

    def _origins(self, found: Iterable[str]) -> set[tuple[int, ...]]:
        return {self.calls[path].reads for path in found}

    def _outputs(self, outputs: list[str], family: str, sources: frozenset[str]) -> None:
        known = {path for path in outputs if path not in self.given or self.given[path].role == f"{family}.o"}
        direct = [path for path in known if not self._fed_by(path, known)]
        if len(direct) != 1:
            return
        first = direct[0]
        if self.given.get(first, Opinion(role=f"{family}.o")).role != f"{family}.o":
            return
        second = self._only_reader(first)
        if second is not None:
            self._say(first, f"{family}.o_a")
            self._say(second, f"{family}.o_b")
        else:
            self._say(first, f"{family}.o")
        for label in self.calls[first].labels:
            origin = label.origin
            if isinstance(origin, View) and label.activated and origin.path not in sources:
                self._gates(origin.path, family)

    def _gates(self, path: str, family: str) -> None:
        if path not in self.calls or self.calls[path].kernel or path in self.given:
            return
        self._say(path, f"{family}.gate")
        for feeder in self._chain(path):
            self._say(feeder, f"{family}.gate")

    def _fed_by(self, path: str, others: Iterable[str]) -> bool:
        return any(one in others for one in paths(self.calls[path].labels))

    def _only_reader(self, path: str) -> str | None:
        """The one matrix that reads this one's output and nothing else, where there is one."""
        found = self.readers.get(path, [])
        if len(found) != 1 or self.blocks.get(found[0]) is None:
            return None
        labels = self.calls[found[0]].labels
        if self.calls[found[0]].kernel or self.calls[path].kernel:
            return None
        alone = all(isinstance(i.origin, View) and i.origin.path == path and not i.marks for i in labels)
        return found[0] if alone and self.blocks[found[0]] == self.blocks[path] else None

    # Recurrences, linear attention, short convolutions: mixing without a softmax.

    def _recurrences(self) -> None:
        for path, call in self.calls.items():
            if path in self.given or call.kernel or not self._mixes(call) or self.blocks.get(path) is None:
                continue
            if any(isinstance(label.origin, (Attended, Stream)) for label in call.labels):
                continue
            readers = [one for one in self.readers.get(path, []) if self._mixes(self.calls[one])]
            feeds = [one for one in self.readers.get(path, []) if self._chain(one) >= {path}]
            if feeds and readers and not any(path in self._direct(one) for one in readers if one != path):
                continue
            self._recurrence(path, call)

    def _direct(self, path: str) -> set[str]:
        return paths(self.calls[path].labels)

    def _mixes(self, call: Call) -> bool:
        return any(label.marks & MIXED for label in call.labels)

    def _recurrence(self, out: str, call: Call) -> None:
        members = {path for path in self._chain(out) if not self.calls[path].kernel}
        # What reads the mixed stream and is mixed again stands inside (Mamba's x); the last reader is the way out.
        inside = [one for one in self.readers.get(out, []) if self._mixes(self.calls[one])]
        if inside:
            self._say(out, "mixer")
            return
        self._say(out, "mixer.out")
        first = {path for path in members if self._streams([path]) and not self._chain(path)}
        for path in members:
            if path in self.given and not self.given[path].role.startswith("mixer"):
                continue
            if first == {path} and self.calls[path].width > self.calls[out].width:
                self._say(path, "mixer.in")
            else:
                self._say(path, "mixer")
        for label in call.labels:
            origin = label.origin
            if not isinstance(origin, View) or origin.path not in first or len(first) == 1:
                continue
            kinds = {
                i.marks for i in call.labels if isinstance(i.origin, View) and i.origin.path == origin.path
            }
            if all(not marks & MIXED and not marks & POSITIVE and marks for marks in kinds):
                self._say(origin.path, "mixer.gate")

    # Feed-forwards: dense, shared and routed.

    def _feedforward(self, down: str) -> None:
        call = self.calls[down]
        if down in self.given or call.kernel or call.lookup or self.blocks.get(down) is None:
            return
        labels = frozenset(
            label
            for label in call.labels
            if not (isinstance(label.origin, View) and self._is_router(label.origin.path))
        )
        if not any(label.activated for label in labels):
            return
        if not all(isinstance(i.origin, View) and not i.marks & MIXED for i in labels):
            return
        found = {path for path in paths(labels) if path not in self.given or path in self._pairs(down)}
        if found != paths(labels) or not found or not self._reads_stream(found):
            return
        if {self.calls[path].into for path in found} != {call.width}:
            return  # it does not lead back to where it came from
        roles = self._halves(found)
        if roles is None:
            return
        family = self._kind(down, found)
        for path, (part, layout) in roles.items():
            self._say(path, f"{family}.{part}", layout)
        self._say(down, f"{family}.down")

    def _pairs(self, down: str) -> set[str]:
        return {
            path
            for path in self._direct(down)
            if self.given.get(path, Opinion(role="")).role[:3] in ("ffn", "moe")
        }

    def _is_router(self, path: str) -> bool:
        return path in self.given and self.given[path].role == "router"

    def _reads_stream(self, found: set[str]) -> bool:
        """The normed residual stream: what enters the block, or attention's result, with or without it."""
        for path in found:
            labels = self.calls[path].labels
            if any(isinstance(label.origin, Stream) for label in labels):
                continue
            if any(
                isinstance(i.origin, View) and i.activated and not self._is_router(i.origin.path)
                for i in labels
            ):
                return False
        return True

    def _halves(self, found: set[str]) -> dict[str, Part] | None:
        gates = [
            gate
            for gate in self.flow.gates
            if paths(gate.gate) | paths(gate.up) == found and not any(i.activated for i in gate.up)
        ]
        if len(found) == 1:
            only = next(iter(found))
            if not gates:
                return {only: ("up", None)}
            layout = self._layout({"gate": gates[0].gate, "up": gates[0].up})
            return {only: ("gate_up", layout)}
        if len(found) != 2 or not gates or len(paths(gates[0].gate)) != 1 or len(paths(gates[0].up)) != 1:
            return None
        gate, up = next(iter(paths(gates[0].gate))), next(iter(paths(gates[0].up)))
        if gate == up or self.calls[gate].width != self.calls[up].width:
            return None
        return {gate: ("gate", None), up: ("up", None)}

    def _kind(self, down: str, found: set[str]) -> str:
        if down in self.flow.routed or found & self.flow.routed:
            return "moe"
        if len(self.matrices[down].shape) == 3 and self.matrices[down].kind == "parameter":
            return "*"  # stacked, and no choice was seen to pick from them: routed or shared
        block = self.blocks[down]
        routed = [path for path in self.calls if self.blocks.get(path) == block and self._is_router(path)]
        reads = {self.calls[path].reads for path in found}
        return "shared" if any(self.calls[path].reads in reads for path in routed) else "ffn"

    # What scales the result of a feed-forward.

    def _gated_outputs(self) -> None:
        for gate in self.flow.gates:
            sources, scaled = paths(gate.gate), paths(gate.up)
            if len(sources) != 1 or len(scaled) != 1:
                continue
            path, down = next(iter(sources)), next(iter(scaled))
            said = self.given.get(down)
            if path in self.given or said is None or self.calls[path].kernel:
                continue
            if said.role == "shared.down" and self.calls[path].width == 1:
                self._say(path, "shared_gate")
            elif said.role == "ffn.down" and self.calls[path].width == self.calls[down].width:
                self._say(path, "ffn.gate")

    def _layout(self, parts: dict[str, Labels]) -> str | None:
        return layout(parts, kv_heads=self.kv_heads, heads=self.heads)


def paths(labels: Labels) -> set[str]:
    """The matrices among the origins."""
    return {label.origin.path for label in labels if isinstance(label.origin, View)}


def _columns(labels: Labels) -> frozenset[int]:
    views = (label.origin for label in labels if isinstance(label.origin, View))
    return _union(frozenset((view.geometry, view.width) for view in views if view.geometry is not None))


@lru_cache(maxsize=64)
def _union(views: frozenset[tuple[Geometry, int]]) -> frozenset[int]:
    return frozenset[int]().union(*(columns(geometry, width) for geometry, width in views))


def layout(parts: dict[str, Labels], *, kv_heads: int, heads: int) -> str | None:
    """How the columns of one output are dealt out to its parts; None unless each has exactly one owner.

    ``contiguous:q,k,v`` is all of q, then all of k, then all of v. ``per_head:q,k,v`` repeats q, k, v of one
    head for each head; ``per_group:q,k,v`` repeats the queries of one group, then its key, then its value;
    ``interleaved:gate,up`` alternates column by column; any other number n of repeats is ``per_chunk_n``.
    """
    widths = {
        label.origin.width for labels in parts.values() for label in labels if isinstance(label.origin, View)
    }
    if len(widths) != 1:
        return None
    dealt = _dealt(tuple((part, _columns(labels)) for part, labels in parts.items()), widths.pop())
    if dealt is None:
        return None
    order, repeats, unit = dealt
    if repeats == 1:
        return f"contiguous:{order}"
    if unit == len(parts):
        return f"interleaved:{order}"
    if repeats == kv_heads:
        return f"{'per_head' if kv_heads == heads else 'per_group'}:{order}"
    return f"per_chunk_{repeats}:{order}"


@lru_cache(maxsize=64)  # the blocks of a model look alike
def _dealt(parts: tuple[tuple[str, frozenset[int]], ...], width: int) -> tuple[str, int, int] | None:
    """Order of the parts in one unit, number of units and columns of one, if equal units make up the width."""
    owner = {column: part for part, held in parts for column in held}
    if len(owner) != width or sum(len(held) for _, held in parts) != width:
        return None
    runs = [(part, len(list(run))) for part, run in groupby(owner[column] for column in range(width))]
    unit, repeats = runs[: len(parts)], len(runs) // len(parts)
    if runs != unit * repeats or {part for part, _ in unit} != {part for part, _ in parts}:
        return None
    return ",".join(part for part, _ in unit), repeats, width // repeats
