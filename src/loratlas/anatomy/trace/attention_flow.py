"""Attention, as it behaves: a product of two activations, a softmax, a product with a third."""

from __future__ import annotations

from loratlas.anatomy.trace.evidence import Opinion, Part, TraceEvidence, paths
from loratlas.anatomy.trace.flow_records import MIXED, AttentionFlow, Labels, View

Paths = frozenset[str]


def attention(seen: TraceEvidence, event: AttentionFlow, outputs: list[str]) -> None:
    """Say which matrices made queries, keys and values of one attention, and which reads what came out.

    Args:
        seen: what is known so far, and where to say it.
        event: the attention.
        outputs: the matrices that read its result.
    """
    adapters: dict[str, str] = {}

    def sources(labels: Labels) -> Paths:
        makers = seen.sources(labels)
        paired = seen.pairs(makers)
        adapters.update(paired)
        return makers - paired.keys()

    v = sources(event.v)
    pairs = [(sources(q), sources(k)) for q, k in event.pairs]
    chosen = _content(seen, pairs, v)
    if chosen is None:
        _queries(seen, pairs, v, outputs)
        return
    if not v:
        return
    number = pairs.index(chosen)
    labels = list(event.pairs)[number]
    q, k = chosen
    family = "xattn" if _cross(seen, event, q, k | v) else "attn"
    roles = _fused(seen, q, k, v, labels, event.v)
    if roles is None:
        for path in q | k | v:
            seen.unclear.add(path)
        return
    widest = {
        part: max(seen.calls[path].width for path in roles if roles[path][0] == part)
        for part, _ in roles.values()
    }
    for path, (part, layout) in roles.items():
        if seen.calls[path].width < widest[part]:
            seen.unclear.add(path)  # it shaped the widest one's output and is no part of it
            continue
        low = _low_rank(seen, path)
        if low is not None and part in ("q", "kv"):
            seen.say(low, f"{family}.{part}_a")
            part = f"{part}_b"
        seen.say(path, f"{family}.{part}", layout)
    for path in {*adapters, *adapters.values()}:
        seen.say(path, f"{family}.adapter")
    for other, relative in pairs:
        for path in (other | relative) - q - k - v:
            if not seen.streams([path]):
                seen.say(path, f"{family}.rel")
    _outputs(seen, outputs, family, q | k | v)


def _queries(seen: TraceEvidence, pairs: list[tuple[Paths, Paths]], v: Paths, outputs: list[str]) -> None:
    """Keys and values that another block made: what is left are queries and the output."""
    q = {path for makers, k in pairs for path in makers if not k}
    if v or len(q) != 1 or len(pairs) != 1:
        return
    for path in q:
        seen.say(path, "attn.q")
    _outputs(seen, outputs, "attn", frozenset(q))


def _content(seen: TraceEvidence, pairs: list[tuple[Paths, Paths]], v: Paths) -> tuple[Paths, Paths] | None:
    """Of the products that were summed to the scores the one of queries and keys."""
    real = [(q, k) for q, k in pairs if q and k]
    if len(real) <= 1:
        return real[0] if real else None
    reads = {seen.calls[path].reads for path in v}
    both = [(q, k) for q, k in real if {seen.calls[path].reads for path in k} & reads]
    same = [(q, k) for q, k in both if {seen.calls[path].reads for path in q} & reads] or both
    return same[0] if len({(frozenset(q), frozenset(k)) for q, k in same}) == 1 else None


def _fused(
    seen: TraceEvidence, q: Paths, k: Paths, v: Paths, labels: tuple[Labels, Labels], values: Labels
) -> dict[str, Part] | None:
    parts = {"q": (q, labels[0]), "k": (k, labels[1]), "v": (v, values)}
    if q == k == v and len(q) == 1:
        return {next(iter(q)): ("qkv", seen.layout({n: x for n, (_, x) in parts.items()}))}
    if k == v and len(k) == 1 and not q & k:
        layout = seen.layout({"k": labels[1], "v": values})
        return {next(iter(k)): ("kv", layout)} | dict.fromkeys(q, ("q", None))
    if q == k and len(q) == 1 and not q & v:
        return {next(iter(q)): ("qk", None), **dict.fromkeys(v, ("v", None))}
    if k == v and not q & k:
        separate: dict[str, Part] = {**dict.fromkeys(q, ("q", None)), **dict.fromkeys(k, ("kv", None))}
        return separate
    if q & k or q & v or k & v:
        return None
    return {path: (name, None) for name, (paths, _) in parts.items() for path in paths}


def _low_rank(seen: TraceEvidence, path: str) -> str | None:
    """The matrix that compresses what this one expands: its only source, read by nothing outside."""
    labels = seen.calls[path].labels
    feeders = paths(labels)
    if len(feeders) != 1 or not all(isinstance(i.origin, View) and not i.marks for i in labels):
        return None
    feeder = next(iter(feeders))
    call = seen.calls[feeder]
    if call.lookup or call.kernel or seen.blocks.get(feeder) is None:
        return None
    others = [
        one
        for one in seen.readers.get(feeder, [])
        if one != path and seen.given.get(one, Opinion(role="")).role != "attn.index"
    ]
    return None if others else feeder


def _cross(seen: TraceEvidence, event: AttentionFlow, q: frozenset[str], k: frozenset[str]) -> bool:
    mine, theirs = seen.streams(q), seen.streams(k)
    if mine and theirs:
        return not mine & theirs
    return event.lengths[0] != event.lengths[1] and bool(q) and not seen.reads(q) & seen.reads(k)


def _outputs(seen: TraceEvidence, outputs: list[str], family: str, sources: frozenset[str]) -> None:
    known = {path for path in outputs if path not in seen.given or seen.given[path].role == f"{family}.o"}
    direct = [path for path in known if not seen.fed_by(path, known)]
    if len(direct) != 1:
        return
    first = direct[0]
    if seen.given.get(first, Opinion(role=f"{family}.o")).role != f"{family}.o":
        return
    second = seen.only_reader(first)
    if second is not None:
        seen.say(first, f"{family}.o_a")
        seen.say(second, f"{family}.o_b")
    else:
        seen.say(first, f"{family}.o")
    for label in seen.calls[first].labels:
        origin = label.origin
        gates = label.activated and not label.marks & MIXED
        if isinstance(origin, View) and gates and origin.path not in sources:
            _gates(seen, origin.path, family)


def _gates(seen: TraceEvidence, path: str, family: str) -> None:
    if path not in seen.calls or seen.calls[path].kernel or path in seen.given:
        return
    seen.say(path, f"{family}.gate")
    for feeder in seen.chain(path):
        seen.say(feeder, f"{family}.gate")
