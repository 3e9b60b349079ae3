"""A run's learning rate, decided in its own first steps: neighbouring rates train them in turn, the best one goes on.

All rates begin with the same weights and train on the same rows with the same masks, so that their losses are
compared step by step. The run begins at one rate and climbs as long as the next higher one ends the head no worse;
where the first climb fails it goes down as long as the next lower one ends clearly better. What goes on is the state
at the end of the head, weights, moments, counts and what hooks have gathered: the run is bit for bit the one that had
been given this rate, and no step of it is trained twice. The price is the head's steps at the other rates: at most
`SHARE` of the run.

Rates take turns on one model instead of sharing passes as a fleet: so any base, layer, batch and hook that trains will
do, at the same price in computed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

from loratlas.errors import SettingsError
from loratlas.training.learning_rate import ChosenRate, default_rate, neighbours
from loratlas.training.rate_rules import (
    FEWEST,
    SHARE,
    SearchBudget,
    far_behind,
    long_enough,
    warm_steps,
    worse,
)
from loratlas.training.run_events import RatesTried, RateTrial, StepEvent
from loratlas.training.run_hooks import RunHook, Tensors

if TYPE_CHECKING:
    import torch

    from loratlas.training.run import RunState
    from loratlas.training.run_hooks import HookedRun
    from loratlas.training.settings import Settings


@dataclass(slots=True, kw_only=True)
class _Trial:
    """A rate, and the steps that it has taken so far."""

    index: int
    losses: list[float] = field(default_factory=list)
    events: list[StepEvent] = field(default_factory=list)
    outcome: str = ""


@dataclass(slots=True)
class _Kept:
    """A run's state, on the CPU."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    @classmethod
    def of(cls, run: RunState, hook: RunHook) -> _Kept:
        import copy

        tensors, values = run.state(without=hook)
        return cls(
            {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()},
            copy.deepcopy(values),
        )


