"""Packed batches through a model: attention kept inside each example, logits only where the loss counts."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from loratlas.data.attention import Layout, register, use_layout

if TYPE_CHECKING:
    import torch

    from loratlas.data.batches import Batch

_FACTS: WeakKeyDictionary[Any, _Facts] = WeakKeyDictionary()
_LOCK = threading.Lock()


class _Facts:
    """What is looked up once per model: its configs, its output embedding, whether it takes ``position_ids``."""

    def __init__(self, model: Any) -> None:
        from transformers import PreTrainedModel

        configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
        for config in list(configs.values()):
            text = config.get_text_config()
            configs[id(text)] = text
        self.configs = list(configs.values())
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.interface = model._can_set_attn_implementation()


def bare(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _facts(model: Any) -> _Facts:
    with _LOCK:
        if model not in _FACTS:
            _FACTS[model] = _Facts(model)
        return _FACTS[model]


@contextmanager
def packed(model: Any, batch: Batch) -> Iterator[None]:
    """Within this context the model's attention stays inside the examples of a packed batch.

    The attention implementation of the live model is switched and put back.
    """
    register()
    configs = _facts(bare(model)).configs
    layout = Layout.of(batch.lengths, batch.input_ids.device)
    with use_layout(layout, configs):
        yield


def forward(model: Any, batch: Batch) -> torch.Tensor:
    """Logits at the counted places.

    The output embedding, the largest matrix of most models, is applied to the counted rows only: a hook selects them
    before it. What follows it (softcap, scale) is elementwise, so that the numbers are those of the whole pass.

    Args:
        model: a causal language model of transformers, bare or as a `PeftModel`.
        batch: packed or padded, on the model's device.

    Returns:
        [labelled, V], row i for ``batch.answers[i]``.
    """
    inner = bare(model)
    facts = _facts(inner)
    if batch.packed:
        with packed(model, batch):
            return _selected(model, inner, batch, {"position_ids": batch.position_ids})
    extra: dict[str, Any] = {"attention_mask": batch.attention_mask}
    if facts.takes_positions:
        extra["position_ids"] = batch.position_ids
    return _selected(model, inner, batch, extra)


def _selected(model: Any, inner: Any, batch: Batch, extra: dict[str, Any]) -> torch.Tensor:
    hidden_seen = False

    def select(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal hidden_seen
        hidden_seen = True
        hidden, *rest = arguments
        return (hidden.reshape(-1, hidden.shape[-1])[batch.where].unsqueeze(0), *rest)

    head = inner.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False, **extra).logits
    finally:
        if hook is not None:
            hook.remove()
    logits = logits.reshape(-1, logits.shape[-1])
    # A model that does not call its output embedding as a module gives all rows: pick ours.
    return logits if hidden_seen else logits[batch.where]
