"""Quoting: every number and name that the report prints says where in the study it stands.

A :class:`Quote` is text together with the JSON pointers (RFC 6901) it was made from, the way it was computed
and the form it is printed in. Sentences and table cells are phrases: tuples of plain words and quotes. That
is how "the report says nothing that is not in the ledger" can be tested: whoever has the study can print
every quote again, and the words between quotes hold no numbers.

>>> ledger = QuotedStudy({"arms": [{"name": "all", "nll": 3.57912}]})
>>> name, loss = ledger.word("/arms/0/name"), ledger.quote("loss", "/arms/0/nll")
>>> plain(("The loss of ", name, " is ", loss)), loss.paths
('The loss of all is 3.579', ('/arms/0/nll',))
>>> ledger.quote("loss", "/arms/0/nll", how="exp").text, ledger.quote("loss", "/arms/7/nll").text
('35.842', '–')
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loratlas import formats

MISSING = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A piece of text taken from the study.

    Args:
        text: what is printed.
        form: how a value becomes text, a key of :data:`FORMS`.
        how: how the values become one value, a key of :data:`WAYS`.
        paths: JSON pointers into the study, one for each value.
        value: the number behind the text, None where it is a word or missing.
    """

    text: str
    form: str
    how: str
    paths: tuple[str, ...]
    value: float | None = None

    @property
    def where(self) -> str:
        """The pointers with spaces between them."""
        return " ".join(path.replace(" ", "%20") for path in self.paths)


Phrase = tuple["str | Quote", ...]


def plain(phrase: Phrase) -> str:
    """The text of a phrase, without where it came from."""
    return "".join(part if isinstance(part, str) else part.text for part in phrase)


def clean(text: str) -> str:
    """Text that can be written as UTF-8 and cannot reorder or hide what stands around it.

    Control characters, half surrogate pairs and directional overrides become a visible replacement character.

    >>> clean("a\\u202eb\\x00c\\td\\ud800")
    'a\ufffdb\ufffdc d\ufffd'
    """
    kept = (" " if c in "\t\r\n" else "\ufffd" if _unprintable(c) else c for c in text)
    return "".join(kept)


def _unprintable(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):
        return True
    return character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class QuotedStudy:
    """A study that can be quoted from.

    Args:
        study: the JSON object of schema ``loratlas.study``.
    """

    __slots__ = ("study",)

    def __init__(self, study: Mapping[str, Any]) -> None:
        self.study = study

    def at(self, path: str) -> Any:
        """The value at a JSON pointer, or None where there is nothing."""
        value: Any = self.study
        for key in path.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if isinstance(value, Mapping):
                value = value.get(key)
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return value

    def number(self, path: str) -> float | None:
        """The finite number at a JSON pointer, or None."""
        return _finite(self.at(path))

    def items(self, path: str) -> range:
        """Indices of the list at a JSON pointer; empty where there is none."""
        value = self.at(path)
        return range(len(value)) if isinstance(value, list) else range(0)

    def quote(self, form: str, *paths: str, how: str = "value") -> Quote:
        """Text for the value at these JSON pointers; a dash where one of them is missing.

        Args:
            form: a key of :data:`FORMS`.
            paths: as many pointers as ``how`` takes.
            how: a key of :data:`WAYS`.
        """
        values = [self.at(path) for path in paths]
        if any(value is None for value in values):
            return Quote(text=MISSING, form=form, how=how, paths=paths)
        value = WAYS[how](*values)
        if form not in _WORDS:
            value = _finite(value)
            if value is None:
                return Quote(text=MISSING, form=form, how=how, paths=paths)
        text = FORMS[form](value)
        return Quote(text=text, form=form, how=how, paths=paths, value=_finite(value))

    @property
    def per(self) -> str:
        """What a loss is told in.

        >>> QuotedStudy({}).per, QuotedStudy({"task": {"unit": "nats per row"}}).per
        ('nats per token', 'nats per row')
        """
        return clean(str(self.at("/task/unit") or "nats per token"))

    def word(self, path: str) -> Quote:
        """A name or a sentence, as the study has it."""
        return self.quote("word", path)


def pointer(*keys: str | int) -> str:
    """A JSON pointer from its keys.

    >>> pointer("spec", "arms", "a/b~c")
    '/spec/arms/a~1b~0c'
    """
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _name(value: Any) -> str:
    """The last part of a path, which may begin with a variable; a Hub id and a plain name stay whole, the embedded ones
    lose their "demo:"."""
    text = clean(str(value)).removeprefix("demo:")
    inside = text.rstrip("/\\")
    local = inside.startswith(("/", ".", "~", "$")) or inside.count("/") > 1 or "\\" in inside
    return re.split(r"[/\\]", inside)[-1] if local and inside else text


def _words(value: Any) -> str:
    """A name with spaces; measures that the field writes otherwise are written so."""
    return {"rouge_l": "ROUGE-L", "macro_f1": "macro F1"}.get(str(value), clean(str(value)).replace("_", " "))


def _yes(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else clean(str(value))


FORMS: dict[str, Callable[[Any], str]] = {
    "word": lambda value: clean(str(value)),
    "words": _words,
    "name": _name,
    "yes": _yes,
    "loss": formats.loss,
    "signed": formats.signed,
    "perplexity": formats.perplexity,
    "count": formats.count,
    "steps": formats.whole,
    "millions": formats.magnitude,
    "bytes": formats.data_size,
    "seconds": formats.seconds,
    "times": lambda value: f"{value:.2f} ×",
    "rate": lambda value: f"{value:g}",
    "score": lambda value: f"{value:.3g}",
    "tau": lambda value: f"{value:.2f}",
    "percent": formats.percent,
    "points": formats.points,
    "probability": formats.probability,
    "degrees": lambda value: f"{value:.1f}",
}
_WORDS = frozenset({"word", "words", "name", "yes"})

WAYS: dict[str, Callable[..., Any]] = {
    "value": lambda value: value,
    "abs": lambda value: abs(value),
    "exp": lambda value: math.exp(value) if value < 700 else math.inf,
    "share": lambda part, whole: part / whole if whole else math.nan,
    "excess": lambda part, whole: part / whole - 1 if whole else math.nan,
    "difference": lambda left, right: left - right,
    "number of": lambda value: len(value),
}
