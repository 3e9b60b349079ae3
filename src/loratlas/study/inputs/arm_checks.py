"""What an arm asks for and its runs could not do, refused by the arm's name before anything is priced or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loratlas.errors import ModelError, SpecError
from loratlas.scan.plan_from_scores import is_auto
from loratlas.study.inputs.match_budgets import moving_of, naming, shared_budget, started
from loratlas.study.results import side_metrics
from loratlas.study.spec.study_spec import StudySpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.data.examples import Encoded
    from loratlas.models.task import Task
    from loratlas.placement.plan import Plan
    from loratlas.training.settings import Settings


def check_task(spec: StudySpec, task: Task, scanned: Sequence[str]) -> None:
    """Refuse what the task does not have: a metric of another, a scan, or rows laid end to end.

    Args:
        spec: the study. task: of its rows. scanned: arms that a scan places.

    Raises:
        SpecError: so.
    """
    side_metrics.check_metric(spec, task)
    for name in scanned if task.name != "causal" else ():
        raise SpecError(
            given=f"arms.{name}: {spec.arms[name].placement}, for {task.name}",
            found="signals that a scan measures on causal language models",
            instead="auto, which decides inside of the runs, or a placement in words, such as all:8",
        )
    if spec.packing == "on" and task.why_padded is not None:
        raise SpecError(given="packing: on", found=task.why_padded, instead="packing: auto")


def check_arms(
    spec: StudySpec,
    plans: Mapping[str, Plan],
    config: PretrainedConfig,
    anatomy: Anatomy,
    memory: PeakMemory,
    scanned: Sequence[str],
    *,
    shared: Mapping[str, Any],
) -> dict[str, int]:
    """Refuse here what would otherwise end a worker: settings, dropout, initialisation and moves of every arm.

    Args:
        spec: the study. plans: arm → plan. config, anatomy: of the base. memory: tells peak bytes.
        scanned: arms that a scan places. shared: settings that all runs share.

    Returns:
        Arm → parameters at the end, of arms whose adapters move.

    Raises:
        RequestError: of an arm; ``given`` says which.
    """
    from loratlas.dynamic.moving_plan import controller_of
    from loratlas.training.settings import Settings
    from loratlas.training.site_rates import site_rate_hooks

    moving: dict[str, int] = {}
    for name, plan in plans.items():
        arm = spec.arms[name]
        with naming(name):
            special = {"loraplus": arm.loraplus, "site_rates": arm.site_rates, "dropout": arm.dropout}
            own = Settings(**shared, lr=spec.learning_rates[0], init=arm.init, **special)
            site_rate_hooks(own, spec.steps)
            plan.to_peft(config, dropout=own.dropout, init=own.drawn, prove=False)
            if is_auto(arm.placement) and name not in scanned:
                wanted = shared_budget(spec, name, plans[spec.reference])
                begun = started(spec, name, anatomy, budget=wanted, memory=memory)
                controller_of(moving_of(arm), begun, config, steps=spec.steps)
                moving[name] = begun.budget
    return moving


def check_patterns(
    spec: StudySpec,
    plans: Mapping[str, Plan],
    scanned: Sequence[str],
    config: PretrainedConfig,
    rows: Encoded,
    settings: Settings,
) -> None:
    """Refuse arms that decide by attention on a base whose attention patterns cannot be seen.

    One row passes through the base without weights, and attentions at work are counted. A base through which no row
    can pass without weights is left to its first run.

    Args:
        spec: the study. plans: arm → plan. scanned: arms that a scan places. config: of the base.
        rows: to train on. settings: of a run.

    Raises:
        SpecError: no pattern was seen.
    """
    from loratlas.dynamic.policies.known_policies import policy_named

    asking = [
        name
        for name, arm in spec.arms.items()
        if is_auto(arm.placement) and name not in scanned and "attention" in policy_named(arm.signal).needs
    ]
    if asking and _patterns(plans[asking[0]], config, rows, settings) == 0:
        raise SpecError(
            given=f"arms.{asking[0]}.signal: {spec.arms[asking[0]].signal}",
            found=f"{config.model_type} for {rows.task.name}, in which no attention pattern can be seen",
            instead="signal: weighted, energy or gradient",
        )


def _patterns(plan: Plan, config: PretrainedConfig, rows: Encoded, settings: Settings) -> int | None:
    """Attentions whose patterns can be seen in a step of one row; None where no step is possible without weights."""
    from loratlas.cost.dry_run import as_step, dry_run, typical
    from loratlas.signals.attention import watched_attention
    from loratlas.training.step.microbatches import microbatches

    row = typical(rows.examples, 1)
    (batch,) = microbatches(as_step(row), [0], packed=False, size=None)
    seen: list[Any] = []
    try:
        with watched_attention(batch, lambda module, *_: seen.append(module)):
            dry_run(config, plan.rows, row, settings, rslora=plan.rslora, packed=False, device="cpu")
    except ModelError:
        return None
    return len(seen)
