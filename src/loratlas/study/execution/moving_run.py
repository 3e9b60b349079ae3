"""A run of a study whose adapters move: what moves them, and what its record says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def moving_hook(job: Mapping[str, Any], plan: Any, base: Any, steps: int) -> Any:
    """What moves the adapters of a run; None where they stay where they are.

    Args:
        job: of the coordinator; ``moving`` has the policy, the schedule and the parameters at the end.
        plan: that the run begins with. base: the bare model, or its config.
        steps: of the run.
    """
    if job.get("moving") is None:
        return None
    from loratlas.dynamic.moving_plan import Moving, Start, controller_of

    asked = dict(job["moving"])
    begun = Start(plan=plan, budget=asked.pop("budget"))
    return controller_of(Moving(**asked), begun, base, steps=steps)


def moves_of(hook: Any, plan: Any, model: Any) -> dict[str, Any]:
    """Moves, decisions and the parameters at the end, as plain data.

    Args:
        hook: that moved. plan: that the run began with. model: the trained `PeftModel`.
    """
    ranks = hook.ranks(model)
    price = {site.path: site.lora_parameters(1) for site in hook.sites}
    kept = sum(row.trainable for row in plan.rows if row.site.path not in ranks)
    return {
        "trainable": kept + sum(price[path] * rank for path, rank in ranks.items()),
        "moves": [move.to_json() for move in hook.moves],
        "decisions": [decision.to_json() for decision in hook.decisions],
    }
