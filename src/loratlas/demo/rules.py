"""Task ``rules``: apply a systematic rule to combinations never seen.

Every word has a code word, by a table drawn from the seed; a message of several words is put into code
word by word. All words occur in training, the combinations of evaluation do not: the message's word
numbers, summed modulo 5, tell which split it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

from loratlas.demo.words import ANIMALS, FOODS, LANDSCAPE, TOOLS, TRADES, source

WORDS = LANDSCAPE + FOODS + TOOLS + TRADES + ANIMALS
LENGTH = 4
"""Words in a message."""


def table(seed: int) -> dict[str, str]:
    """Word → code word under the rule of a seed: a permutation of WORDS.

    >>> len(set(table(0).values())) == len(WORDS)
    True
    """
    codes = list(WORDS)
    source("rules", "table", seed).shuffle(codes)
    return dict(zip(WORDS, codes, strict=True))


def split_of(message: Sequence[str]) -> str:
    """The split that a combination of words belongs to: three fifths train, two fifths eval.

    >>> split_of(["hill", "hill", "hill", "hill"])
    'train'
    """
    return "train" if sum(WORDS.index(word) for word in message) % 5 < 3 else "eval"


def pairs(*, seed: int, split: str, rows: int) -> list[tuple[str, str]]:
    """Messages and their codes.

    Args:
        seed: draws the rule and the messages.
        split: ``train`` or ``eval``; no combination of words is in both.
        rows: how many messages.
    """
    rule = table(seed)
    rng = source("rules", split, seed)
    out: list[tuple[str, str]] = []
    while len(out) < rows:
        message = rng.sample(WORDS, LENGTH)
        if split_of(message) == split:
            answer = " ".join(rule[word] for word in message)
            out.append((f"Put into code: {' '.join(message)}", answer))
    return out
