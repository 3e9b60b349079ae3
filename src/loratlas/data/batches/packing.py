"""Packed batches through a model: attention kept inside each example, logits only where the loss counts.

Packing is used where `prove_packing` has shown, on the very model, that it changes nothing.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from loratlas.data.batches.batching import IGNORED, Batch
from loratlas.modeling import unwrap
from loratlas.models.task import CLASSIFICATION, SEQ2SEQ

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is looked up once per model."""

    configs: tuple[Any, ...]
    takes_positions: bool
    replaceable: bool
    checkpointing: tuple[Any, ...]  # modules that may recompute their forward pass


_TRAITS: WeakKeyDictionary[Any, Traits] = WeakKeyDictionary()
_LOCK = threading.Lock()


def traits_of(inner: Any) -> Traits:
    from transformers import PreTrainedModel

    with _LOCK:
        if inner not in _TRAITS:
            configs = {id(m.config): m.config for m in inner.modules() if isinstance(m, PreTrainedModel)}
            configs |= {id(text): text for text in [c.get_text_config() for c in configs.values()]}
            _TRAITS[inner] = Traits(
                configs=tuple(configs.values()),
                takes_positions="position_ids" in inspect.signature(inner.forward).parameters,
                replaceable=inner._can_set_attn_implementation(),
                checkpointing=tuple(m for m in inner.modules() if hasattr(m, "gradient_checkpointing")),
            )
        return _TRAITS[inner]


@contextmanager
def packed(model: Any, batch: Batch) -> Iterator[None]:
    """Within this context the model's attention stays inside the examples of a packed batch.

    The attention implementation of the live model is switched and put back. Layers under gradient
    checkpointing run a second time during the backward pass, outside of this context: they carry it with them.
    """
    from loratlas.data.batches.packed_attention import Layout, carrying, register, use_layout

    register()
    traits = traits_of(unwrap(model))
    for module in traits.checkpointing:
        if module.gradient_checkpointing:
            module._gradient_checkpointing_func = carrying(module._gradient_checkpointing_func)
    with use_layout(Layout.of(batch.lengths, batch.input_ids.device), traits.configs):
        yield


def forward(model: Any, batch: Batch) -> torch.Tensor:
    """Logits at the counted positions.

    The output embedding, the largest matrix of most models, is applied to the counted rows only: a hook
    selects them before it. What follows it (softcap, scale) is elementwise, so that the numbers are those of
    the whole pass.

    Args:
        model: of transformers, bare or as a `PeftModel`; of a class that does the batch's task.
        batch: packed or padded, on the model's device.

    Returns:
        [labelled, V] (V the classes, in a classification), row i for ``batch.answers[i]``.
    """
    logits, selected = _run(model, batch, lambda rows: rows)
    # A model that does not call its output embedding as a module gives all rows: pick ours.
    return logits if selected else logits.index_select(0, batch.where)


PROBES = (1.0, 8.0, 64.0)
"""Factors of the one row of states that still goes through the output embedding in `states`."""


def states(model: Any, batch: Batch) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """What the output embedding would read at the counted positions, which then reads three rows only.

    Args:
        model: as for `forward`.
        batch: with at least one counted position.

    Returns:
        States [labelled, d] with their graph; the rows that the output embedding did read, [3, d], which are the
        first state times `PROBES`; the logits that the model made of those, [3, V]. Where the output embedding is
        not called as a module: None, nothing, and all logits [labelled, V].
    """
    import torch

    kept: list[torch.Tensor] = []

    def keep(rows: torch.Tensor) -> torch.Tensor:
        kept.append(rows)
        probe = rows[:1].detach()
        kept.append(torch.cat([probe * factor for factor in PROBES]))
        return kept[1]

    logits, selected = _run(model, batch, keep)
    if not selected:
        return None, logits[:0], logits.index_select(0, batch.where)
    return kept[0], kept[1], logits.detach()


def _run(
    model: Any, batch: Batch, head_reads: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, bool]:
    """(logits [rows, V], whether the output embedding read what ``head_reads`` makes of the counted states)."""
    inner = unwrap(model)
    if batch.packed:
        with packed(model, batch):
            return _logits(model, inner, batch, {"position_ids": batch.position_ids}, head_reads)
    # Padding stands on the right, so that the model's own positions, from 0, are the right ones.
    extra = {"attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None:
        extra["token_type_ids"] = batch.token_type_ids
    if batch.task == SEQ2SEQ:
        extra["decoder_input_ids"] = shifted(inner, batch.targets)
    return _logits(model, inner, batch, extra, head_reads)


def shifted(inner: Any, targets: torch.Tensor) -> torch.Tensor:
    """What a decoder reads to write a target: a start token, then the target without its last token.

    Args:
        inner: the transformers model, which knows where a target begins; types that say nothing begin with
            ``decoder_start_token_id``.
        targets: int64 [B, L], -100 on padding.
    """
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        return inner.prepare_decoder_input_ids_from_labels(labels=targets)
    config = inner.config
    moved = targets.new_full(targets.shape, config.decoder_start_token_id)
    moved[:, 1:] = targets[:, :-1]
    return moved.masked_fill(moved == IGNORED, config.pad_token_id)


def _logits(
    model: Any,
    inner: Any,
    batch: Batch,
    extra: dict[str, Any],
    head_reads: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, bool]:
    selected = False

    def select(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal selected
        selected = True
        hidden, *rest = arguments
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.where)
        return (head_reads(rows).unsqueeze(0), *rest)

    head = inner.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        if batch.task != CLASSIFICATION:
            extra = {**extra, "use_cache": False}
        logits = model(input_ids=batch.input_ids, **extra).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits.reshape(-1, logits.shape[-1]), selected


def why_padded(model: Any) -> str | None:
    """Why a model cannot take packed batches, as far as that is known without running it; None: nothing known."""
    traits = traits_of(unwrap(model))
    if not traits.replaceable:
        return "its attention does not go through transformers' attention interface"
    return None if traits.takes_positions else "it takes no position ids"
