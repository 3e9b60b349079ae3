"""Task ``rules``: apply a systematic rule to combinations never seen.

A thing has a size, a colour, a state and a kind. Its code has four digits: one for each of the first three, by a
table drawn from the seed, and a last one that depends on size and colour *together* (the sum of their digits,
modulo 10). Training sees 60 % of all combinations, evaluation the other 40 %: single attributes are known, their
combination is new.
"""

from __future__ import annotations

from loratlas.demo.words import COLOURS, PLACES, SIZES, STATES, source

ATTRIBUTES = (SIZES, COLOURS, STATES, PLACES)
TRAIN_SHARE = 0.6


def code(things: tuple[str, str, str, str], seed: int) -> str:
    """The code of a combination under the rule of a seed.

    Args:
        things: size, colour, state, kind; the kind does not count.
        seed: draws the digit tables.

    >>> code(("big", "red", "hard", "mill"), 0) == code(("big", "red", "hard", "lake"), 0)
    True
    """
    digits = [_table(part, seed)[word] for part, word in enumerate(things[:3])]
    digits.append((digits[0] + digits[1]) % 10)
    return " ".join(str(digit) for digit in digits)


def _table(part: int, seed: int) -> dict[str, int]:
    digits = source("rules", "digits", part, seed).sample(range(10), len(ATTRIBUTES[part]))
    return dict(zip(ATTRIBUTES[part], digits, strict=True))


def combinations(split: str, seed: int) -> list[tuple[str, str, str, str]]:
    """The combinations of a split, shuffled; no combination is in both splits.

    Args:
        split: ``train`` or ``eval``.
        seed: draws which combinations go where.

    >>> set(combinations("train", 0)) & set(combinations("eval", 0))
    set()
    """
    everything = [(a, b, c, d) for a in SIZES for b in COLOURS for c in STATES for d in PLACES]
    source("rules", "split", seed).shuffle(everything)
    cut = round(TRAIN_SHARE * len(everything))
    return everything[:cut] if split == "train" else everything[cut:]


def pairs(*, seed: int, split: str, rows: int | None) -> list[tuple[str, str]]:
    """Descriptions and their codes.

    Args:
        seed: draws the rule and the split.
        split: ``train`` or ``eval``.
        rows: how many; None is every combination of the split once. More than there are start over.
    """
    own = combinations(split, seed)
    wanted = len(own) if rows is None else rows
    tables = [_table(part, seed) for part in range(3)]
    out: list[tuple[str, str]] = []
    for index in range(wanted):
        size, colour, state, kind = own[index % len(own)]
        digits = [table[word] for table, word in zip(tables, (size, colour, state), strict=True)]
        digits.append((digits[0] + digits[1]) % 10)
        answer = " ".join(str(digit) for digit in digits)
        out.append((f"Code of the {state} {size} {colour} {kind}?", answer))
    return out
