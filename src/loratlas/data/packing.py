"""Packed batches through a model: attention kept inside each example, logits only where the loss counts.

Packing is used where `prove_packing` has shown, on the very model, that it changes nothing.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from loratlas.data.batches import Batch, collate
from loratlas.data.encode import Example

if TYPE_CHECKING:
    import torch

PROOF_LENGTHS = (1, 13, 2, 40, 7, 33, 1, 64, 21, 5)
"""Tokens of the segments that the proof lays end to end: single tokens, near and far lengths, out of order."""

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Largest relative difference that rounding explains; lower precisions are measured (see `prove_packing`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingProof:
    """Whether packed = alone on a model.

    Args:
        exact: use packed batches, or else padded ones.
        worst: largest difference of logits and of gradients, relative to the largest of their kind; inf when the
            packed pass could not be run at all.
        reason: a sentence for the report.
    """

    exact: bool
    worst: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What is looked up once per model."""

    configs: tuple[Any, ...]
    takes_positions: bool
    replaceable: bool
    checkpointing: tuple[Any, ...]  # modules that may recompute their forward pass


_FACTS: WeakKeyDictionary[Any, _Facts] = WeakKeyDictionary()
_LOCK = threading.Lock()


def bare(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _facts(inner: Any) -> _Facts:
    from transformers import PreTrainedModel

    with _LOCK:
        if inner not in _FACTS:
            configs = {id(m.config): m.config for m in inner.modules() if isinstance(m, PreTrainedModel)}
            configs |= {id(text): text for text in [c.get_text_config() for c in configs.values()]}
            _FACTS[inner] = _Facts(
                configs=tuple(configs.values()),
                takes_positions="position_ids" in inspect.signature(inner.forward).parameters,
                replaceable=inner._can_set_attn_implementation(),
                checkpointing=tuple(m for m in inner.modules() if hasattr(m, "gradient_checkpointing")),
            )
        return _FACTS[inner]


@contextmanager
def packed(model: Any, batch: Batch) -> Iterator[None]:
    """Within this context the model's attention stays inside the examples of a packed batch.

    The attention implementation of the live model is switched and put back. Layers under gradient checkpointing
    run again during the backward pass, outside of this context: they carry it with them.
    """
    from loratlas.data.attention import Layout, carrying, register, use_layout

    register()
    facts = _facts(bare(model))
    for module in facts.checkpointing:
        if module.gradient_checkpointing:
            module._gradient_checkpointing_func = carrying(module._gradient_checkpointing_func)
    with use_layout(Layout.of(batch.lengths, batch.input_ids.device), facts.configs):
        yield


def forward(model: Any, batch: Batch) -> torch.Tensor:
    """Logits at the counted places.

    The output embedding, the largest matrix of most models, is applied to the counted rows only: a hook selects
    them before it. What follows it (softcap, scale) is elementwise, so that the numbers are those of the whole pass.

    Args:
        model: a causal language model of transformers, bare or as a `PeftModel`.
        batch: packed or padded, on the model's device.

    Returns:
        [labelled, V], row i for ``batch.answers[i]``.
    """
    inner = bare(model)
    if batch.packed:
        with packed(model, batch):
            return _logits(model, inner, batch, {"position_ids": batch.position_ids})
    extra: dict[str, Any] = {"attention_mask": batch.attention_mask}
    if _facts(inner).takes_positions:
        extra["position_ids"] = batch.position_ids
    return _logits(model, inner, batch, extra)


def _logits(model: Any, inner: Any, batch: Batch, extra: dict[str, Any]) -> torch.Tensor:
    selected = False

    def select(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal selected
        selected = True
        hidden, *rest = arguments
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.where).unsqueeze(0), *rest)

    head = inner.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False, **extra).logits
    finally:
        if hook is not None:
            hook.remove()
    logits = logits.reshape(-1, logits.shape[-1])
    # A model that does not call its output embedding as a module gives all rows: pick ours.
    return logits if selected else logits.index_select(0, batch.where)


