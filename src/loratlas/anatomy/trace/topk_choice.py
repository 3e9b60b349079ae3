"""What a top-k chooses by: a router, or an index of keys."""

from __future__ import annotations

from loratlas.anatomy.trace.evidence import TraceEvidence, paths
from loratlas.anatomy.trace.flow_records import MIXED


def choices(seen: TraceEvidence) -> None:
    """Say which matrices made what a top-k chose by."""
    for choice in seen.flow.choices:
        for path in paths(choice.labels):
            if path not in seen.calls or seen.calls[path].lookup:
                continue
            if choice.scored or any(label.marks & MIXED for label in choice.labels):
                seen.say(path, "attn.index")
            elif _fits(seen, path, choice.size):
                seen.say(path, "router")
                for feeder in seen.chain(path):
                    seen.say(feeder, "router")


def _fits(seen: TraceEvidence, path: str, size: int) -> bool:
    """Whether it is as wide as the choice: or a few times so, or wider by some experts that are always on."""
    width = seen.calls[path].width
    return 0 < size <= width < 2 * size or (size > 0 and width % size == 0 and width // size <= 8)
