"""Plans by published rules for a case: one for each scan seed, kept in a file, and the start that EVA asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dynamic.arms import REFERENCE, STATIC
from benchmarks.dynamic.cases import Opened
from benchmarks.oracle import published, statistics
from loratlas.files import write_json
from loratlas.placement.canonical import table_text
from loratlas.placement.plan import place
from loratlas.scan.plan_from_scores import candidates

SCANS = 3
"""Scan seeds; evaluation seeds take them in turn."""

LOOKS_AT = {
    "gora": "importance",
    "gora_start": "importance",
    "fim_lora": "fisher",
    "dom_lora": "page",
    "aletheia": "norm",
    "sr_lora": "stable",
    "lora_drop": "output",
    "eva": "variance",
    "plop": "alignment",
    "kappatune": "spectrum",
}
"""Rule → statistic."""

BRIEF_RATE = 0.01
"""Of the training that LoRA-drop looks at."""


def plans_for(opened: Opened, rules: Sequence[str], path: Path) -> dict[str, list[str]]:
    """Rule → placements, made at the first call and read at later ones.

    Args:
        opened: the case. rules: names in `benchmarks.oracle.published.RULES`. path: of the file.
    """
    kept: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [rule for rule in rules if rule not in kept]
    if missing:
        sites = candidates(opened.anatomy)
        budget = published.parameters(opened.anatomy, opened.case.budget)
        for seed in range(SCANS):
            measured = measure(opened, [LOOKS_AT[rule] for rule in missing], seed=seed)
            for rule in missing:
                ranks = published.RULES[rule](measured[LOOKS_AT[rule]], sites, budget)
                kept.setdefault(rule, []).append(table_text(opened.anatomy, ranks))
        write_json(path, kept)
    return {rule: kept[rule] for rule in rules}


def measure(opened: Opened, wanted: Sequence[str], *, seed: int) -> dict[str, Mapping[str, Any]]:
    """Statistic → path → value, on the calibration rows of one scan seed."""
    sites = candidates(opened.anatomy)
    batches = statistics.calibration(opened.train, seed=1000 + seed, packed=opened.packed)
    by_name: dict[str, Mapping[str, Any]] = {}
    if {"importance", "fisher", "page", "norm"} & set(wanted):
        by_name |= statistics.gradients(opened.model, sites, batches, seed=seed)
    if "stable" in wanted:
        by_name["stable"] = statistics.stable_ranks(opened.model, sites)
    if "variance" in wanted:
        solved = directions(opened, seed=seed)
        by_name["variance"] = {path: shares for path, (shares, _) in solved.items()}
    if {"alignment", "spectrum"} & set(wanted):
        from loratlas.scan.run_scan import scan

        read = scan(
            opened.model,
            opened.anatomy,
            opened.train,
            signals=["alignment", "spectrum"],
            most_rows=64,
            seed=seed,
        )
        by_name |= {name: read.readings[name].values for name in ("alignment", "spectrum")}
    if "output" in wanted:
        by_name["output"] = _outputs(opened, batches, seed=seed)
    return by_name


def directions(opened: Opened, *, seed: int) -> dict[str, tuple[list[float], Any]]:
    """Path → (shares of the input's energy, directions), of one scan seed."""
    from loratlas.evaluation.token_losses import token_losses
    from loratlas.signals.site_hooks import one_pass

    sites = candidates(opened.anatomy)
    signal = statistics.InputDirections()
    signal.begin(opened.model, sites)
    for batch in statistics.calibration(opened.train, seed=1000 + seed, packed=opened.packed):
        one_pass(opened.model, batch, sites, [signal], token_losses)
    return signal.solved(64)


def start(arm: str, opened: Opened, tuned: Any, *, seed: int) -> None:
    """What an arm does to its adapters before the first step: EVA's are put along the input's directions, GoRA's along
    the gradient, others stay as they are.
    """
    if arm in ("eva", "all_eva"):
        solved = directions(opened, seed=seed % SCANS)
        sites = [row.site for row in _rows(tuned, opened)]
        statistics.eva_start(tuned, sites, {path: found for path, (_, found) in solved.items()})
    elif arm == "gora_start":
        batches = statistics.calibration(opened.train, seed=1000 + seed % SCANS, packed=opened.packed)
        sites = [row.site for row in _rows(tuned, opened)]
        statistics.gora_start(tuned, sites, statistics.mean_gradients(opened.model, sites, batches))


def _rows(tuned: Any, opened: Opened) -> list[Any]:
    from loratlas.adapters.peft_targets import adapted

    names = set(adapted(tuned))
    reference = place(opened.anatomy, STATIC[REFERENCE], budget=opened.case.budget)
    return [row for row in reference.rows if row.site.module in names or row.site.path in names]


def _outputs(opened: Opened, batches: Sequence[Any], *, seed: int) -> dict[str, float]:
    """Of adapters of rank 1 everywhere after `statistics.BRIEF` steps."""
    from loratlas.adapters.trained_heads import detach_adapters
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    sites = candidates(opened.anatomy)
    settings = Settings(
        steps=statistics.BRIEF,
        lr=BRIEF_RATE,
        batch_size=opened.case.rows.batch,
        seed=2000 + seed,
        dtype="bfloat16",
        compile="off",
    )
    tuned = place(opened.anatomy, "all:1").attach(opened.model, seed=seed)
    try:
        fit(tuned, opened.train, settings, packed=opened.packed)
        return statistics.outputs(tuned, sites, batches)
    finally:
        detach_adapters(tuned)
        opened.model.eval()
