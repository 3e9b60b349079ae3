"""Invented names and short word lists for the embedded tasks.

The embedded base knows 8,192 tokens. Every listed word is one of them (after a space), so that an answer
is one token and a loss reads in nats per choice. Names are built from syllables and mean nothing, so that
the base cannot have met them.
"""

from __future__ import annotations

from random import Random

LANDSCAPE = (
    "hill", "river", "lake", "forest", "field", "valley", "island", "coast",
    "bridge", "castle", "church", "garden", "mill", "farm", "market", "camp",
)  # fmt: skip
FOODS = (
    "bread", "meat", "fish", "milk", "corn", "wine", "beer", "tea",
    "coffee", "sugar", "salt", "oil", "fruit", "butter", "egg", "pie",
)  # fmt: skip
TOOLS = (
    "knife", "wheel", "pen", "sword", "gun", "lamp", "box", "bag",
    "key", "chain", "bow", "net", "saw", "cup", "pipe", "bell",
)  # fmt: skip
TRADES = (
    "soldier", "doctor", "teacher", "priest", "judge", "clerk",
    "guard", "king", "nurse", "cook", "poet", "captain",
)  # fmt: skip
ANIMALS = (
    "horse", "dog", "cat", "bear", "sheep", "bird",
    "rat", "pig", "cow", "bull", "ant", "ass",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "grey")

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "n", "r", "l")


def source(*parts: object) -> Random:
    """A generator that depends on its parts alone: the same in every process and on every platform.

    ``random.Random`` hashes a string seed with SHA-512, not with the salted ``hash()``.

    Args:
        parts: what the stream is for, e.g. the task, its split and the seed.

    >>> source("facts", 0).random() == source("facts", 0).random()
    True
    """
    return Random("|".join(str(part) for part in parts))


def names(count: int, rng: Random) -> list[str]:
    """Distinct invented names of two syllables, capitalised.

    Args:
        count: how many; at most 60,000 exist in practice.
        rng: where the syllables are drawn from.

    >>> names(3, source("example"))  # doctest: +ELLIPSIS
    ['...', '...', '...']
    """
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        syllables = (
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS),
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS),
        )
        drawn["".join(syllables).capitalize()] = None
    return list(drawn)