def prove_packing(model: Any, *, seed: int = 0, max_length: int | None = None) -> PackingProof:
    """Show on this model that a packed batch gives what each example gives alone, or say why not.

    Random tokens in segments of `PROOF_LENGTHS` go through the model end to end and one by one. Three things must
    hold: the logits agree, the gradients at the input embeddings agree, and other tokens in one segment leave the
    logits of all other segments as they were. In float32 differences up to 1e-4 of the largest value are rounding;
    in lower precision the yardstick is measured: 4 times what padding changes, for padding is exact too.

    Args:
        model: bare or as a `PeftModel`; left as it was found (mode, gradients, random state).
        seed: draws the tokens.
        max_length: longest example that will come; a sliding window that no example reaches needs no proof.

    Returns:
        The proof.
    """
    facts = _facts(bare(model))
    if not facts.replaceable:
        return _no("its attention does not go through transformers' attention interface")
    if not facts.takes_positions:
        return _no("it takes no position ids")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return _compare(model, facts, seed, max_length)
    except Exception as error:  # whatever a strange model raises, padding still works
        return _no(f"the packed pass failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    finally:
        for module, training in modes:
            module.training = training


def _no(why: str, worst: float = float("inf")) -> PackingProof:
    return PackingProof(exact=False, worst=worst, reason=f"padded batches: {why}")


def _compare(model: Any, facts: _Facts, seed: int, max_length: int | None) -> PackingProof:
    import torch

    from loratlas.data.attention import windows_seen

    inner = bare(model)
    device = inner.get_input_embeddings().weight.device
    text = inner.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or max(PROOF_LENGTHS)
    random = np.random.default_rng(seed)
    vocabulary = inner.get_input_embeddings().weight.shape[0]

    def draw(n: int, row: int) -> Example:
        ids = random.integers(0, vocabulary, n).astype(np.int32)
        return Example(input_ids=ids, labelled=np.arange(n) > 0, row=row)

    window = _window(text)
    lengths = [min(n, limit) for n in PROOF_LENGTHS]
    if window is not None and window + 3 <= min(limit, 256):
        lengths.append(window + 3)
    examples = [draw(n, row) for row, n in enumerate(lengths)]

    def run(chosen: list[Example], *, end_to_end: bool) -> tuple[torch.Tensor, torch.Tensor]:
        batch = collate(chosen, packed=end_to_end).to(device)
        logits, gradient = _with_gradient(model, inner, batch)
        real = batch.example.reshape(-1) >= 0
        return logits, gradient.reshape(-1, gradient.shape[-1])[real]

    with windows_seen() as windows:
        whole = run(examples, end_to_end=True)
    alone = [run([example], end_to_end=False) for example in examples]
    beside = run(examples, end_to_end=False)
    changed = list(examples)
    changed[3] = draw(lengths[3], 3)
    shifted = run(changed, end_to_end=True)[0]

    apart = tuple(torch.cat([one[part] for one in alone]) for part in (0, 1))
    worst = max(_relative(whole[part], apart[part]) for part in (0, 1))
    rounding = max(_relative(beside[part], apart[part]) for part in (0, 1))
    owner = collate(examples, packed=True).owners
    others = (owner != 3).to(device)
    leak = _relative(shifted[others], whole[0][others])
    dtype = str(apart[0].dtype).removeprefix("torch.")
    allowed = TOLERANCE.get(dtype, 4 * rounding)
    if not worst <= allowed or not leak <= min(allowed, rounding):
        what = (
            f"packed and alone differ by {worst:.1e} of the largest value"
            if not worst <= allowed
            else (f"tokens of one example change the logits of another by {leak:.1e}")
        )
        return _no(f"{what}, where rounding explains {allowed:.1e}", max(worst, leak))
    if window is not None and window not in windows and (max_length is None or max_length > window):
        return _no(f"its window of {window} tokens could not be followed", worst)
    return PackingProof(
        exact=True,
        worst=worst,
        reason=f"packed batches: packed = alone on {len(lengths)} random examples, worst difference {worst:.1e}",
    )


def _window(config: Any) -> int | None:
    for name in ("sliding_window", "attention_chunk_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and getattr(config, "use_sliding_window", True):
            return value
    return None


def _with_gradient(model: Any, inner: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the counted places, and the gradient of their loss at the input embeddings."""
    import torch

    kept: list[torch.Tensor] = []

    def keep(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    hook = inner.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = forward(model, batch)
            loss = torch.nn.functional.cross_entropy(logits.float(), batch.answers, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, kept[0])
    finally:
        hook.remove()
    return logits.detach(), gradient


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if not wanted.numel():
        return 0.0
    scale = float(wanted.float().abs().max())
    return float((found.float() - wanted.float()).abs().max()) / (scale or 1.0)
