"""Short trial training of small adapters everywhere, and what each of them turned out to be worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.plan_row import PlanRow
from loratlas.anatomy.sites import Site
from loratlas.errors import ModelError
from loratlas.modeling import device_of
from loratlas.scan.scores import STEP
from loratlas.scan.trial_runs import BATCH, LR, SEEDS, STEPS, TrialListener, Trials
from loratlas.signals.column import Column
from loratlas.signals.measure_signals import LEVEL, Reading
from loratlas.signals.rank_correlation import chance, tau, tau_of_top
from loratlas.signals.registry import TRIAL_COLUMNS

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch
    from loratlas.data.examples import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What trials said, and what they took.

    Args:
        readings: by column.
        cost: in training steps of `STEP` rows.
        rows: indices of the rows that were trained on, each once.
        visits: rows trained on, each as often as it was.
        tokens, labelled: trained on, over all trials.
    """

    readings: dict[str, Reading]
    cost: float
    rows: frozenset[int]
    visits: int
    tokens: int
    labelled: int


def probe(
    model: Any,
    sites: Sequence[Site],
    rows: Encoded,
    judged: Sequence[Batch],
    *,
    removals: bool = True,
    seed: int = 0,
    packed: bool = True,
    steps: int = STEPS,
    lr: float = LR,
    folders: Sequence[Path] | None = None,
    watch: TrialListener | None = None,
) -> Probed:
    """Train adapters of rank 1 at every site for some steps; if asked, take each away by itself.

        probe         = L(without the site's adapter) − L(with all adapters), on ``judged``
        probe_energy  = ‖(α/r) B A‖²_F
        probe_descent = −Σ_t ⟨g_t, θ_t − θ_{t−1}⟩ over the trial's later steps, see `LossChangeAllocation`
        probe_yield   = √(probe_energy · max(probe_descent, 0))

    each, but the last, a mean over trials; the last is of the two means, see `yields`. An energy says how far a site
    went, and Adam takes large matrices further than small ones whatever they are good for; a descent says what the loss
    gained by it, as far as a short trial can see. Their mean is neither led by size alone nor by the first falls of the
    loss.

    Adam's geometry is taken into account: the trial is trained with AdamW. Unlike the other signals these see how
    sites act together, at these few steps.

    Cost: `SEEDS` · ``steps`` training steps of `BATCH` rows, and with ``removals`` one forward pass over ``judged`` for
    every site and trial; small trials share their passes as a fleet.

    Args:
        model: the bare base; left as it was.
        sites: where.
        rows: to train on.
        judged: batches that losses are taken on; the calibration rows, which the trial may train on as well.
        removals: whether ``probe`` is measured too.
        seed: of the first trial; the others follow.
        packed: whether batches may be packed.
        steps: of `BATCH` rows, per trial.
        lr: learning rate, cosine after a warm-up of a tenth.
        folders: one for each trial's checkpoints; what an earlier process left there is gone on with.
        watch: what listens.

    Raises:
        Interrupted, KeyboardInterrupt: Ctrl-C or SIGTERM.
        ModelError: a trial's loss became NaN or infinite; names the site where the base's own numbers are.

    Source: trial training is old; importance as the loss without a part is that of LeCun, Denker, Solla (1990), Optimal
    Brain Damage, here measured instead of expanded. For descents see
    `loratlas.training.loss_change.LossChangeAllocation`.
    Their product with energies is ours (docs/decisions/gain-per-parameter.md).
    """
    from loratlas.adapters.peft_targets import adapted
    from loratlas.adapters.trained_heads import detach_adapters

    plan = [PlanRow(site=site, rank=1, alpha=2.0) for site in sites]
    device = device_of(model)
    batches = [batch.to(device) for batch in judged]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in TRIAL_COLUMNS}
    watch = watch or TrialListener()
    trials = Trials(plan=plan, rows=rows, seed=seed, steps=steps, lr=lr, packed=packed, folders=folders)
    tokens = labelled = 0
    lost_at: int | None = None
    for tuned, result, descents in trials.run(model, watch):
        tokens, labelled = tokens + result.tokens, labelled + result.labelled_tokens
        try:
            if result.diverged:
                lost_at = lost_at or result.diverged_at
                continue
            layers = adapted(tuned)
            # A matrix under several names has one adapter in several layers.
            named = {
                row.site.path: [layers[row.site.path]]
                if row.site.path in layers
                else [layers[name] for name in row.modules]
                for row in plan
            }
            scores["probe_energy"].append({path: _energy(same[0]) for path, same in named.items()})
            scores["probe_descent"].append(_by_site(named, tuned, descents))
            if removals:
                whole, lost = _loss(tuned, batches), dict[str, float]()
                for path, same in named.items():
                    lost[path] = _without(same, tuned, batches) - whole
                    watch.removal()
                scores["probe"].append(lost)
        finally:
            detach_adapters(tuned)
            model.eval()
    if lost_at is not None:
        _refuse(model, sites, batches, lost_at)
    readings = {name: _reading(TRIAL_COLUMNS[name], each) for name, each in scores.items() if each}
    readings["probe_yield"] = yields(scores["probe_energy"], scores["probe_descent"])
    forward = len(sites) * sum(len(b.lengths) for b in batches) / 2 if removals else 0.0
    return Probed(
        readings=readings,
        cost=SEEDS * (steps * BATCH + forward) / STEP,
        rows=trials.distinct,
        visits=SEEDS * steps * BATCH,
        tokens=tokens,
        labelled=labelled,
    )


