"""Task ``retrieval``: find a value in the prompt and copy it.

The prompt lists pairs of an invented name and four words, and asks for one of them. Names, words and
their pairing are drawn anew for every row, so nothing can be remembered: what is learnt is to look.
Training and evaluation draw from different streams and from disjoint sets of names.
"""

from __future__ import annotations

from loratlas.demo.words import ANIMALS, FOODS, LANDSCAPE, TOOLS, TRADES, names, source

PAIRS = 5
"""Pairs in a prompt."""
LENGTH = 4
"""Words in a value."""
NAMES = 600
WORDS = LANDSCAPE + FOODS + TOOLS + TRADES + ANIMALS


def pairs(*, seed: int, split: str, rows: int) -> list[tuple[str, str]]:
    """Prompts with a list and a question, and the words that were asked for.

    Args:
        seed: draws the names and the lists.
        split: ``train`` or ``eval``; the names of one never occur in the other.
        rows: how many prompts.
    """
    everyone = names(2 * NAMES, source("retrieval", "names", seed))
    own = everyone[:NAMES] if split == "train" else everyone[NAMES:]
    rng = source("retrieval", split, seed)
    out: list[tuple[str, str]] = []
    for _ in range(rows):
        keys = rng.sample(own, PAIRS)
        values = [" ".join(rng.sample(WORDS, LENGTH)) for _ in keys]
        asked = rng.randrange(PAIRS)
        listing = "\n".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
        out.append((f"{listing}\nWhich is {keys[asked]}?", values[asked]))
    return out
