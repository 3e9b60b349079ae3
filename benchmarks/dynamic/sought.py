"""A better plan than any rule's, sought by trial, so that the best that arms are measured against is not too low.

A greedy search on the tuning seed: it begins with the arm of fixed ranks that ended lowest there, keeps its learning
rate, and trains `TRIES` neighbours in full, each of the best plan so far: ranks capped, a layer left out, a few ranks
exchanged at random. What ended lower than all before it is then trained on the case's fresh seeds. Not registered; the
records lie in a folder of their own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.dynamic.arms import Plans
from benchmarks.dynamic.cases import Opened
from benchmarks.dynamic.judging.against import STAYING
from benchmarks.dynamic.judging.judge import CaseLosses, difference
from benchmarks.dynamic.queue import FIRST_FRESH, Job, Protocol, best_rate, fresh_job, loss_at, tuned
from benchmarks.dynamic.records import Record
from benchmarks.oracle import published
from loratlas.anatomy.sites import Site
from loratlas.placement.canonical import table_text
from loratlas.placement.plan import place
from loratlas.scan.plan_from_scores import candidates

SOUGHT = "sought"

TRIES = 8
"""Neighbours that are trained."""

CAP = 2
"""No rank above so many times the reference rank, in the neighbour whose ranks are capped."""

EXCHANGED = 0.25
"""Share of the sites that give a rank away in an exchange."""

BEGUN_ELSEWHERE = frozenset({"eva", "gora_start"})
"""Arms whose adapters begin in their own way: their loss is not that of their ranks alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best plan so far on the tuning seed.

    Args:
        start: the arm that the search began with. found: the neighbour's number; 0 for the start itself.
        placement: every rank written. rate: of all tries. loss: nats per token.
    """

    start: str
    found: int
    placement: str
    rate: float
    loss: float


def best_so_far(
    registered: Sequence[Record], sought: Sequence[Record], length: int, tokens: np.ndarray
) -> Best | None:
    """Where the search stands; None before any arm was tuned."""
    curves = {
        arm: curve
        for arm in dict.fromkeys(record.arm for record in registered)
        if arm in STAYING - BEGUN_ELSEWHERE and (curve := tuned(registered, arm, length, tokens, 1))
    }
    if not curves:
        return None
    start = min(curves, key=lambda arm: min(curves[arm].values()))
    rate = best_rate(curves[start])
    (own, *_) = [
        record
        for record in registered
        if (record.arm, record.rate) == (start, rate) and record.seed < FIRST_FRESH
    ]
    best = Best(start=start, found=0, placement=own.placement, rate=rate, loss=curves[start][rate])
    for number in range(1, TRIES + 1):
        for record in sought:
            loss = loss_at(record, length, tokens)
            if record.arm == _name(number) and loss < best.loss:
                best = replace(best, found=number, placement=record.placement, loss=loss)
    return best


def next_sought(
    protocol: Protocol, registered: Sequence[Record], sought: Sequence[Record], tokens: np.ndarray
) -> Job | None:
    """The first run that is missing: the tries, then the fresh seeds of what was found, if anything was."""
    best = best_so_far(registered, sought, protocol.tuning_lengths[-1], tokens)
    if best is None:
        return None
    tried = {record.arm for record in sought}
    for number in range(1, TRIES + 1):
        if _name(number) not in tried:
            return Job(arm=_name(number), rate=best.rate, seed=1, lengths=tuple(protocol.tuning_lengths))
    return fresh_job(protocol, sought, {SOUGHT: best.rate}) if best.found else None


def plans_of(job: Job, opened: Opened, registered: Sequence[Record], sought: Sequence[Record]) -> Plans:
    """The plan of a run that `next_sought` asked for."""
    best = best_so_far(registered, sought, job.lengths[0], opened.tokens)
    assert best is not None
    if job.arm == SOUGHT:
        return {SOUGHT: [best.placement]}
    anatomy = opened.anatomy
    ranks = {row.site.path: row.rank for row in place(anatomy, best.placement).rows}
    budget = published.parameters(anatomy, opened.case.budget)
    number = int(job.arm.removeprefix(_name("")))
    return {job.arm: [table_text(anatomy, neighbour(ranks, candidates(anatomy), budget, number))]}


def neighbour(ranks: Mapping[str, int], sites: Sequence[Site], budget: float, number: int) -> dict[str, int]:
    """A plan near another one, of the same parameters.

    Args:
        ranks: path → rank, of the other one. sites: that may carry an adapter. budget: parameters.
        number: 1 for capped ranks, 2 and 3 for the first and the last layer left out, others for exchanges; an
            exchange too where the plan is so already.
    """
    reference = budget / sum(site.lora_parameters(1) for site in sites)
    layers = [site.layer for site in sites if site.layer is not None]
    left_out = {2: min(layers), 3: max(layers)}.get(number)
    found: dict[str, int] = {}
    if number == 1:
        weights = {site.path: max(float(ranks.get(site.path, 0)), reference / 4) for site in sites}
        found = published.proportional(weights, sites, budget, most=max(1, round(CAP * reference)))
    elif left_out is not None:
        weights = {
            site.path: 0.0 if site.layer == left_out else float(ranks.get(site.path, 0)) for site in sites
        }
        found = published.proportional(weights, sites, budget)
    return found if found and found != dict(ranks) else exchanged(ranks, sites, budget, seed=number)


def exchanged(ranks: Mapping[str, int], sites: Sequence[Site], budget: float, *, seed: int) -> dict[str, int]:
    """A quarter of the sites gives a rank each, others take them, drawn at random, as far as the budget reaches."""
    draw = random.Random(seed)
    found = {path: rank for path, rank in ranks.items() if rank}
    giving = set(draw.sample(sorted(found), max(1, round(EXCHANGED * len(found)))))
    for path in giving:
        found[path] -= 1
    left = budget - sum(site.lora_parameters(found.get(site.path, 0)) for site in sites)
    taking = [site for site in sites if site.path not in giving]
    draw.shuffle(taking)
    for site in taking:
        rank = found.get(site.path, 0)
        if site.lora_parameters(1) <= left and rank < site.max_rank:
            found[site.path] = rank + 1
            left -= site.lora_parameters(1)
    return {path: rank for path, rank in found.items() if rank}


def sought_plan(losses: CaseLosses, best: Best) -> dict[str, Any]:
    """What a case says of the search, as plain data.

    Args:
        losses: of registered arms, and of what was found. best: where the search ended.
    """
    said: dict[str, Any] = {"start": best.start, "tries": TRIES, "found": best.found, "rate": best.rate}
    if SOUGHT in losses.losses:
        said |= {
            "placement": best.placement,
            "loss": round(float(losses.by_seed(SOUGHT).mean()), 5),
            "minus_start": difference(losses, SOUGHT, best.start).to_json(),
            "minus_all": difference(losses, SOUGHT).to_json(),
            "auto_minus": difference(losses, "auto", SOUGHT).to_json(),
        }
    return said


def _name(number: int | str) -> str:
    return f"try-{number}"
