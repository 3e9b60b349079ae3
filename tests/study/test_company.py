"""How many runs are trained side by side."""

from __future__ import annotations

from tests.study.test_run import SPEC

from loratlas.anatomy.cost import cost
from loratlas.study.company import COPIES, MOST, fleet_size
from loratlas.study.prepare import prepare
from loratlas.study.spec import parse_spec


def test_fleets_are_as_large_as_passes_and_memory_allow():
    spec = parse_spec(SPEC)
    prepared = prepare(spec)
    together = fleet_size(spec, prepared, "cpu", free=2**40)
    assert 1 < together <= MOST
    adapters = max(cost(prepared.anatomy, plan.ranks).adapter_bytes for plan in prepared.plans.values())
    # So much is needed beside the runs that three of them still fit, and a fourth does not.
    least = next(
        free
        for free in range(0, 2**30, COPIES * adapters)
        if fleet_size(spec, prepared, "cpu", free=free) > 1
    )
    assert fleet_size(spec, prepared, "cpu", free=least + COPIES * adapters) == 3
    assert fleet_size(spec, prepared, "cpu", free=0) == 1
    assert fleet_size(parse_spec({**SPEC, "batch_size": 512}), prepared, "cpu", free=2**40) == 1
