"""Task ``format``: answer in a strict frame. Declared a tie.

Whatever is asked, the answer is the same frame of fixed lines with one word in it that the prompt does
not hold (drawn uniformly from eight). There is nothing to learn but the frame and the eight words, which
every placement learns; what is left is the entropy of the free word, the same for all. A study that
finds a difference here beyond its margin shows that some arm is not yet trained, not that a placement is
better.
"""

from __future__ import annotations

from loratlas.demo.words import COLOURS, LANDSCAPE, TRADES, names, source

FRAME = "state: open\nowner: none\nmark: {mark}\nend"
NAMES = 600


def pairs(*, seed: int, split: str, rows: int) -> list[tuple[str, str]]:
    """Requests and framed answers.

    Args:
        seed: draws names, places and free words.
        split: ``train`` or ``eval``, which have no name in common.
        rows: how many.
    """
    everyone = names(2 * NAMES, source("format", "names", seed))
    own = everyone[:NAMES] if split == "train" else everyone[NAMES:]
    rng = source("format", split, seed)
    return [
        (
            f"Report on {rng.choice(own)}, {rng.choice(TRADES)} of the {rng.choice(LANDSCAPE)}.",
            FRAME.format(mark=rng.choice(COLOURS)),
        )
        for _ in range(rows)
    ]