class RateSearch(RunHook):
    """Tries rates in the first steps of a run.

    Args:
        rates: in rising order.
        first: index of the one that is tried first.
        budget: what it may cost.
        reason: why the run begins with that one.

    Attributes:
        over: whether the rate is decided.

    Example:
        ``fit(model, rows, Settings(steps=300, lr="auto"))``, or ``lr=(0.002, 0.0032, 0.005)``
    """

    name = "rates"

    def __init__(self, rates: tuple[float, ...], first: int, budget: SearchBudget, reason: str) -> None:
        self.rates, self.budget, self.reason = rates, budget, reason
        self._first = first
        self.over = False
        self.trials: list[_Trial] = [_Trial(index=first)]
        self._best: int | None = None  # index into `trials`
        self._start: _Kept | None = None
        self._leader: _Kept | None = None

    def check(self, hooks: Sequence[RunHook], steps: int) -> None:
        """Refuse hooks that change what is trained before the rate is decided.

        Raises:
            SettingsError: one that does.
        """
        for hook in hooks:
            change = hook.first_change(steps)
            if change is not None and change <= self.budget.head:
                raise SettingsError(
                    given=f"a learning rate and a change of what is trained ({hook.name}), both in the head of a run",
                    found=f"the change comes after step {change}, the rate is decided after step {self.budget.head}",
                    instead=f"a later change (--head {self.budget.head + 1}), "
                    f"or a rate, such as --lr {self.first:g}",
                )

    @property
    def first(self) -> float:
        """The rate that is tried first."""
        return self.rates[self._first]

    def sentence(self) -> str:
        """What will be done and what it costs, for people; a clause without its full stop."""
        return (
            f"decided in the run's first {self.budget.head} steps, from {self.first:g} on, chosen {self.reason}; "
            f"trials at other rates take at most {self.budget.most} steps ({SHARE:.0%} of the run)"
        )

    def identity(self) -> dict[str, Any]:
        return {"rates": list(self.rates), "first": self._first, **asdict(self.budget)}

    def after_step(self, run: HookedRun, event: StepEvent) -> None:
        if not self.over:
            self.trials[-1].losses.append(event.nll)
            self.trials[-1].events.append(event)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        tensors: Tensors = {}
        values: dict[str, Any] = {"over": self.over, "best": self._best}
        values["trials"] = [
            asdict(trial) | {"events": [asdict(event) for event in trial.events if not self.over]}
            for trial in self.trials
        ]
        for name, kept in (("start", self._start), ("leader", self._leader)):
            if kept is not None:
                tensors |= {f"{name}.{key}": tensor for key, tensor in kept.tensors.items()}
                values[name] = kept.values
        return tensors, values

    def load_state(self, run: HookedRun, tensors: Tensors, values: dict[str, Any]) -> None:
        self.over, self._best = values["over"], values["best"]
        self.trials = [
            _Trial(**trial | {"events": [StepEvent(**event) for event in trial["events"]]})
            for trial in values["trials"]
        ]
        kept: dict[str, _Kept] = {}
        for name in ("start", "leader"):
            if name in values:
                own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
                kept[name] = _Kept(own, values[name])
        self._start, self._leader = kept.get("start"), kept.get("leader")
        self._go_on_with(run)

    def decide(
        self,
        run: RunState,
        *,
        check: Callable[[], None] = lambda: None,
        on_step: Callable[[float, StepEvent], None] | None = None,
    ) -> list[StepEvent]:
        """Try rates until one is chosen; the run then stands at the end of its head at that rate.

        Args:
            run: at its beginning, or resumed.
            check: called between steps; may raise.
            on_step: called with the rate and the step after every one.

        Returns:
            The steps that the run has now taken.
        """
        if self.over:
            return []
        if self._start is None:
            self._start = _Kept.of(run, self)
        while not self.over:
            trial = self.trials[-1]
            while not self._ended(trial):
                event = run.step()
                if event is None:
                    trial.outcome = "diverged"
                elif on_step is not None:
                    on_step(self.rates[trial.index], event)
                check()
            self._judge(run, trial)
        assert self._best is not None
        chosen = self.trials[self._best].events
        for trial in self.trials:
            trial.events = []
        return chosen

    def _ended(self, trial: _Trial) -> bool:
        if len(trial.losses) >= self.budget.head or trial.outcome:
            return True
        best = None if self._best is None else self.trials[self._best]
        return (
            best is not None
            and best.outcome != "diverged"
            and far_behind(trial.losses, best.losses, warm=self.budget.warm)
        )

    def _judge(self, run: RunState, trial: _Trial) -> None:
        """Compare a trial that has ended with the best one so far, and begin the next, or end the search."""
        assert self._start is not None
        number = len(self.trials) - 1
        best = None if self._best is None else self.trials[self._best]
        if best is None or self._better(trial, best):
            self._best, self._leader = number, _Kept.of(run, self)
            trial.outcome = trial.outcome or "tried"
        else:
            trial.outcome = trial.outcome or "worse"
        following = self._next()
        if following is None:
            self.over = True
            assert self._leader is not None
            run.restore(self._leader.tensors, self._leader.values, without=self)
            self._start = self._leader = None
        else:
            self.trials.append(_Trial(index=following))
            run.restore(self._start.tensors, self._start.values, without=self)
        self._go_on_with(run)

    def _go_on_with(self, run: HookedRun) -> None:
        """Set the run's rate, and how many steps were taken at others."""
        assert not self.over or self._best is not None
        current = self.trials[self._best if self.over and self._best is not None else -1]
        run.set_rate(self.rates[current.index])
        run.set_aside = sum(len(trial.losses) for trial in self.trials if trial is not current)

    def _better(self, trial: _Trial, best: _Trial) -> bool:
        """Whether a trial takes the lead: a higher rate unless it is worse, a lower one only if the other is."""
        if best.outcome == "diverged":
            return True  # only lower ones are tried after it
        if trial.outcome == "diverged":
            return False
        if len(trial.losses) < self.budget.head:
            return False
        higher, lower = (trial, best) if trial.index > best.index else (best, trial)
        return worse(higher.losses, lower.losses) == (higher is best)

    def _next(self) -> int | None:
        """Index of the rate to try next; None when the search is over."""
        assert self._best is not None
        best = self.trials[self._best]
        tried = {trial.index for trial in self.trials}
        used = sum(len(trial.losses) for trial in self.trials if trial is not best)
        if best.outcome != "diverged" and used + self.budget.head > self.budget.most:
            return None
        above, below = best.index + 1, best.index - 1
        if best.outcome != "diverged" and above < len(self.rates) and above not in tried:
            return above
        return below if below >= 0 and below not in tried else None

    def result(self) -> RatesTried:
        """What was tried and chosen; of a search that is over."""
        assert self._best is not None
        best = self.trials[self._best]
        tried = [
            RateTrial(
                rate=self.rates[trial.index],
                steps=len(trial.losses),
                nll=_late(trial.losses) if trial.losses else None,
                outcome="chosen" if trial is best else trial.outcome,
            )
            for trial in sorted(self.trials, key=lambda trial: trial.index)
        ]
        aside = sum(trial.steps for trial in tried if trial.outcome != "chosen")
        return RatesTried(
            tried=tried,
            chosen=self.rates[best.index],
            head=self.budget.head,
            set_aside=aside,
            reason=self._reason(best),
        )

    def _reason(self, best: _Trial) -> str:
        if best.outcome == "diverged":
            return "every rate that was tried diverged, and this is the lowest"
        higher = [trial for trial in self.trials if trial.index > best.index]
        if not higher:
            return "no higher rate was tried, and the lower ones were no better"
        return "the highest rate that was not worse than its neighbours"


def _late(losses: list[float]) -> float:
    return mean(losses[len(losses) // 2 :])


def rate_search(settings: Settings, *, width: int, steps: int) -> RateSearch | ChosenRate | None:
    """How a run comes to its learning rate.

    Args:
        settings: of the run.
        width: of the residual stream of its base.
        steps: of the whole run.

    Returns:
        A search; a rate without one, where the run is too short; None where the settings give one.

    Raises:
        SettingsError: rates were given, and the run is too short to try two.

    >>> from loratlas.training.settings import Settings
    >>> rate_search(Settings(), width=256, steps=100).rates[3:6]
    (0.00625, 0.01, 0.016)
    >>> rate_search(Settings(), width=256, steps=10).rate
    0.01
    """
    if isinstance(settings.lr, float | int):
        return None
    budget = SearchBudget.of(settings, steps)
    if isinstance(settings.lr, tuple):
        middle = (len(settings.lr) - 1) // 2
        if budget is None:
            head = max(FEWEST, warm_steps(settings, steps) + 2)
            raise SettingsError(
                given=f"--lr {','.join(f'{rate:g}' for rate in settings.lr)} with {steps} steps",
                found=f"a second rate takes {head} steps (warm-up and what shows after it), more than the "
                f"{SHARE:.0%} of the run that trying rates may cost",
                instead=f"--lr {settings.lr[middle]:g}, or a run of at least {long_enough(settings)} steps",
            )
        return RateSearch(settings.lr, middle, budget, "as the middle one of those that were given")
    guess = default_rate(width=width, batch_size=settings.batch_size)
    if budget is None:
        return guess
    rates = neighbours(guess.rate)
    return RateSearch(rates, rates.index(guess.rate), budget, guess.reason)
