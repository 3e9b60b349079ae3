"""Numbers of a log: as they were printed, with what decides them and the log does not say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

Kind: TypeAlias = Literal["loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]

FEW_DIGITS = 9
"""A number printed with fewer significant digits than this was rounded to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One loss or perplexity of a log.

    Args:
        name: as the tool calls it.
        value: as it is written; NaN or infinite where the tool printed that.
        kind: what the tool says that it is.
        where: a JSON pointer, or ``line 7``.
        rounding: half a unit of the last digit that was printed; 0 where all digits were.
        step: of the training run, where the log says it.
        epoch: of the training run, where the log says it.
        training: a mean of training losses, which no evaluation reproduces.
    """

    name: str
    value: float
    kind: Kind
    where: str
    rounding: float = 0.0
    step: int | None = None
    epoch: float | None = None
    training: bool = False

    @property
    def when(self) -> float | None:
        """Step, or else epoch, of the evaluation; None where the log says neither."""
        return self.epoch if self.step is None else self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Something that decides a number, and that the log does not say.

    Args:
        name: of the setting.
        effect: what it could have done to the number.
    """

    name: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One file, read.

    Args:
        tool: which tool wrote it.
        path: of the file.
        numbers: in the order of the file.
        settings: what it does say, e.g. ``{"eval_batch_size": [8]}``.
        missing: what it does not say.
        examples: perplexity of every example, where the file lists them.
    """

    tool: str
    path: Path
    numbers: tuple[Number, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Setting, ...] = ()
    examples: np.ndarray | None = None

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that the log says, or that its rates allow."""
        return tuple(self.settings.get("eval_batch_size", ()))


class Printed(float):
    """A number that keeps how it was written."""

    text: str

    def __new__(cls, text: str) -> Printed:
        made = super().__new__(cls, text)
        made.text = text
        return made


def as_number(value: Any) -> float | None:
    """A number, also one that was printed as a text (as transformers 5 does); None for anything else.

    >>> as_number("6"), as_number(2.5), as_number("nan"), as_number(True), as_number("adamw")
    (6.0, 2.5, nan, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value if isinstance(value, float) or abs(value) < 10**300 else None
    if isinstance(value, str):
        try:
            return Printed(value.strip())
        except ValueError:
            return None
    return None


def numbers_of(
    entry: Mapping[str, Any], where: Callable[[str], str], step: Any, epoch: Any = None
) -> Iterator[Number]:
    """Losses and perplexities of one entry of a log; NaN and infinity are kept.

    Args:
        entry: key → value.
        where: key → where it is in the file.
        step: of the entry, if any.
        epoch: of the entry, if any.
    """
    when = as_number(epoch)
    for key, written in entry.items():
        value, kind = as_number(written), kind_of(str(key))
        if value is None or kind is None:
            continue
        yield Number(
            name=str(key),
            value=float(value),
            kind=kind,
            where=where(key),
            rounding=rounding_of(value),
            step=step if isinstance(step, int) else None,
            epoch=None if when is None or not math.isfinite(when) else float(when),
            training=str(key) in ("loss", "ppl") or str(key).startswith(("train_", "train/")),
        )


def kind_of(key: str) -> Kind | None:
    """What a trainer's key is, if it is a loss.

    >>> [kind_of(key) for key in ("eval_loss", "perplexity", "eval_ppl", "eval/loss", "grad_norm", "eval_bench_loss")]
    ['loss', 'perplexity', 'perplexity', 'loss', None, None]
    """
    last = key.replace("/", "_").rpartition("_")[2]  # a tracker writes eval/loss
    if "bench" in key or "aux" in key or "router" in key:
        return None
    if last == "loss":
        return "loss"
    return "perplexity" if last in ("perplexity", "ppl") else None


def rounding_of(value: Any) -> float:
    """Half a unit of the last digit of a number that was printed with few of them.

    >>> rounding_of(Printed("2.31")), rounding_of(Printed("2.3104518413543701")), rounding_of(Printed("6"))
    (0.005, 0.0, 0.5)
    """
    if not isinstance(value, Printed) or not math.isfinite(value):
        return 0.0
    digits, _, exponent = value.text.lower().lstrip("+-").partition("e")
    decimals = len(digits.partition(".")[2])
    if len(digits.replace(".", "").lstrip("0")) >= FEW_DIGITS:
        return 0.0
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)


def pointer(*keys: Any) -> str:
    """A JSON pointer.

    >>> pointer("log_history", 2, "a/b")
    '/log_history/2/a~1b'
    """
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


COMMON = (
    Setting(
        name="which tokens are labels",
        effect="prompt, padding or begin tokens counted, text behind the end token counted, or the end token left out "
        "where pad = eos",
    ),
    Setting(
        name="max_length and the side that is cut",
        effect="other tokens are scored, or the same ones with less before them",
    ),
    Setting(name="the template", effect="other text around the rows, hence other tokens"),
    Setting(name="number format of the pass", effect="losses of logits rounded to bfloat16 or float16"),
)
CAL_PPL = (
    Setting(name="train_on_prompt", effect="prompt tokens counted as answers"),
    Setting(name="cutoff_len", effect="rows cut to another length"),
    Setting(name="template", effect="other text around the rows, hence other tokens"),
    Setting(name="number format of the pass", effect="losses of logits rounded to bfloat16 or float16"),
)
HARNESS = (
    Setting(name="how the words and bytes were counted", effect="of the raw text, before it was cleaned"),
    Setting(name="the documents", effect="other texts, or the same ones joined or split otherwise"),
)
