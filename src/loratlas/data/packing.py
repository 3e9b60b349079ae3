"""Packed batches through a model: attention kept inside each example, logits only where the loss counts.

Packing is used where `prove_packing` has shown, on the very model, that it changes nothing.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from loratlas.data.batching import IGNORED, Batch, collate
from loratlas.data.examples import Example
from loratlas.modeling import unwrap
from loratlas.models.task import CLASSIFICATION, SEQ2SEQ

if TYPE_CHECKING:
    import torch

PROOF_LENGTHS = (1, 40, 2, 33, 64, 5)
"""Tokens of the segments that the proof lays end to end: a single token, near and far lengths, unordered."""

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
"""Largest relative difference that rounding explains; in 16-bit numbers it is measured (`prove_packing`)."""

FLOOR = 2.0**-5
"""What 16-bit rounding explains at least: a few units in the last of 8 bits, layer after layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingProof:
    """Whether packed = alone on a model.

    Args:
        exact: use packed batches, or else padded ones.
        worst: ‖packed − alone‖ / ‖alone‖ of the logits or of the gradients, whichever is larger; inf when the
            packed pass could not be run at all.
        reason: a sentence for the report.
    """

    exact: bool
    worst: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traits:
    """What is looked up once per model."""

    configs: tuple[Any, ...]
    takes_positions: bool
    replaceable: bool
    checkpointing: tuple[Any, ...]  # modules that may recompute their forward pass


_FACTS: WeakKeyDictionary[Any, _Traits] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _traits(inner: Any) -> _Traits:
    from transformers import PreTrainedModel

    with _LOCK:
        if inner not in _FACTS:
            configs = {id(m.config): m.config for m in inner.modules() if isinstance(m, PreTrainedModel)}
            configs |= {id(text): text for text in [c.get_text_config() for c in configs.values()]}
            _FACTS[inner] = _Traits(
                configs=tuple(configs.values()),
                takes_positions="position_ids" in inspect.signature(inner.forward).parameters,
                replaceable=inner._can_set_attn_implementation(),
                checkpointing=tuple(m for m in inner.modules() if hasattr(m, "gradient_checkpointing")),
            )
        return _FACTS[inner]


@contextmanager
def packed(model: Any, batch: Batch) -> Iterator[None]:
    """Within this context the model's attention stays inside the examples of a packed batch.

    The attention implementation of the live model is switched and put back. Layers under gradient
    checkpointing run a second time during the backward pass, outside of this context: they carry it with them.
    """
    from loratlas.data.packed_attention import Layout, carrying, register, use_layout

    register()
    traits = _traits(unwrap(model))
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


def prove_packing(model: Any, *, seed: int = 0, max_length: int | None = None) -> PackingProof:
    """Show on this model that a packed batch gives what each example gives alone, or say why not.

    Random tokens in segments of `PROOF_LENGTHS` go through the model end to end, and one by one through the
    model's own attention. Logits and gradients at the input embeddings must agree, and other tokens in one
    segment must leave the logits of all other segments as they were. Differences are ‖packed − alone‖ /
    ‖alone‖. In float32 up to 1e-4 is rounding. In 16-bit numbers it is measured: packed must equal a pack of
    one to what padding changes, and a pack of one the model's own attention to twice what the model's two
    own implementations differ by.

    Args:
        model: bare or as a `PeftModel`; left as it was (mode, gradients, random state).
        seed: draws the tokens.
        max_length: longest example that will come; a sliding window that no example reaches needs no proof.

    Returns:
        The proof; never an exception, for padding always works.
    """
    traits = _traits(unwrap(model))
    impossible = why_padded(model)
    if impossible is not None:
        return _no(impossible)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return _compare(model, traits, seed, max_length)
    except Exception as error:  # whatever a strange model raises, padding still works
        words = " ".join(str(error).split())[:200]
        return _no(f"the packed pass failed ({type(error).__name__}: {words})")
    finally:
        for module, training in modes:
            module.training = training


def why_padded(model: Any) -> str | None:
    """Why a model cannot take packed batches, as far as that is known without running it; None: nothing known."""
    traits = _traits(unwrap(model))
    if not traits.replaceable:
        return "its attention does not go through transformers' attention interface"
    return None if traits.takes_positions else "it takes no position ids"


def _no(why: str, worst: float = float("inf")) -> PackingProof:
    return PackingProof(exact=False, worst=worst, reason=f"padded batches: {why}")


