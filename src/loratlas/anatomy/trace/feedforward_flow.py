"""Feed-forwards, dense, shared and routed: up, a nonlinearity or a gate, and back down."""

from __future__ import annotations

from collections.abc import Iterable

from loratlas.anatomy.trace.evidence import Opinion, Part, TraceEvidence, paths
from loratlas.anatomy.trace.flow_records import MIXED, Stream, View


def feedforward(seen: TraceEvidence, down: str) -> None:
    """Say what leads up to this matrix, if it leads back down from a nonlinearity."""
    call = seen.calls[down]
    if down in seen.given or call.kernel or call.lookup:
        return
    labels = frozenset(
        label
        for label in call.labels
        if not (isinstance(label.origin, View) and seen.is_router(label.origin.path))
    )
    if not any(label.activated for label in labels):
        return
    if not all(isinstance(i.origin, View) and not i.marks & MIXED for i in labels):
        return
    adapters = seen.pairs(paths(labels))
    made_of = paths(labels) - adapters.keys()
    makers = {path for path in made_of if path not in seen.given or path in _pairs(seen, down)}
    if makers != made_of or not makers or not _reads_stream(seen, makers):
        return
    if {seen.calls[path].into for path in makers} != {call.width}:
        return  # it does not lead back to where it came from
    roles = _halves(seen, down, makers, adapters.keys())
    if roles is None or _scales_its_input(seen, down, makers):
        return
    family = _kind(seen, down, makers)
    for path, (part, layout) in roles.items():
        seen.say(path, f"{family}.{part}", layout)
    seen.say(down, f"{family}.down")
    for path in {*adapters, *adapters.values()}:
        seen.say(path, f"{family}.adapter")


def _pairs(seen: TraceEvidence, down: str) -> set[str]:
    return {
        path
        for path in seen.direct(down)
        if seen.given.get(path, Opinion(role="")).role[:3] in ("ffn", "moe")
    }


def _reads_stream(seen: TraceEvidence, makers: set[str]) -> bool:
    """The normed residual stream: what enters the block, or attention's result, with or without it."""
    for path in makers:
        labels = seen.calls[path].labels
        if any(isinstance(label.origin, Stream) for label in labels):
            continue
        if any(
            isinstance(i.origin, View) and i.activated and not seen.is_router(i.origin.path) for i in labels
        ):
            return False
    return True


def _scales_its_input(seen: TraceEvidence, down: str, makers: set[str]) -> bool:
    """Whether what comes out only weighs what went in: a narrow gate on the stream, built like a feed-forward."""
    read = {label.origin for path in makers for label in seen.calls[path].labels}
    return any(
        paths(gate.gate) == {down} and read <= {label.origin for label in gate.up} for gate in seen.flow.gates
    )


def _halves(
    seen: TraceEvidence, down: str, makers: set[str], adapters: Iterable[str]
) -> dict[str, Part] | None:
    products = [
        gate for gate in seen.flow.gates if (paths(gate.gate) | paths(gate.up)).difference(adapters) == makers
    ]
    gates = [gate for gate in products if not any(i.activated for i in gate.up)]
    if len(makers) == 1:
        only = next(iter(makers))
        if not products:
            both = seen.calls[only].width == 2 * seen.calls[down].into
            return {only: ("gate_up" if both else "up", None)}
        # Where both halves pass a nonlinearity, it is unidentified which of them gates.
        layout = seen.layout({"gate": gates[0].gate, "up": gates[0].up}) if gates else None
        return {only: ("gate_up", layout)}
    if len(makers) != 2 or not gates or len(paths(gates[0].gate)) != 1 or len(paths(gates[0].up)) != 1:
        return None
    gate, up = next(iter(paths(gates[0].gate))), next(iter(paths(gates[0].up)))
    if gate == up or seen.calls[gate].width != seen.calls[up].width:
        return None
    return {gate: ("gate", None), up: ("up", None)}


def _kind(seen: TraceEvidence, down: str, makers: set[str]) -> str:
    if any(seen.is_routed(path) for path in (down, *makers)):
        return "moe"
    if len(seen.matrices[down].shape) == 3 and seen.matrices[down].kind == "parameter":
        return "*"  # stacked, and no choice was seen to pick from them: routed or shared
    block = seen.blocks[down]
    routed = [path for path in seen.calls if seen.blocks.get(path) == block and seen.is_router(path)]
    reads = {seen.calls[path].reads for path in makers}
    return "shared" if any(seen.calls[path].reads in reads for path in routed) else "ffn"


def gated_outputs(seen: TraceEvidence) -> None:
    """Say what scales the result of a feed-forward: of the shared expert, or of every channel."""
    for gate in seen.flow.gates:
        sources, scaled = paths(gate.gate), paths(gate.up)
        if len(sources) != 1 or len(scaled) != 1:
            continue
        path, down = next(iter(sources)), next(iter(scaled))
        said = seen.given.get(down)
        if path in seen.given or said is None or seen.calls[path].kernel:
            continue
        if said.role == "shared.down" and seen.calls[path].width == 1:
            seen.say(path, "shared_gate")
        elif said.role == "ffn.down" and seen.calls[path].width == seen.calls[down].width:
            seen.say(path, "ffn.gate")
