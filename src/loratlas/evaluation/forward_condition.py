"""How a forward pass is run, where tools differ: a condition, and the model put under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loratlas.errors import SettingsError
from loratlas.evaluation.eval_precision import evaluating
from loratlas.modeling import unwrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A forward condition. The default is the one that loratlas judges with: each example alone and whole.

    Args:
        dropout: None: off. A seed: every dropout layer draws, as in training.
        dtype: numbers of weights, buffers and activations (``float32``, ``bfloat16``, ``float16``), as
            ``model.to(dtype)`` makes them; None: the model's own.
        adapter: False: a `PeftModel` with its adapter switched off.
        max_length: longest example in tokens; what is cut is not in the table. None: whole.
        side: which end is cut, ``right`` or ``left``.
        window: tokens of one forward pass; None: whole examples.
        stride: tokens by which windows advance; every token is scored in the first window that holds it. None: the
            window, so that windows do not overlap and their first tokens are predicted from nothing, hence not scored.
        stream: windows run over all examples laid end to end, which then see each other (packing without a mask).
        padding: examples side by side in the order of the data, padded at this side; None: loratlas' own batches,
            where padding changes nothing. With ``left``, positions count from the left edge.
        batch_size: examples side by side, with ``padding``.
        ahead: 2 where labels are shifted twice: position t predicts token t + 2.
    """

    dropout: int | None = None
    dtype: str | None = None
    adapter: bool = True
    max_length: int | None = None
    side: Literal["right", "left"] = "right"
    window: int | None = None
    stride: int | None = None
    stream: bool = False
    padding: Literal["right", "left"] | None = None
    batch_size: int | None = None
    ahead: int = 1

    def __post_init__(self) -> None:
        def refuse(given: str, found: str, instead: str) -> SettingsError:
            return SettingsError(given=f"a condition with {given}", found=found, instead=instead)

        for name in ("max_length", "window", "stride", "batch_size", "ahead"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise refuse(f"{name} {size}", "nothing left to score", f"a {name} of 1 or more")
        if (self.stride is not None or self.stream) and self.window is None:
            raise refuse("a stride or a stream", "no window", "a window, in tokens")
        if self.stride is not None and self.window is not None and self.stride > self.window:
            raise refuse(f"stride {self.stride}", f"a window of {self.window}", "a stride within the window")
        if (self.padding is None) != (self.batch_size is None):
            raise refuse(
                f"padding {self.padding}", f"batch_size {self.batch_size}", "both of them, or neither"
            )
        if self.padding is not None and self.window is not None:
            raise refuse("padding and windows", "two ways to lay tokens out", "one of them")

    @property
    def words(self) -> str:
        """What differs from the default, for people.

        >>> Condition(dropout=0, max_length=128).words
        'dropout on (seed 0), right end cut to 128 tokens'
        >>> Condition().words
        'each example alone and whole'
        """
        said = []
        if self.dropout is not None:
            said.append(f"dropout on (seed {self.dropout})")
        if self.dtype is not None:
            said.append(self.dtype)
        if not self.adapter:
            said.append("adapter off")
        if self.max_length is not None:
            said.append(f"{self.side} end cut to {self.max_length} tokens")
        if self.window is not None:
            over = "all examples end to end" if self.stream else "each example"
            said.append(f"windows of {self.window} tokens by {self.stride or self.window} over {over}")
        if self.padding is not None:
            said.append(f"padded at the {self.padding} in batches of {self.batch_size}")
        if self.ahead != 1:
            said.append(f"labels shifted {self.ahead} times")
        return ", ".join(said) or "each example alone and whole"

    @property
    def changes_layout(self) -> bool:
        """Whether other tokens are scored or laid out otherwise than each example alone and whole."""
        cut = self.max_length is not None or self.window is not None
        return cut or self.padding is not None or self.ahead != 1

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@contextmanager
def under(model: Any, condition: Condition) -> Iterator[None]:
    """The model as a condition asks: numbers, adapter, dropout; everything is put back afterwards, bit for bit.

    Raises:
        SettingsError: an adapter to switch off on a model without one, or numbers for a quantised base.
    """
    from peft import PeftModel

    if not condition.adapter and not isinstance(model, PeftModel):
        raise SettingsError(
            given="a condition without the adapter",
            found="a model without an adapter",
            instead="a PeftModel, or the default condition",
        )
    off = nullcontext() if condition.adapter else model.disable_adapter()
    dropout = condition.dropout is not None
    lean = not dropout and condition.dtype is None
    with off, _numbers(model, condition.dtype), evaluating(model, dropout=dropout, lean=lean):
        yield


@contextmanager
def _numbers(model: Any, dtype: str | None) -> Iterator[None]:
    import torch

    if dtype is None:
        yield
        return
    number = getattr(torch, dtype, None)
    if not isinstance(number, torch.dtype) or not number.is_floating_point:
        raise SettingsError(
            given=f"dtype {dtype!r}", found="no type of numbers", instead="float32, bfloat16 or float16"
        )
    if getattr(unwrap(model), "is_quantized", False):
        raise SettingsError(
            given=f"a condition in {dtype}",
            found="a quantised base, whose numbers cannot be changed",
            instead="a base that is loaded in that type",
        )
    # Buffers as well, the angles of rotary positions among them: so `model.to(dtype)` does it in trainers.
    tensors = [*model.parameters(), *model.buffers()]
    kept = [(t, t.data) for t in tensors if t.is_floating_point() and t.dtype != number]
    try:
        for tensor, data in kept:
            tensor.data = data.to(number)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextmanager
def drawing(condition: Condition, batch: int, device: Any) -> Iterator[None]:
    """Random numbers of one batch: drawn from the seed and the batch's index, whatever came before it."""
    import torch

    if condition.dropout is None:
        yield
        return
    devices = [device] if getattr(device, "type", "cpu") == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((condition.dropout * 1_000_003 + batch) % 2**63)
        yield
