"""`loratlas.place`: the plan of a model by any of its names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.listener import Listener
from loratlas.errors import SettingsError
from loratlas.scan.advice import track_record

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy
    from loratlas.placement.plan import Plan


def place(
    model: Any,
    placement: str,
    *,
    budget: str | float | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    round_ranks: bool = False,
    allow_unresolved: bool = False,
) -> Plan:
    """Turn a placement into a plan: exact sites, exact ranks.

    Args:
        model: as in :func:`loratlas.read`, or an anatomy.
        placement: in the placement language, ``"q,v:8 + feedforward.down:4"``; parts without a rank get 16, or what
            the budget leaves them.
        budget: ``"params=2M"``, ``"params=0.5%"``, ``"time=…"``, ``"memory=6GB"`` or ``"like=all:8"``; a number is
            one of parameters.
        alpha: of every site; twice its rank unless given.
        rslora: scale by α/√r (arXiv:2312.03732) instead of α/r.
        dora: train a length for each row of the adapted matrices as well (DoRA, arXiv:2402.09353); a budget of
            parameters counts them.
        round_ranks: round ranks down to 1, 2, 3, 4, 6, 8, 12, 16, 24, …, for a short LoraConfig.
        allow_unresolved: place although matrices of the model are unidentified.

    Returns:
        The plan: `Plan.attach` puts the adapters on a live model, `Plan.to_peft` gives PEFT's config.

    Raises:
        PlacementError, BudgetError, ModelError: with what to write instead.

    >>> import loratlas
    >>> plan = loratlas.place("demo:llama-mini", "q,v:2")
    >>> plan.trainable, len(plan.rows)
    (14336, 16)
    """
    from loratlas.anatomy.sites import Anatomy
    from loratlas.placement.budget import budget_text
    from loratlas.placement.plan import place as place_anatomy
    from loratlas.placement.round_ranks import round_ranks as rounded
    from loratlas.sources import read

    anatomy = model if isinstance(model, Anatomy) else read(model)
    plan = place_anatomy(
        anatomy,
        placement,
        budget=budget_text(budget),
        alpha=alpha,
        rslora=rslora,
        dora=dora,
        allow_unresolved=allow_unresolved,
    )
    return rounded(plan, anatomy) if round_ranks else plan


def check_scores(placement: str | None, scores: Path | None) -> None:
    """Refuse scores for a placement that does not ask for them."""
    from loratlas.scan.plan_from_scores import is_auto

    if scores is not None and not is_auto(placement):
        raise SettingsError(
            given=f"--scores with --placement {placement}",
            found="a placement that names its sites itself",
            instead="--placement auto, or no --scores",
        )


def placed(
    anatomy: Anatomy,
    placement: str,
    *,
    scores: Path | None,
    by: str | None,
    allow_unresolved: bool,
    round_ranks: bool = False,
    dora: bool = False,
    listener: Listener,
    **options: Any,
) -> Plan:
    """The plan of a placement; of ``auto``, by the scores in a file.

    Args:
        anatomy: of the model.
        placement: as written.
        scores: the folder of `loratlas scan --out`, or what --json printed.
        by: the column of it that decides; None for the one that decided the scan.
        allow_unresolved: of a placement in words; scores are of identified sites.
        round_ranks: round them down to few distinct ones.
        dora: as for :func:`loratlas.placement.plan.place`; of a placement in words.
        listener: hears what such plans were worth.
        options: budget, alpha, rslora and memory of :func:`loratlas.placement.plan.place`.
    """
    from loratlas.placement.plan import place
    from loratlas.placement.round_ranks import round_ranks as rounded
    from loratlas.scan.plan_from_scores import plan_from
    from loratlas.scan.scores import load_scan

    if scores is None:
        plan = place(anatomy, placement, dora=dora, allow_unresolved=allow_unresolved, **options)
        for warning in plan.warnings:
            listener.note(warning)
    else:
        if dora:
            raise SettingsError(
                given="--dora with --scores",
                found="scores of what low-rank changes do, and a budget that is shared out by what ranks cost",
                instead="no --dora, or the placement in words that `loratlas plan` prints for these scores",
            )
        scan = load_scan(scores)
        plan, _ = plan_from(scan, anatomy, by=by, **options)
        listener.note(track_record(by or scan.by))
    return rounded(plan, anatomy) if round_ranks else plan


def read_named(model: Any, config: PretrainedConfig | None = None) -> Anatomy:
    """The anatomy of a model under the name that the user wrote.

    Args:
        model: as written.
        config: of the task that it is for; None for what its directory says.
    """
    from loratlas.anatomy.anatomy_cache import cached_anatomy
    from loratlas.anatomy.read import read as read_sites
    from loratlas.sources import base_config, model_name, named_base

    model = named_base(model).model
    source = base_config(model) if config is None else config
    anatomy = cached_anatomy(source) if isinstance(source, str) else read_sites(source)
    return replace(anatomy, model=model_name(model))
