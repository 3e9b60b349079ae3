"""What `scan` prints for people: a heat map, how far scores repeat, and the plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loratlas import formats
from loratlas.api.results import Placed
from loratlas.cli import output
from loratlas.scan.advice import track_record

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.placement.allocate import Allocation
    from loratlas.placement.plan import Plan
    from loratlas.scan.scores import Scan
    from loratlas.signals.measure_signals import Reading

SHADES = " ░▒▓█"
STRETCHES = 32
"""Most lines of a heat map; deeper models put several layers into one line."""

TEXT_FITS = 300
"""Characters of a placement that people read; the LoraConfig and the next command hold a longer one as well."""


def show(scanned: Scan, anatomy: Anatomy, sites: Sequence[Site], placed: Placed | None) -> None:
    """All of it, on standard output."""
    reading = scanned.readings[scanned.by]
    read = (
        f"{formats.count(scanned.rows)} rows ({formats.count(scanned.visits)} visits, "
        f"{formats.count(scanned.labelled)} counted tokens)"
        if scanned.rows
        else "weights alone"
    )
    output.say(
        f"{anatomy.model} on {scanned.source}: {read}, the cost of {scanned.cost_in_steps:.1f} training steps, "
        f"{formats.duration(scanned.seconds)}"
    )
    if reading.silent is None:
        _show_map(reading, sites)
    _show_signals(scanned)
    for remark in scanned.notes():
        output.say(remark)
    if placed is None:
        output.say("No plan: no signal.")
        return
    _show_plan(placed.plan, placed.allocation)
    output.say(track_record(scanned.by))


def _show_map(reading: Reading, sites: Sequence[Site]) -> None:
    """Layer by role; a cell is the share of the best site's value, 0 to 100, and a shade."""
    column = reading.column
    worth = {path: v if column.pays == "high" else 1 / max(v, 1e-12) for path, v in reading.values.items()}
    roles = list(dict.fromkeys(site.role for site in sites))
    layers = sorted({site.layer for site in sites if site.layer is not None})
    width = -(-len(layers) // STRETCHES) or 1
    stretches: list[Sequence[int | None]] = [layers[i : i + width] for i in range(0, len(layers), width)]
    if any(site.layer is None for site in sites):
        stretches.append([None])
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    for index, stretch in enumerate(stretches):
        for site in sites:
            if site.layer in stretch and site.path in worth:
                cells[index, site.role].append(worth[site.path])
    means = {key: sum(listed) / len(listed) for key, listed in cells.items()}
    best = max(means.values(), default=0.0)
    drawn = output.table("layer", *((_short(role), "right") for role in roles))
    drawn.padding = (0, 1, 0, 0)
    for index, stretch in reversed(list(enumerate(stretches))):
        drawn.add_row(_name(stretch), *(_cell(means.get((index, role)), best) for role in roles))
    output.show(drawn)
    how = "" if column.pays == "high" else ", inverted: low is better"
    output.say(
        f"{column.name} ({column.unit}{how}), of the best site's, in hundredths; the last layer on top."
    )


def _name(stretch: Sequence[int | None]) -> str:
    first, last = stretch[0], stretch[-1]
    return "–" if first is None else str(first) if first == last else f"{first}–{last}"


def _short(role: str) -> str:
    """``attn.q`` under one heading with its family, so that a dozen roles fit into 80 columns."""
    family, _, part = role.partition(".")
    return f"{family}\n{part}" if part else family


def _cell(value: float | None, best: float) -> str:
    if value is None or not best > 0:
        return "·"
    share = max(value / best, 0.0)
    shade = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
    return f"{shade}{round(100 * share):>3}"


def _show_signals(scanned: Scan) -> None:
    with_first: Mapping[str, float] = {
        pair["two"]: pair["tau"] for pair in scanned.agreement() if pair["one"] == "gradient"
    }
    compared = [("with gradient, τ", "right")] if with_first else []
    drawn = output.table("score", "better", ("repeats, τ", "right"), ("of its top", "right"), *compared)
    for name, reading in scanned.readings.items():
        numbers = [reading.repeats, reading.repeats_top, *([with_first.get(name)] if with_first else [])]
        drawn.add_row(name, reading.column.pays, *map(_number, numbers))
    output.show(drawn)
    output.say(
        "repeats: agreement (Kendall) of the orders from two halves of the rows or two trials; top: of the best sites."
    )


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2f}"


def _show_plan(plan: Plan, allocation: Allocation) -> None:
    from loratlas.placement.budget import UNITS, parse_budget

    unit = UNITS[parse_budget(allocation.budget).quantity]
    output.say(
        f"\nPlan for {allocation.budget}: {formats.count(allocation.spent)} of {formats.count(allocation.allowed)} "
        f"{unit}, {len(plan.rows)} sites"
        + (f", {len(allocation.left_out)} left out" if allocation.left_out else "")
    )
    by_role: dict[str, list[int]] = defaultdict(list)
    for row in plan.rows:
        by_role[row.site.role].append(row.rank)
    drawn = output.table("role", ("sites", "right"), "ranks", ("trainable", "right"))
    for role, ranks in by_role.items():
        count = sum(row.trainable for row in plan.rows if row.site.role == role)
        low, high = min(ranks), max(ranks)
        drawn.add_row(
            role, str(len(ranks)), str(low) if low == high else f"{low} to {high}", formats.count(count)
        )
    output.show(drawn)
    if len(plan.text) <= TEXT_FITS:
        output.say(f"As text: {plan.text}")