def _refuse(model: Any, sites: Sequence[Site], batches: Sequence[Batch], step: int) -> None:
    """Say why trials came apart: the base's own numbers, or training."""
    from loratlas.evaluation.token_losses import token_losses
    from loratlas.signals.site_hooks import one_pass

    for batch in batches:  # names the site, if it is the base
        one_pass(model, batch, sites, [], token_losses)
    raise ModelError(
        given="trials of adapters at every site",
        found=f"the loss became NaN or infinite at step {step}, though not on the base itself",
        instead="--dtype float32, or a signal that does not train (--by spectrum)",
    )


def _loss(model: Any, batches: Sequence[Batch]) -> float:
    import torch

    from loratlas.evaluation.token_losses import token_losses

    model.eval()
    with torch.no_grad():
        total = sum(float(token_losses(model, batch).sum(dtype=torch.float64)) for batch in batches)
    return total / sum(batch.labelled for batch in batches)


def _without(layers: Sequence[Any], model: Any, batches: Sequence[Batch]) -> float:
    before = [dict(layer.scaling) for layer in layers]
    for layer, own in zip(layers, before, strict=True):
        layer.scaling.update(dict.fromkeys(own, 0.0))
    try:
        return _loss(model, batches)
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.scaling.update(own)


def _energy(layer: Any) -> float:
    """‖s B A‖²_F = s² · tr(BᵀB A Aᵀ), which needs no product of the weight's size."""
    (name,) = layer.lora_A
    A, B = layer.lora_A[name].weight.detach().double(), layer.lora_B[name].weight.detach().double()
    return float(layer.scaling[name]) ** 2 * max(float(((B.t() @ B) * (A @ A.t())).sum()), 0.0)


def _by_site(
    named: Mapping[str, Sequence[Any]], tuned: Any, descents: Mapping[str, float]
) -> dict[str, float]:
    """Path → descent of its adapter's two factors."""
    names = {id(parameter): name for name, parameter in tuned.named_parameters()}

    def of(layer: Any) -> float:
        (name,) = layer.lora_A
        return sum(descents[names[id(factor[name].weight)]] for factor in (layer.lora_A, layer.lora_B))

    return {path: of(same[0]) for path, same in named.items()}


def yields(energies: Sequence[Mapping[str, float]], descents: Sequence[Mapping[str, float]]) -> Reading:
    """Both of a site in one score, and the error of that score.

        value = √(ē · max(d̄, 0))
        error = ½ (√((ē + s_e) · max(d̄ + s_d, 0)) − √(max(ē − s_e, 0) · max(d̄ − s_d, 0)))

    with means ē, d̄ over trials and their standard errors s_e, s_d. To first order that is the error if both go
    together, and an upper bound if they do not. Two trials cannot say which: their correlation is 1 or −1 whatever is
    true, and what uses it (the delta method, leaving out a trial at a time) gives no error at all where energies rise
    as descents fall. Whether the order repeats is asked of √(e_t · max(d_t, 0)), trial by trial.

    Args:
        energies, descents: path → score, one of each for a trial.

    >>> both = yields([{"a": 1.0}, {"a": 9.0}], [{"a": 9.0}, {"a": 1.0}])
    >>> both.values["a"], both.errors["a"]
    (5.0, 4.0)
    """
    means = (
        _reading(TRIAL_COLUMNS["probe_energy"], energies),
        _reading(TRIAL_COLUMNS["probe_descent"], descents),
    )

    def shifted(errors: float) -> dict[str, float]:
        return _yield(*({p: v + errors * mean.errors[p] for p, v in mean.values.items()} for mean in means))

    above, below = shifted(1.0), shifted(-1.0)
    by_trial = [_yield(*pair) for pair in zip(energies, descents, strict=True)]
    return replace(
        _reading(TRIAL_COLUMNS["probe_yield"], by_trial),
        values=shifted(0.0),
        errors={path: (above[path] - below[path]) / 2 for path in above},
    )


def _yield(energies: Mapping[str, float], descents: Mapping[str, float]) -> dict[str, float]:
    """The geometric mean of both; 0 where the loss did not fall."""
    return {path: math.sqrt(max(energy, 0.0) * max(descents[path], 0.0)) for path, energy in energies.items()}


def _reading(column: Column, trials: Sequence[Mapping[str, float]]) -> Reading:
    values = {path: sum(trial[path] for trial in trials) / len(trials) for path in trials[0]}
    errors = {
        path: math.sqrt(
            sum((trial[path] - values[path]) ** 2 for trial in trials) / (len(trials) - 1) / len(trials)
        )
        for path in values
    }
    one, two = trials[0], trials[1]
    silent = None
    if chance(one, two) > LEVEL:
        silent = f"the order does not repeat from one trial to the other (τ = {tau(one, two):.2f})"
    return Reading(
        column=column,
        values=values,
        errors=errors,
        repeats=tau(one, two),
        repeats_top=tau_of_top(one, two),
        silent=silent,
    )
