"""The reader that looks at behaviour: roles from one observed forward pass, without any name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from loratlas.anatomy.flow import Attention, Flow, Gate, Geometry, Labels, Mixed, View, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What the trace takes a module's matrix for.

    Args:
        role: e.g. ``"attn.q"``.
        layout: row layout of a fused role.
        together: all modules of the same attention or feed-forward, this one included.
    """

    role: str
    layout: str | None
    together: frozenset[str]


def opinions(flow: Flow, *, kv_heads: int, heads: int) -> dict[str, Opinion]:
    """Module → opinion; a module that plays two different parts, or an unclear one, has none."""
    given: dict[str, Opinion] = {}
    contradicted: set[str] = set()
    readers: dict[int, list[str]] = {}
    for module, labels in flow.inputs.items():
        for event in {label.origin.event for label in labels if isinstance(label.origin, Mixed)}:
            readers.setdefault(event, []).append(module)
    gates: dict[frozenset[str], list[Gate]] = {}
    for gate in flow.gates:
        gates.setdefault(frozenset(_modules(gate.gate) | _modules(gate.up)), []).append(gate)
    found = [
        _attention(flow, event, readers.get(number, []), kv_heads, heads)
        for number, event in enumerate(flow.attentions)
    ]
    found += [_feedforward(flow, module, gates) for module in flow.inputs]
    for entry in found:
        for module, opinion in entry.items():
            if given.setdefault(module, opinion) != opinion:
                contradicted.add(module)
    return {module: opinion for module, opinion in given.items() if not contradicted & opinion.together}


def _attention(
    flow: Flow, event: Attention, outputs: list[str], kv_heads: int, heads: int
) -> dict[str, Opinion]:
    sources = [_single(labels) for labels in (event.q, event.k, event.v)]
    q, k, v = sources
    if q is None or k is None or v is None or len(outputs) != 1:
        return {}
    if len({flow.reads[module] for module in (q, k, v)}) != 1:
        return {}  # keys of another sequence, or made from a compressed one: for a later reader
    roles: dict[str, tuple[str, str | None]] = {outputs[0]: ("attn.o", None)}
    if len({q, k, v}) == 3:
        roles |= {q: ("attn.q", None), k: ("attn.k", None), v: ("attn.v", None)}
    elif q == k == v:
        layout = _layout({"q": event.q, "k": event.k, "v": event.v}, kv_heads=kv_heads, heads=heads)
        if layout is None:
            return {}
        roles[q] = ("attn.qkv", layout)
    else:
        return {}
    return _opinions(roles)


def _feedforward(flow: Flow, down: str, gates: dict[frozenset[str], list[Gate]]) -> dict[str, Opinion]:
    labels = flow.inputs[down]
    if not any(label.activated for label in labels) or any(isinstance(i.origin, Mixed) for i in labels):
        return {}
    modules = {label.origin.module for label in labels if isinstance(label.origin, View)}
    events = gates.get(frozenset(modules), [])
    if len(modules) == 1 and not events:
        return _opinions({modules.pop(): ("ffn.up", None), down: ("ffn.down", None)})
    if len(events) != 1:
        return {}
    return _gated(flow, events[0], down)


def _gated(flow: Flow, event: Gate, down: str) -> dict[str, Opinion]:
    gate, up = (_modules(labels) for labels in (event.gate, event.up))
    if len(gate) != 1 or len(up) != 1 or any(label.activated for label in event.up):
        return {}
    if gate == up:
        layout = _layout({"gate": event.gate, "up": event.up}, kv_heads=0, heads=0)
        if layout is None:
            return {}
        return _opinions({gate.pop(): ("ffn.gate_up", layout), down: ("ffn.down", None)})
    first, second = gate.pop(), up.pop()
    if flow.reads[first] != flow.reads[second]:
        return {}
    return _opinions({first: ("ffn.gate", None), second: ("ffn.up", None), down: ("ffn.down", None)})


def _opinions(roles: dict[str, tuple[str, str | None]]) -> dict[str, Opinion]:
    together = frozenset(roles)
    return {
        module: Opinion(role=role, layout=layout, together=together)
        for module, (role, layout) in roles.items()
    }


def _modules(labels: Labels) -> set[str]:
    return {label.origin.module if isinstance(label.origin, View) else "" for label in labels}


def _single(labels: Labels) -> str | None:
    """The one module all labels come from, untouched by a nonlinearity; else None."""
    modules = _modules(labels)
    if len(modules) != 1 or "" in modules or any(label.activated for label in labels):
        return None
    return modules.pop()


def _columns(labels: Labels) -> frozenset[int]:
    views = (label.origin for label in labels if isinstance(label.origin, View))
    return _union(frozenset((view.geometry, view.width) for view in views))


@lru_cache(maxsize=64)
def _union(views: frozenset[tuple[Geometry, int]]) -> frozenset[int]:
    return frozenset[int]().union(*(columns(geometry, width) for geometry, width in views))


def _layout(parts: dict[str, Labels], *, kv_heads: int, heads: int) -> str | None:
    """How the columns of one output are dealt out to its parts; None unless each has exactly one owner.

    ``contiguous:q,k,v`` is all of q, then all of k, then all of v. ``per_head:q,k,v`` repeats q, k, v of one
    head for each head; ``per_group:q,k,v`` repeats the queries of one group, then its key, then its value;
    any other number n of repeats is written ``per_chunk_n``.
    """
    widths = {
        label.origin.width for labels in parts.values() for label in labels if isinstance(label.origin, View)
    }
    if len(widths) != 1:
        return None
    dealt = _dealt(tuple((part, _columns(labels)) for part, labels in parts.items()), widths.pop())
    if dealt is None:
        return None
    order, repeats = dealt
    if repeats == 1:
        return f"contiguous:{order}"
    if repeats == kv_heads:
        return f"{'per_head' if kv_heads == heads else 'per_group'}:{order}"
    return f"per_chunk_{repeats}:{order}"


@lru_cache(maxsize=64)  # the blocks of a model look alike
def _dealt(parts: tuple[tuple[str, frozenset[int]], ...], width: int) -> tuple[str, int] | None:
    """Order of the parts in one unit and number of units, if equal units make up the whole width."""
    owner = {column: part for part, held in parts for column in held}
    if len(owner) != width or sum(len(held) for _, held in parts) != width:
        return None
    runs = [(part, len(list(run))) for part, run in groupby(owner[column] for column in range(width))]
    unit, repeats = runs[: len(parts)], len(runs) // len(parts)
    if runs != unit * repeats or {part for part, _ in unit} != {part for part, _ in parts}:
        return None
    return ",".join(part for part, _ in unit), repeats
