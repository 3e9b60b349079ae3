"""Whether runs can share a pass on a base: shown on the base itself before any of them trains.

Two batches of real rows go through the bank one by one and joined, each with strong random factors of its own at every
site that some run adapts and, in a classification, with a head of its own. Joined must be one by one. That fails where
a module reads its rows in another layout than the batch's (relative positions that all examples share, time before
examples), where padding reaches a loss, or where examples meet. And without factors the bank must compute what the
base computes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loratlas.data.batches.batch import Batch
from loratlas.data.batches.batching import collate
from loratlas.data.batches.packing_proof import FLOOR, TOLERANCE
from loratlas.evaluation.token_losses import token_losses
from loratlas.modeling import device_of
from loratlas.training.fleet.adapter_slots import AdapterSlot, SlotFactors
from loratlas.training.fleet.row_slices import RowSlices, join_batches

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.training.fleet.adapter_bank import Bank

STRONG = 0.5
"""What random factors add to an output, relative to it: much more than rounding, less than what blows up."""


def why_not_shared(model: Any, bank: Bank, data: Encoded, *, packed: bool) -> str | None:
    """What keeps runs from sharing a pass, in words; None where nothing does.

    Args:
        model: the bare base.
        bank: over its modules, not open.
        data: rows that the runs draw from.
        packed: as they will be laid.
    """
    batches = [batch.to(device_of(model)) for batch in _batches(data, packed=packed)]
    slots = [_stranger(bank, seed) for seed in range(len(batches))]
    plain = AdapterSlot(
        {}, heads=copy.deepcopy(bank.heads)
    )  # whose modules themselves are the bank's while it is open
    allowed = TOLERANCE.get(str(model.get_input_embeddings().weight.dtype).removeprefix("torch."), FLOOR)

    def losses(parts: Sequence[tuple[AdapterSlot, Batch]]) -> torch.Tensor:
        batch = join_batches([batch for _, batch in parts], pad_id=data.pad_id)
        with bank.use(RowSlices.of(parts)):
            return token_losses(model, batch).double()

    try:
        with torch.no_grad():
            bare = [token_losses(model, batch).double() for batch in batches]
            with bank.open():
                same = [losses([(plain, batch)]) for batch in batches]
                alone = [losses([part]) for part in zip(slots, batches, strict=True)]
                together = losses(list(zip(slots, batches, strict=True)))
    except Exception as error:  # whatever a strange model raises, its runs can still be trained one by one
        return f"a shared pass failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    for what, values, wanted in (("the base", same, bare), ("the runs alone", [together], alone)):
        one, other = torch.cat(values), torch.cat(wanted)
        difference = float((one - other).norm() / other.norm())
        if not difference <= allowed:
            return (
                f"its losses differ from those of {what} by {difference:.1e}, rounding explains {allowed:.1e}"
            )
    return None


def _batches(data: Encoded, *, packed: bool) -> list[Batch]:
    """Two batches of unlike lengths: of the rows at quarters of the order of length."""
    order = np.argsort([len(example) for example in data.examples], kind="stable")
    rows = [int(order[len(order) * quarter // 4]) for quarter in range(4)]
    return [
        collate([data.examples[row] for row in part], packed=packed, pad_id=data.pad_id, rows=part)
        for part in (rows[0::2], rows[1::2])
    ]


def _stranger(bank: Bank, seed: int) -> AdapterSlot:
    """A slot with factors of rank 1 everywhere, and heads unlike the base's."""
    generator = torch.Generator().manual_seed(seed)

    def factors(W: torch.Tensor, *, across: bool) -> SlotFactors:
        """Of W [.., d_out, d_in], or transposed."""
        *stack, d_out, d_in = W.shape if not across else (*W.shape[:-2], W.shape[-1], W.shape[-2])
        size = float(W.reshape(-1, W.shape[-1])[:16].float().pow(2).mean().sqrt())
        A = torch.randn(*stack, 1, d_in, generator=generator) * d_in**-0.5
        B = torch.randn(*stack, d_out, 1, generator=generator) * (STRONG * size * d_in**0.5)
        A, B = A.to(W), B.to(W)
        return SlotFactors(A=A, B=B, to_down=A, to_up=B, scale=1.0)

    slot_factors = {
        path: factors(module.weight.detach(), across=not isinstance(module, torch.nn.Linear))
        for path, module in bank.matrices.items()
    }
    for path in bank.stacked:
        module, leaf = bank.stacks[path.rpartition(".")[0]], path.rpartition(".")[2]
        slot_factors[path] = factors(getattr(module, leaf).detach(), across=module.is_transposed)
    heads = copy.deepcopy(bank.heads)
    for parameter in (p for head in heads.values() for p in head.parameters()):
        noise = torch.randn(parameter.shape, generator=generator) * (
            STRONG * float(parameter.float().std(correction=0))
        )
        parameter.data.add_(noise.to(parameter))
    return AdapterSlot(slot_factors, heads=heads)
