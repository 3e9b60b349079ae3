"""Probe: short trial training of small adapters everywhere, and what each of them turned out to be worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loratlas.adapters.plan_row import PlanRow
from loratlas.anatomy.sites import Site
from loratlas.errors import Interrupted, ModelError, SettingsError
from loratlas.scan.scores import STEP
from loratlas.signals.base import Column
from loratlas.signals.measure_signals import LEVEL, Reading
from loratlas.signals.rank_correlation import chance, tau, tau_of_top

if TYPE_CHECKING:
    from loratlas.data.batching import Batch
    from loratlas.data.examples import Encoded
    from loratlas.training.run_events import FitResult

ADAM = "what Adam itself did in the trial"

COLUMNS = {
    name: Column(name=name, unit=unit, pays="high", adam=ADAM)
    for name, unit in {
        "probe": "nats per token given back without it",
        "probe_energy": "squared Frobenius norm of the learned change",
        "probe_descent": "nats per token that the loss fell by its steps",
        "probe_yield": "norm of the learned change times root of nats per token",
    }.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What trials said, and what they took.

    Args:
        readings: by column.
        cost: in training steps of `STEP` rows.
        rows, tokens, labelled: trained on, over all trials.
    """

    readings: dict[str, Reading]
    cost: float
    rows: int
    tokens: int
    labelled: int


SEEDS = 2
"""Trials, each with rows of its own draw; the spread between them is the error."""

STEPS = 80
"""Of a trial. Shorter ones have not seen what overshoots: plans by yields after 80, 40 and 20 steps end at 3.45, 3.46
and 3.65 nats on the embedded base's retrieval task, at 2.05, 2.30 and 2.25 on embedded facts."""

EARLY = 1 / 2
"""Share of a trial whose descent is not counted. The first steps fall furthest, and any adapter would have made them:
counted too, ρ with the truth is 0.60 instead of 0.93 on embedded facts."""

LR = 1e-2
BATCH = 16
"""Rows of a trial's step."""

