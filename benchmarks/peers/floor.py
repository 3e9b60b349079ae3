"""The frozen base's own cost: no adapter, forward pass, and the gradient at the lowest adapted layer's input.

Less than that no training of adapters can cost that computes what it should: the forward pass, the loss, and the
backward pass through every frozen matrix above the lowest adapter.
"""

from __future__ import annotations

from typing import Any

import torch

from loratlas.data.batches.batching import Batch
from loratlas.modeling import unwrap
from loratlas.placement.plan import Plan
from loratlas.training.step.gradients import step_loss


class Floor:
    """Forward and backward of a frozen base.

    Args:
        model: bare, frozen.
        batch: as the other sides have it.
        plan: whose lowest layer ends the backward pass.
        compiled: through torch.compile, the output embedding excepted, which is `step_loss`'s own on every side.
    """

    def __init__(self, model: Any, batch: Batch, plan: Plan, *, compiled: bool = False) -> None:
        self.model, self.batch = model, batch
        hidden = model.config.get_text_config().hidden_size
        weight = model.get_input_embeddings().weight
        # An addend of zeros whose gradient is that of the layer's input. Below it nothing requires one.
        self.addend = torch.zeros(
            (*batch.input_ids.shape, hidden), dtype=weight.dtype, device=weight.device, requires_grad=True
        )
        addend = self.addend

        def add(_layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if arguments:
                return (arguments[0] + addend, *arguments[1:]), named
            return arguments, {**named, "hidden_states": named["hidden_states"] + addend}

        lowest(model, plan).register_forward_pre_hook(add, with_kwargs=True)
        model.train()
        if compiled:
            unwrap(model).base_model.compile()

    def step(self) -> torch.Tensor:
        """One pass; the gradient."""
        loss = step_loss(self.model, self.batch) / self.batch.labelled
        return torch.autograd.grad(loss, self.addend)[0]


def lowest(model: Any, plan: Plan) -> Any:
    """The lowest layer that a plan adapts."""
    site = min((row.site for row in plan.rows if row.site.layer is not None), key=lambda site: site.layer)
    before, found, _ = site.module.partition(f".{site.layer}.")
    assert found, site.module
    return model.get_submodule(f"{before}.{site.layer}")


class PeftStep:
    """PEFT's layers as shipped: forward, backward, clipping, AdamW, as `Trainer` does them, on a given batch.

    Args:
        model: a `PeftModel`.
        batch: as the other sides have it.
        lr: of AdamW.
        compiled: as for `Floor`.
    """

    def __init__(self, model: Any, batch: Batch, *, lr: float = 1e-4, compiled: bool = False) -> None:
        self.model, self.batch = model, batch
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0, fused=True)
        model.train()
        if compiled:
            unwrap(model).base_model.compile()

    def step(self) -> float:
        """One step; its loss."""
        loss = step_loss(self.model, self.batch) / self.batch.labelled
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
