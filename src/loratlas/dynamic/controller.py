"""Takes part in a run, decides at the end of its head (or from time to time) where adapters go on, and moves them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loratlas.adapters.resize import Resized, resize
from loratlas.anatomy.sites import Site
from loratlas.dynamic.decision_schedule import DecisionSchedule
from loratlas.dynamic.gradient_watch import GradientWatch
from loratlas.dynamic.moves import Decided, Move
from loratlas.dynamic.next_rows import NextRows, ProbedRows
from loratlas.dynamic.peers import Peers
from loratlas.dynamic.policies.base import Policy
from loratlas.dynamic.run_evidence import Evidence, HeadEntropy, ceiling_of
from loratlas.dynamic.site_statistics import SiteStatistics
from loratlas.dynamic.within_budget import within_budget
from loratlas.errors import SettingsError
from loratlas.modeling import device_of
from loratlas.training.run_events import StepEvent
from loratlas.training.run_hooks import HookedRun, RunHook, Tensors

MOST_CHANGED = 0.07
"""Share of the sites that one decision may change: with half of them, a head that sees which sites learn the form of an
answer takes away what its content needs later (docs/journal.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision of a run.

    Args:
        step: steps done.
        moves: changes of rank, in the model's order; none where the evidence was too weak for any.
        parameters: trainable afterwards.
        note: a sentence about the evidence.
        loss_before, loss_after: mean loss of the next step's rows, right before and right after.
        head_entropy: attention's module → entropy of its heads right before, on the same rows; where it was watched.
    """

    step: int
    moves: tuple[Move, ...]
    parameters: int
    note: str
    loss_before: float
    loss_after: float
    head_entropy: dict[str, HeadEntropy] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the moves."""
        kept = ("step", "parameters", "note", "loss_before", "loss_after")
        watched = {"head_entropy": self.head_entropy} if self.head_entropy else {}
        return {name: getattr(self, name) for name in kept} | {"moved": len(self.moves)} | watched

    def sentence(self) -> str:
        """The decision in words."""
        if not self.moves:
            return f"step {self.step}: ranks stay as they are ({self.note})"
        gone = sum(move.after == 0 for move in self.moves)
        grown = sum(move.after > move.before for move in self.moves)
        return (
            f"step {self.step}: {len(self.moves)} sites change rank, {grown} of them up and {gone} to none; "
            f"{self.parameters:,} parameters; loss of the next rows {self.loss_before:.4f} → {self.loss_after:.4f} "
            f"({self.note})"
        )

    def line(self) -> str:
        """The decision in 70 characters at most.

        >>> Decision(step=20, moves=(), parameters=9, note="", loss_before=2.5, loss_after=2.5).line()
        'step 20: ranks stay as they are'
        """
        if not self.moves:
            return f"step {self.step}: ranks stay as they are"
        gone = sum(move.after == 0 for move in self.moves)
        grown = sum(move.after > move.before for move in self.moves)
        fewer = len(self.moves) - gone - grown
        return (
            f"step {self.step}: {grown} up, {fewer} down, {gone} to none; "
            f"loss {self.loss_before:.3f} → {self.loss_after:.3f}"
        )


class PlacementController(RunHook):
    """Places adapters while a run trains.

    A run begins with the ranks that its model has. At every step of the schedule the policy is asked for new ones, and
    what it moves is moved: kept directions stay with their moments, new ones begin without an effect. Warm-up and
    learning rate go on as if nothing had happened. No step is added.

    Args:
        sites: that may carry adapters, in the model's order.
        policy: asked at every decision.
        schedule: when.
        budget: parameters after the last decision.
        most: sites that one decision may change; None for `MOST_CHANGED` of them.
        on_decision: hears of every decision, also of those of a resumed run's past.
        rows: (run, steps done) → the rows that a decision is judged on.
        peers: other processes of the run.

    Attributes:
        decisions: so far.
        ceiling: most ranks of a site, as far as its matrix allows.

    Raises:
        SettingsError: no site.

    Example:
        ``fit(model, rows, settings, hooks=[PlacementController(sites, Weighted(), budget=plan.trainable)])``
    """

    name = "placement"

    def __init__(
        self,
        sites: Sequence[Site],
        policy: Policy,
        *,
        budget: int,
        schedule: DecisionSchedule | None = None,
        most: int | None = None,
        on_decision: Callable[[Decision], None] | None = None,
        rows: Callable[[HookedRun, int], ProbedRows] = NextRows,
        peers: Peers | None = None,
    ) -> None:
        if not sites:
            raise SettingsError(
                given="a placement that moves", found="no site to move between", instead="--placement auto"
            )
        self.sites, self.policy, self.budget = tuple(sites), policy, budget
        self.schedule = schedule or DecisionSchedule(peak=policy.peak)
        self.most = max(2, math.ceil(len(self.sites) * MOST_CHANGED)) if most is None else most
        self.ceiling = ceiling_of(self.sites, budget)
        self.decisions: list[Decision] = []
        self._heard, self._rows, self._peers = on_decision, rows, peers or Peers()
        modules = {site.path: site.module for site in self.sites}
        self._statistics = SiteStatistics(modules, sensitivity="sensitivity" in policy.needs)
        self._gradient: GradientWatch | None = None
        self._modules = modules
        self._begun = False

    @property
    def moves(self) -> list[Move]:
        """All moves so far."""
        return [move for decision in self.decisions for move in decision.moves]

    def ranks(self, model: Any) -> dict[str, int]:
        """Path → rank now, 0 included."""
        from loratlas.adapters.resize import ranks_of

        now = ranks_of(model)
        return {path: now.get(module, 0) for path, module in self._modules.items()}

    def full(self, ranks: Mapping[str, int]) -> bool:
        """Whether no site could have another rank: none can move then.

        Args:
            ranks: path → rank.
        """
        return all(ranks.get(site.path, 0) >= min(site.max_rank, self.ceiling) for site in self.sites)

    def check(self, steps: int) -> None:
        """Refuse a schedule that does not fit a run of so many steps.

        Raises:
            SettingsError: a head longer than the run, or too short.
        """
        self.schedule.steps(steps)

    def identity(self) -> dict[str, Any]:
        return {
            "policy": self.policy.name,
            "budget": self.budget,
            "most": self.most,
            "schedule": self.schedule.to_json(),
            "sites": [site.path for site in self.sites],
        }

    def first_change(self, steps: int) -> int | None:
        return self.schedule.steps(steps)[0]

    def on_gradient(self, run: HookedRun) -> None:
        if self._gradient is not None:
            self._gradient.detach()
        if not self._begun:
            self._begin(run)
        if self._deciding(run):
            self._statistics.on_gradient(run)

    def after_step(self, run: HookedRun, event: StepEvent) -> None:
        due = self.schedule.steps(run.steps)
        if event.step in due and event.step < run.steps:
            self._decide(run, event.step, due)
        self._watch_next(run)

    def _deciding(self, run: HookedRun) -> bool:
        """Whether a decision is still to come."""
        return run.counters.done < self.schedule.steps(run.steps)[-1]

    def _begin(self, run: HookedRun) -> None:
        """The first step: look at what there is, and refuse what cannot be done."""
        self._begun = True
        if "attention" in self.policy.needs:
            self._rows(run, 0).check_attention()
        self._gradient = self._watch(run)
        self._statistics.begin(run, self.schedule.head_steps(run.steps))

    def _watch_next(self, run: HookedRun) -> None:
        """Have the next step's gradients sketched, if it is one of those."""
        # Where layers are compiled beforehand nothing inside of them can be watched, in any process of the run.
        if self._gradient is None or run.settings.compile == "on":
            return
        if self._deciding(run) and self._gradient.due(run.counters.done):
            self._gradient.attach(run.model)

    def _watch(self, run: HookedRun) -> GradientWatch:
        return GradientWatch(self.sites, self._modules, seed=run.settings.seed)

    def _decide(self, run: HookedRun, step: int, due: tuple[int, ...]) -> None:
        assert self._gradient is not None
        number = due.index(step) + 1
        rows = self._rows(run, step)
        before = rows.loss()
        evidence = self._evidence(run, step, rows)
        allowed = self.schedule.allowed(self.budget, number, len(due))
        wanted = self.policy.decide(evidence, allowed=allowed, most=self.most)
        decided = self._agreed(within_budget(wanted, evidence, allowed))
        changed = {path: rank for path, rank in decided.ranks.items() if rank != evidence.ranks[path]}
        done = self._move(run, changed, step)
        after = rows.loss() if changed else before
        lost = {change.path: change.lost for change in done.changes} if done is not None else {}
        prices = evidence.prices
        moves = tuple(
            Move(
                step=step,
                path=path,
                before=evidence.ranks[path],
                after=rank,
                reason=decided.reasons.get(path, self.policy.name),
                price=(rank - evidence.ranks[path]) * prices[path],
                gain=decided.gains.get(path),
                lost=lost.get(path, 0.0),
                loss_before=before,
                loss_after=after,
            )
            for path, rank in changed.items()
        )
        used = sum(prices[path] * rank for path, rank in decided.ranks.items())
        note = decided.note or f"by {self.policy.name}"
        self._keep(
            Decision(
                step=step,
                moves=moves,
                parameters=used,
                note=note,
                loss_before=before,
                loss_after=after,
                head_entropy=dict(evidence.head_entropy),
            )
        )
        later = due[number] - step if number < len(due) else 0
        self._gradient.begin()
        self._statistics.begin(run, later)

    def _agreed(self, decided: Decided) -> Decided:
        """The first process's ranks, in all of them."""
        if self._peers.alone:
            return decided
        paths = [site.path for site in self.sites]
        ranks = self._peers.first([decided.ranks[path] for path in paths])
        return replace(decided, ranks=dict(zip(paths, ranks, strict=True)))

    def _keep(self, decision: Decision) -> None:
        self.decisions.append(decision)
        if self._heard is not None:
            self._heard(decision)

    def _move(self, run: HookedRun, ranks: dict[str, int], step: int) -> Resized | None:
        """Give sites these ranks."""
        if not ranks:
            return None
        assert self._gradient is not None
        directions = self._gradient.directions()
        moments = run.optimizer.moments()
        made: list[Resized] = []

        def change():
            made.append(
                resize(
                    run.model,
                    ranks,
                    directions=directions,
                    moments=moments,
                    steps=step,
                    betas=run.settings.betas,
                    seed=run.settings.seed,
                )
            )
            return made[0].moments

        run.change_parameters(change)
        return made[0]

    def _evidence(self, run: HookedRun, step: int, rows: ProbedRows) -> Evidence:
        assert self._gradient is not None
        self._gradient.average(self._peers)
        measured = self._statistics.measured(run)
        gradient = self._gradient.measured()
        if gradient is not None:
            measured["gradient"] = gradient
        attention = rows.attention(self.sites) if "attention" in self.policy.needs else None
        if attention is not None:
            measured["attention"] = attention.movement
        return Evidence(
            step=step,
            sites=self.sites,
            ranks=self.ranks(run.model),
            measured=measured,
            directions=self._statistics.directions(run),
            spectra=self._statistics.spectra(run),
            seed=run.settings.seed,
            ceiling=self.ceiling,
            head_entropy={} if attention is None else attention.entropy,
        )

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        tensors, values = self._statistics.state()
        kept: dict[str, Any] = {
            "statistics": values,
            "decisions": [asdict(decision) for decision in self.decisions],
            "begun": self._begun,
        }
        flat = {f"statistics.{name}": tensor for name, tensor in tensors.items()}
        if self._gradient is not None:
            tensors, kept["gradient"] = self._gradient.state()
            flat |= {f"gradient.{name}": tensor for name, tensor in tensors.items()}
        return flat, kept

    def load_state(self, run: HookedRun, tensors: Tensors, values: dict[str, Any]) -> None:
        import torch

        def under(prefix: str) -> Tensors:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        if self._gradient is not None:
            self._gradient.detach()
        self._begun, self._gradient, self.decisions = values["begun"], None, []
        if not self._begun:
            return
        self._gradient = self._watch(run)
        for kept in values["decisions"]:
            self._keep(Decision(**kept | {"moves": tuple(Move(**move) for move in kept["moves"])}))
        last = {move.path: move.after for move in self.moves}
        now = self.ranks(run.model)
        self._move(run, {p: rank for p, rank in last.items() if rank != now[p]}, run.counters.done)
        device = device_of(run.model)
        like = torch.empty(0, dtype=run.masters.dtype, device=device)
        self._gradient.load_state(under("gradient."), values["gradient"], like)
        self._statistics.load_state(run, under("statistics."), values["statistics"])
        self._watch_next(run)