COST = SEEDS * STEPS * BATCH / STEP
"""Of the trials without removals, in training steps of `STEP` rows."""


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
    on_step: Callable[[], None] | None = None,
) -> Probed:
    """Train adapters of rank 1 at every site for some steps; if asked, take each away by itself.

        probe         = L(without the site's adapter) − L(with all adapters), on ``judged``
        probe_energy  = ‖(α/r) B A‖²_F
        probe_descent = −Σ_t ⟨g_t, θ_t − θ_{t−1}⟩ over the trial's later steps, see `LossChangeAllocation`
        probe_yield   = √(probe_energy · max(probe_descent, 0))

    each, but the last, a mean over trials. An energy says how far a site went, and Adam takes large matrices further
    than small ones whatever they are good for; a descent says what the loss gained by it, as far as a short trial can
    see. Their mean is neither led by size alone nor by the first falls of the loss.

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
        on_step: called after every step of a trial.

    Raises:
        ModelError: a trial's loss became NaN or infinite; names the site where the base's own numbers are.

    Source: trial training is old; importance as the loss without a part is that of LeCun, Denker, Solla (1990), Optimal
    Brain Damage, here measured instead of expanded. For descents see
    `loratlas.training.loss_change.LossChangeAllocation`.
    Their product with energies is ours, chosen by ``benchmarks/oracle``.
    """
    from loratlas.adapters.peft_targets import adapted
    from loratlas.training.fleet.train_fleet import detach_adapters

    plan = [PlanRow(site=site, rank=1, alpha=2.0) for site in sites]
    device = model.get_input_embeddings().weight.device
    batches = [batch.to(device) for batch in judged]
    told: dict[str, list[dict[str, float]]] = {name: [] for name in COLUMNS}
    tokens = labelled = 0
    lost_at: int | None = None
    for tuned, result, descents in _trials(model, plan, rows, seed, steps, lr, packed, on_step):
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
            told["probe_energy"].append({path: _energy(same[0]) for path, same in named.items()})
            told["probe_descent"].append(_by_site(named, tuned, descents))
            if removals:
                whole = _loss(tuned, batches)
                lost = {path: _without(same, tuned, batches) - whole for path, same in named.items()}
                told["probe"].append(lost)
        finally:
            detach_adapters(tuned)
            model.eval()
    if lost_at is not None:
        _refuse(model, sites, batches, lost_at)
    pairs = zip(told["probe_energy"], told["probe_descent"], strict=True)
    told["probe_yield"] = [_yield(energy, descent) for energy, descent in pairs]
    readings = {name: _reading(COLUMNS[name], trials) for name, trials in told.items() if trials}
    means = [readings[name].values for name in ("probe_energy", "probe_descent")]
    readings["probe_yield"] = replace(readings["probe_yield"], values=_yield(*means))
    forward = len(sites) * sum(len(b.lengths) for b in batches) / 2 if removals else 0.0
    return Probed(
        readings=readings,
        cost=SEEDS * (steps * BATCH + forward) / STEP,
        rows=SEEDS * steps * BATCH,
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


def _trials(
    model: Any,
    plan: Sequence[PlanRow],
    rows: Encoded,
    seed: int,
    steps: int,
    lr: float,
    packed: bool,
    on_step: Callable[[], None] | None,
) -> Iterator[tuple[Any, FitResult, Mapping[str, float]]]:
    """(trained model, its result, parameter → descent), one after the other; the one before must have been taken
    off."""
    from loratlas.adapters.attach import attach
    from loratlas.training.fleet.train_fleet import Fleet, Member, detach_adapters
    from loratlas.training.loop import fit
    from loratlas.training.loss_change import LossChangeAllocation
    from loratlas.training.master_weights import compute_dtype
    from loratlas.training.settings import Settings

    dtype = str(compute_dtype(model)).removeprefix("torch.")
    members = [
        Member(
            rows=plan,
            settings=Settings(
                steps=steps, lr=lr, batch_size=BATCH, warmup=0.1, seed=seed + trial, dtype=dtype
            ),
        )
        for trial in range(SEEDS)
    ]
    descents = [LossChangeAllocation(after=math.ceil(EARLY * steps)) for _ in members]

    def stepped(*_: object) -> None:
        if on_step is not None:
            on_step()

    try:
        fleet = Fleet(model, rows, members, packed=packed)
    except SettingsError:  # these trials cannot share a pass
        fleet = None
    if fleet is not None:
        with _interruptible():
            results = fleet.fit(on_step=stepped, on_gradient=lambda place, masters: descents[place](masters))
        for place, result in enumerate(results):
            yield fleet.peft_model(place), result, descents[place].values()
        return
    for member, descent in zip(members, descents, strict=True):
        tuned = attach(plan, model, seed=member.settings.seed)
        settings = member.settings
        try:
            with _interruptible():
                result = fit(tuned, rows, settings, packed=packed, on_step=stepped, on_gradient=descent)
        except BaseException:
            detach_adapters(tuned)
            raise
        yield tuned, result, descent.values()


@contextmanager
def _interruptible() -> Iterator[None]:
    """What Ctrl-C means here: trials have no folder to go on from."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(
            given="Ctrl-C",
            found="the scan stopped in its trials; of what they found nothing is kept",
            instead="the same command, which scans anew",
        ) from stopped


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


def _yield(energies: Mapping[str, float], descents: Mapping[str, float]) -> dict[str, float]:
    """The geometric mean of both; 0 where the loss did not fall."""
    return {path: math.sqrt(energy * max(descents[path], 0.0)) for path, energy in energies.items()}


def _reading(column: Column, told: Sequence[Mapping[str, float]]) -> Reading:
    values = {path: sum(trial[path] for trial in told) / len(told) for path in told[0]}
    errors = {
        path: math.sqrt(
            sum((trial[path] - values[path]) ** 2 for trial in told) / (len(told) - 1) / len(told)
        )
        for path in values
    }
    one, two = told[0], told[1]
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
