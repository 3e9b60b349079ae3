"""Training one run of a case, on from where a killed process left it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dynamic.arms import Plans, Policies, hooks_of, plan_of
from benchmarks.dynamic.cases import Opened
from benchmarks.dynamic.curves import WARMUP, Branches, trunk_steps
from benchmarks.dynamic.records import Record
from benchmarks.dynamic.rule_plans import start


def train_run(
    opened: Opened,
    arm: str,
    rate: float,
    seed: int,
    lengths: Sequence[int],
    *,
    judged: int | None = None,
    plans: Plans | None = None,
    policies: Policies | None = None,
    work: Path | None = None,
    watch: Callable[[int, dict[str, Any]], object] = lambda length, point: None,
) -> Record:
    """Train an arm once and say how runs of each length end.

    Args:
        opened: the case.
        arm, rate, seed: which.
        lengths: steps, rising.
        judged: steps that the heads of policies are a share of; None for the longest.
        plans, policies: further arms.
        work: folder for the state of an unfinished run; it is removed at the end.
        watch: called after every length.
    """
    from loratlas.adapters.trained_heads import detach_adapters
    from loratlas.data.batches.batching import training_order
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    budget = opened.case.budget
    plan = plan_of(arm, opened.anatomy, budget, seed=seed, plans=plans, policies=policies)
    batch = opened.case.rows.batch
    longest = trunk_steps(lengths[-1])
    order = training_order(len(opened.train), steps=lengths[-1], batch_size=batch, seed=seed)
    branches = Branches(lengths, order, opened.evaluate, watch)
    settings = Settings(
        steps=longest,
        lr=rate,
        batch_size=batch,
        seed=seed,
        schedule="constant",
        warmup=max(min(WARMUP, longest - 1) - 0.5, 0) / longest,  # rounded up to whole steps
        dtype="bfloat16",
        compile="off",
        init=(policies or {}).get(arm, {}).get("init", True),
    )
    out = None if work is None else work / f"{arm}-{rate:g}-{seed}"
    deciding = hooks_of(arm, opened.anatomy, budget, steps=judged or lengths[-1], policies=policies)
    model = plan.attach(opened.model, seed=seed)
    try:
        start(arm, opened, model, seed=seed)
        result = fit(
            model,
            opened.train,
            settings,
            hooks=[*deciding, branches],
            packed=opened.packed,
            out=out,
            resume=out is not None,
        )
    finally:
        detach_adapters(model)
        opened.model.eval()
    if out is not None:
        shutil.rmtree(out, ignore_errors=True)
    return Record(
        arm=arm,
        rate=rate,
        seed=seed,
        placement=plan.text,
        trainable=max((point["trainable"] for point in branches.points.values()), default=plan.trainable),
        lengths={length: point["nll"] for length, point in branches.points.items()},
        seconds={length: point["seconds"] for length, point in branches.points.items()},
        moves=[move.to_json() for hook in deciding for move in getattr(hook, "moves", ())],
        diverged=result.diverged,
    )
