"""Whether packed = alone, shown on the very model: logits and gradients against each example by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from loratlas.data.batches.batching import Batch, collate
from loratlas.data.batches.packing import Traits, forward, traits_of, why_padded
from loratlas.data.examples import Example
from loratlas.modeling import device_of, modes_kept, unwrap

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
    traits = traits_of(unwrap(model))
    impossible = why_padded(model)
    if impossible is not None:
        return _no(impossible)
    try:
        with modes_kept(model):
            model.eval()
            return _compare(model, traits, seed, max_length)
    except Exception as error:  # whatever a strange model raises, padding still works
        words = " ".join(str(error).split())[:200]
        return _no(f"the packed pass failed ({type(error).__name__}: {words})")


def _no(why: str, worst: float = float("inf")) -> PackingProof:
    return PackingProof(exact=False, worst=worst, reason=f"padded batches: {why}")


def _compare(model: Any, traits: Traits, seed: int, max_length: int | None) -> PackingProof:
    import torch

    from loratlas.data.batches.packed_attention import switched, windows_seen

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

    batch = batch.to(device_of(inner))
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
