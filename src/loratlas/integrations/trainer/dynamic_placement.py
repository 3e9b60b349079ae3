"""`loratlas.DynamicPlacement`: adapters that move while somebody else's trainer trains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loratlas.dynamic.decision_schedule import DecisionSchedule, parse_every, parse_head
from loratlas.dynamic.policies.known_policies import DEFAULT, POLICIES
from loratlas.errors import SettingsError
from loratlas.integrations.trainer.trainer_checks import check_trainer, trainer_names

if TYPE_CHECKING:
    from loratlas.dynamic.controller import Decision
    from loratlas.dynamic.moves import Move
    from loratlas.integrations.trainer.installed import Installed


class DynamicPlacement:
    """Places adapters while a trainer trains: transformers' `Trainer`, or TRL's `SFTTrainer` and `DPOTrainer`.

    A run begins with the adapters that the trainer's model has. At the end of the head, a first part of the steps, the
    policy exchanges ranks between sites by what the steps have said about them; sites without an adapter may get
    one, and sites may lose theirs. Kept directions stay with the optimizer's moments, new ones begin without an
    effect. Steps, schedule, clipping and logging are the trainer's own; gradients are read before it clips them.
    ``save_model`` writes an ordinary PEFT adapter at any time. Checkpoints resume to the same numbers.

    Args:
        budget: parameters after the last decision, as for any placement (``"params=2M"``, ``"like=all:8"``) or as a
            number; None for what the model has.
        policy: what decides (`loratlas train --signal`): ``"weighted"``, ``"energy"``, ``"descent"``, ``"gradient"``,
            ``"adalora"``, … None for the default one.
        head: steps before the first decision: a share (``"10%"``) or a count.
        decide: ``"once"``, or ``"every=50"`` for a decision every 50 steps until half of the run.
        placement: which sites may carry an adapter, in the placement language; those of the model always may.
        on_decision: called with every decision in the first process; None prints a line to standard error.

    Attributes:
        decisions: so far, each with its moves.

    Raises:
        SettingsError: an unknown policy, a head or a schedule that is not understood.

    Example:
        ``loratlas.DynamicPlacement(budget="like=all:8").install(trainer)``, then ``trainer.train()``

        >>> import loratlas
        >>> loratlas.DynamicPlacement(policy="energy", head="5%").schedule.steps(200)
        (10,)
    """

    def __init__(
        self,
        *,
        budget: str | float | None = None,
        policy: str | None = None,
        head: str | float | None = "10%",
        decide: str | int | None = "once",
        placement: str = "all",
        on_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        if policy is not None and policy not in POLICIES:
            raise SettingsError(
                given=f"policy={policy!r}",
                found="no such policy",
                instead=" or ".join(f'policy="{name}"' for name in POLICIES if name != "attention"),
            )
        if policy == "attention":
            raise SettingsError(
                given='policy="attention" in a trainer',
                found="attention patterns, which are watched in loratlas.train alone",
                instead='policy="weighted", policy="energy" or policy="gradient"',
            )
        self.policy = POLICIES[policy or DEFAULT]()
        self.schedule = _schedule(head, decide, self.policy.peak)
        self.budget, self.placement = budget, placement
        self.on_decision = on_decision or _print
        self._installed: Installed | None = None

    @property
    def decisions(self) -> list[Decision]:
        """Decisions so far."""
        return [] if self._installed is None else self._installed.controller.decisions

    @property
    def moves(self) -> list[Move]:
        """Moves of all decisions so far."""
        return [move for decision in self.decisions for move in decision.moves]

    @property
    def ranks(self) -> dict[str, int]:
        """Path → rank now, 0 included, of all sites that may carry an adapter."""
        if self._installed is None:
            return {}
        return self._installed.controller.ranks(self._installed.trainer.model)

    def install(self, trainer: Any) -> DynamicPlacement:
        """Take part in a trainer's run; call it before ``trainer.train()``.

        Args:
            trainer: with a `PeftModel` whose adapter is plain LoRA.

        Returns:
            This object.

        Raises:
            SettingsError: a trainer, an optimizer or a way of training in which parameters cannot be replaced
                (8-bit, factored or sharded optimizers, FSDP, DeepSpeed, torch.compile); a second installation.
            AttachError: a model without LoRA layers, with merged adapters or with DoRA.
            BudgetError: more or fewer parameters than ranks can have.
        """
        from loratlas.integrations.trainer.installed import Installed

        if self._installed is not None or getattr(trainer, "_loratlas_placement", None) is not None:
            raise SettingsError(
                given="DynamicPlacement(…).install(trainer)",
                found="a placement that is installed already",
                instead="a new DynamicPlacement for every trainer, once",
            )
        check_trainer(trainer)
        with trainer_names():
            self._installed = Installed(
                trainer,
                self.policy,
                self.schedule,
                budget=self.budget,
                placement=self.placement,
                on_decision=self.on_decision,
            )
        trainer._loratlas_placement = self
        return self


def _schedule(head: str | float | None, decide: str | int | None, peak: float) -> DecisionSchedule:
    """When decisions fall; errors say what was typed here."""
    try:
        first = parse_head(head)
        DecisionSchedule(head=first)
    except SettingsError as error:
        raise SettingsError(given=f"head={head!r}", found=error.found, instead='head="10%"') from None
    try:
        return DecisionSchedule(head=first, every=parse_every(decide), peak=peak)
    except SettingsError as error:
        instead = 'decide="once", or decide="every=50"'
        raise SettingsError(given=f"decide={decide!r}", found=error.found, instead=instead) from None


def _print(decision: Decision) -> None:
    said = decision.line() if decision.moves else decision.sentence()
    print(f"placement, {said}", file=sys.stderr, flush=True)
