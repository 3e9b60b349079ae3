"""A trainer's run as a placement controller sees runs: weights, gradients, moments, steps, rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from loratlas.adapters.adam_moments import Moments
from loratlas.anatomy.sites import Site
from loratlas.dynamic.attention_watch import AttentionSeen
from loratlas.errors import SettingsError
from loratlas.integrations.trainer.processes import Processes, rebuild_wrapper
from loratlas.integrations.trainer.torch_adam import MovedAdam
from loratlas.modeling import modes_kept
from loratlas.training.master_weights import MasterWeights
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    import torch

    from loratlas.dynamic.peers import Peers


class TrainerRun:
    """What a `loratlas.training.run_hooks.RunHook` is shown of a trainer's run.

    Args:
        trainer: transformers' `Trainer`, about to take its first step.
        adam: its optimizer.
        peers: its processes.

    Attributes:
        masters: copies of weights and gradients, renewed by `observe`.
    """

    def __init__(self, trainer: Any, adam: MovedAdam, peers: Peers) -> None:
        self._trainer, self.adam, self._peers = trainer, adam, peers
        self.model = trainer.model
        self.steps = int(trainer.state.max_steps)
        self.masters = MasterWeights(self.model, dtype=_computing(trainer))
        self.counters = SimpleNamespace(done=int(trainer.state.global_step))
        betas = adam.optimizer.param_groups[0]["betas"]
        self.settings = Settings(
            steps=self.steps, seed=trainer.args.seed, betas=(float(betas[0]), float(betas[1])), compile="off"
        )
        self.optimizer = SimpleNamespace(moments=self._moments)

    def observe(self) -> bool:
        """Copy weights and gradients as they are; whether all of them are numbers."""
        import torch

        self.masters.observe()
        gradients = [group.master.grad for group in self.masters.groups]
        return all(bool(torch.isfinite(own).all()) for own in gradients if own is not None)

    def named(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _moments(self) -> dict[str, Moments]:
        return self.adam.moments(self.named())

    def change_parameters(self, change: Callable[[], Mapping[str, Moments] | None]) -> None:
        """As `loratlas.training.run.RunState.change_parameters`, in the trainer's model, optimizer and DDP wrapper."""
        before = self.named()
        moments = change() or {}
        after = self.named()
        self.adam.replace(before, after, moments)
        fresh = [p for name, p in after.items() if before.get(name) is not p]
        if isinstance(self._peers, Processes):
            # The same numbers come out in all processes of like machines; of unlike ones those of the first count.
            self._peers.share(fresh)
            states = (self.adam.optimizer.state.get(p, {}) for p in fresh)
            self._peers.share(kept[name] for kept in states for name in ("exp_avg", "exp_avg_sq") if kept)
        rebuild_wrapper(self._trainer)
        self.masters.rebuild()


def _computing(trainer: Any) -> torch.dtype | None:
    """The numbers that linear layers give where the trainer casts by itself."""
    import torch

    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return mixed.get(str(trainer.accelerator.mixed_precision))


class LastRows:
    """The rows of a trainer's last step: those of the next one are not known yet.

    Args:
        trainer: that trains. inputs: of its micro-batches, as its collator made them.
        peers: over whose rows the mean goes.
    """

    def __init__(self, trainer: Any, inputs: Sequence[Mapping[str, Any]], peers: Peers) -> None:
        self._trainer, self._inputs, self._peers = trainer, inputs, peers

    def loss(self) -> float:
        """Mean over micro-batches of the trainer's own loss."""
        import torch

        trainer = self._trainer
        with torch.no_grad(), modes_kept(trainer.model), _log_kept(trainer):
            trainer.model.eval()
            losses = []
            for inputs in self._inputs:
                with trainer.compute_loss_context_manager():
                    losses.append(
                        trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(inputs))).float()
                    )
            return float(self._peers.mean(torch.stack(losses).mean()))

    def attention(self, sites: Sequence[Site]) -> AttentionSeen | None:
        """Patterns are not watched in a trainer."""
        return None

    def check_attention(self) -> None:
        """Refuse the policy by attention."""
        raise SettingsError(
            given='policy="attention" in a trainer',
            found="attention patterns are watched on packed batches of loratlas.train alone",
            instead='policy="weighted", "energy" or "gradient"',
        )


@contextmanager
def _log_kept(trainer: Any) -> Iterator[None]:
    """What TRL's losses note down on the way is not of the training."""
    names = [name for name in ("_metrics", "_total_train_tokens") if hasattr(trainer, name)]
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
