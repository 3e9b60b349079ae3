"""Recurrences, linear attention, short convolutions: tokens that mix without a softmax."""

from __future__ import annotations

from loratlas.anatomy.trace.evidence import TraceEvidence
from loratlas.anatomy.trace.flow_records import MIXED, POSITIVE, Attended, MatrixCall, Stream, View


def recurrences(seen: TraceEvidence) -> None:
    """Say which matrices lead into and out of every mixing of tokens that was no attention."""
    for path, call in seen.calls.items():
        if path in seen.given or call.kernel or not seen.mixes(call) or seen.blocks.get(path) is None:
            continue
        if any(isinstance(label.origin, (Attended, Stream)) for label in call.labels):
            continue
        readers = [one for one in seen.readers.get(path, []) if seen.mixes(seen.calls[one])]
        feeds = [one for one in seen.readers.get(path, []) if seen.chain(one) >= {path}]
        if feeds and readers and not any(path in seen.direct(one) for one in readers if one != path):
            continue
        _recurrence(seen, path, call)


def _recurrence(seen: TraceEvidence, out: str, call: MatrixCall) -> None:
    members = {path for path in seen.chain(out) if not seen.calls[path].kernel}
    # What reads the mixed stream and is mixed again stands inside (Mamba's x); the last reader is the way out.
    inside = [one for one in seen.readers.get(out, []) if seen.mixes(seen.calls[one])]
    if inside:
        seen.say(out, "mixer")
        return
    seen.say(out, "conv" if _convolves(seen, out) else "mixer.out")
    first = {path for path in members if seen.streams([path]) and not seen.chain(path)}
    for path in members:
        if path in seen.given and not seen.given[path].role.startswith("mixer"):
            continue
        if _convolves(seen, path):
            seen.say(path, "conv")
        elif first == {path} and seen.calls[path].width > seen.calls[out].width:
            seen.say(path, "mixer.in")
        else:
            seen.say(path, "mixer")
    for label in call.labels:
        origin = label.origin
        if not isinstance(origin, View) or origin.path not in first or len(first) == 1:
            continue
        kinds = {i.marks for i in call.labels if isinstance(i.origin, View) and i.origin.path == origin.path}
        if all(not marks & MIXED and not marks & POSITIVE and marks for marks in kinds):
            seen.say(origin.path, "mixer.gate")


def _convolves(seen: TraceEvidence, path: str) -> bool:
    """Whether it is a convolution over single tokens: before or behind a longer one it is a part of that."""
    return seen.matrices[path].kind == "conv"