def _compare(model: Any, traits: _Traits, seed: int, max_length: int | None) -> PackingProof:
    import torch

    from loratlas.data.packed_attention import switched, windows_seen

    inner = unwrap(model)
    text = inner.config.get_text_config()
    window = _window(text)
    lengths = _proof_lengths(text, window)
    random = np.random.default_rng(seed)
    vocabulary = inner.get_input_embeddings().weight.shape[0]

    def draw(n: int) -> Example:
        ids = random.integers(0, vocabulary, n).astype(np.int32)
        return Example(input_ids=ids, labelled=np.arange(n) > 0, row=0)

    examples = [draw(n) for n in lengths]

    def together(chosen: list[Example], *, end_to_end: bool) -> _Pass:
        return _with_gradient(model, inner, collate(chosen, packed=end_to_end))

    def one_by_one(*, end_to_end: bool) -> _Pass:
        passes = [together([example], end_to_end=end_to_end) for example in examples]
        logits, gradients = zip(*passes, strict=True)
        return torch.cat(logits), torch.cat(gradients)

    with windows_seen() as windows:
        whole = together(examples, end_to_end=True)
    alone = one_by_one(end_to_end=False)
    padding = _relative(together(examples, end_to_end=False), alone)
    worst = _relative(whole, alone)
    allowed = TOLERANCE.get(str(alone[0].dtype).removeprefix("torch."))
    if allowed is None:
        packs = one_by_one(end_to_end=True)
        packing = _relative(whole, packs)
        if not packing <= max(padding, 1e-6):
            return _no(
                f"packed and packed one by one differ by {packing:.1e}, padding by {padding:.1e}", packing
            )
        own = traits.configs[0]._attn_implementation_internal
        try:
            with switched(traits.configs, "sdpa" if own == "eager" else "eager"):
                other = _relative(one_by_one(end_to_end=False), alone)
        except Exception:  # not every model has both (gemma2's softcap has no sdpa)
            other = 0.0
        allowed = max(FLOOR, 2 * other, 2 * padding)
    if not worst <= allowed:
        return _no(f"packed and alone differ by {worst:.1e}, rounding explains {allowed:.1e}", worst)

    changed = [draw(len(example)) if index == 3 else example for index, example in enumerate(examples)]
    others = collate(examples, packed=True).owners != 3
    before, after = whole[0][others], together(changed, end_to_end=True)[0][others]
    leak = _relative((after,), (before,))
    if not leak <= max(padding, 1e-6):
        return _no(f"the tokens of one example change the logits of others by {leak:.1e}", leak)
    if window is not None and window not in windows and (max_length is None or max_length > window):
        return _no(f"its window of {window} tokens cannot be followed", worst)
    return PackingProof(
        exact=True,
        worst=worst,
        reason=f"packed batches: packed = alone on {len(lengths)} random examples, difference {worst:.1e}",
    )


_Pass: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"  # logits [labelled, V], gradients [tokens, D]


def _window(config: Any) -> int | None:
    """The tokens that some layer sees at most, if the config names such a limit."""
    for name in ("sliding_window", "attention_chunk_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and getattr(config, "use_sliding_window", True):
            return value
    return None


def _proof_lengths(config: Any, window: int | None) -> list[int]:
    """`PROOF_LENGTHS` within the model's positions, and one segment that leaves a small window."""
    limit = getattr(config, "max_position_embeddings", None) or max(PROOF_LENGTHS)
    lengths = [min(n, limit) for n in PROOF_LENGTHS]
    if window is not None and window + 3 <= min(limit, 256):
        lengths.append(window + 3)
    return lengths


def _with_gradient(model: Any, inner: Any, batch: Batch) -> _Pass:
    """Logits at the counted positions, and the gradient of their loss at the input embeddings of all tokens."""
    import torch

    batch = batch.to(inner.get_input_embeddings().weight.device)
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
    real = batch.example.reshape(-1) >= 0
    return logits.detach(), gradient.reshape(-1, gradient.shape[-1])[real]


def _relative(values: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Largest ‖values − wanted‖ / ‖wanted‖ over the pairs; NaN counts as infinite."""
    worst = 0.0
    for f, w in zip(values, wanted, strict=True):
        scale = float(w.double().norm()) or 1.0
        difference = float((f.double() - w.double()).norm()) / scale
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst
