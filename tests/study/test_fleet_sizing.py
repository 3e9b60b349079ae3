"""How many runs are trained side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.study.test_coordinator import SPEC

from loratlas.errors import ModelError
from loratlas.study.inputs.fleet_sizing import BYTES, MOST, fleet_size
from loratlas.study.inputs.prepare import prepare
from loratlas.study.spec.spec_file import parse_spec


@pytest.fixture(scope="module")
def spec():
    return parse_spec(SPEC)


@pytest.fixture(scope="module")
def prepared(spec):
    return prepare(spec)


def test_as_many_as_share_a_pass(spec, prepared):
    assert 3 < fleet_size(spec, prepared, "cpu", free=2**40) <= MOST
    assert fleet_size(parse_spec({**SPEC, "batch_size": 512}), prepared, "cpu", free=2**40) == 1


def test_as_many_as_memory_holds(spec, prepared):
    """The base once, and every run's own beside it."""
    base = BYTES[spec.dtype] * prepared.anatomy.parameters
    own = max(prepared.memory(plan.ranks) for plan in prepared.plans.values()) - base
    assert own > 0
    assert fleet_size(spec, prepared, "cpu", free=base + 3 * own) == 3
    assert fleet_size(spec, prepared, "cpu", free=base + 3 * own - 1) == 2
    assert fleet_size(spec, prepared, "cpu", free=0) == 1


def test_side_by_side_the_places_count(spec, prepared):
    padded = parse_spec({**SPEC, "packing": "off"})
    assert (
        1 < fleet_size(padded, prepared, "cpu", free=2**40) <= fleet_size(spec, prepared, "cpu", free=2**40)
    )
    long = parse_spec({**SPEC, "packing": "off", "batch_size": 512, "micro_batch": 128})
    assert fleet_size(long, prepared, "cpu", free=2**40) == 1


def test_a_base_with_dropout_takes_no_company(prepared):
    assert fleet_size(parse_spec({**SPEC, "base_dropout": True}), prepared, "cpu", free=2**40) == 1


def test_what_has_no_dry_run_is_not_bounded(spec, prepared):
    def cannot(ranks):
        raise ModelError(given="a base", found="nothing to dry_run", instead="another")

    blind = replace(prepared, memory=cannot)
    assert fleet_size(spec, blind, "cpu", free=0) == fleet_size(spec, prepared, "cpu", free=2**40)
