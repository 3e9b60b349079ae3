"""The classes of a classifier by name: those that a base has already, and which of them a row's label is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loratlas.models.meta import class_kind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_COUNTED = re.compile(r"(?:label|class)?[ _-]?(\d+)", re.IGNORECASE)


def own_labels(config: PretrainedConfig) -> tuple[str, ...]:
    """The classes of a model that is a classifier already, class 0 first; none of any other.

    Where its config only counts them (``LABEL_0``, ``LABEL_1``, …) they are the numbers: which of them a word is
    cannot be read from it.
    """
    if class_kind(config) != "SequenceClassification":
        return ()
    names: Any = config.id2label or {}
    named = [str(names[index]) for index in range(len(names))]
    counts = [_COUNTED.fullmatch(name) for name in named]
    counted = all(match and int(match[1]) == index for index, match in enumerate(counts))
    return tuple(str(index) for index in range(len(named))) if counted else tuple(named)


def label_index(label: int | str, labels: Sequence[str]) -> int | None:
    """Which of some classes a label is: by its name, by its name without case, or by its number.

    Args:
        label: of a row.
        labels: names of the classes, class 0 first.

    Returns:
        Its index; None where it is none of them, and for a number where the names count otherwise.

    >>> label_index("positive", ("NEGATIVE", "POSITIVE")), label_index(0, ("no", "yes"))
    (1, 0)
    >>> label_index(1, ("1 star", "2 stars")) is None
    True
    """
    name = str(label).strip()
    if name in labels:
        return list(labels).index(name)
    alike = [index for index, other in enumerate(labels) if other.strip().casefold() == name.casefold()]
    if len(alike) == 1:
        return alike[0]
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(labels):
        return None
    # "1" is no index where "1 star" is class 0: then nobody knows which of the two is meant.
    counted = [re.search(r"\d+", other) for other in labels]
    otherwise = all(counted) and any(m and int(m[0][:9]) != index for index, m in enumerate(counted))
    plain = any(other.strip().lstrip("-").isdecimal() for other in labels)
    return None if plain or otherwise else int(name)


def knows(own: Sequence[str], labels: Iterable[int | str]) -> bool:
    """Whether classes are those of some labels, each label one of them and no two of them the same."""
    indices = [label_index(label, own) for label in dict.fromkeys(labels)]
    return bool(own) and None not in indices and len(set(indices)) == len(indices)
