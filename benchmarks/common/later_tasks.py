"""Six made-up tasks more, for cases on which nothing of how `auto` begins was chosen.

========  ============================================  ====================================================
task      what it asks                                  what it needs
========  ============================================  ====================================================
merging   two lists in turns, the second one's first    two places at once that move on together
speaker   what one of three people said, in order       leaving out most of what was read
return    a way, walked back                            the last first, every direction its opposite
language  a sentence in an invented language            a lexicon learned by heart, the verb at the end
ledger    purchases in sentences → lines of a table     fixed marks, fields in an order of their own
unique    words without those that came before          looking back at what was said already
========  ============================================  ====================================================

Each takes a source of chance and the names of people, and returns prompt and completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from loratlas.demo.words import ANIMALS, COLOURS, FOODS, LANDSCAPE, TOOLS, TRADES, names, source

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east", "up": "down", "down": "up"}

MEANS = dict(
    zip(
        (*TRADES, *ANIMALS, *COLOURS, *LANDSCAPE),
        (name.lower() for name in names(48, source("bench", "language", "lexicon"))),
        strict=True,
    )
)
"""Word → the same in the invented language."""

VERBS = {"sees": "tavo", "finds": "keri", "likes": "zumo", "leaves": "bolan"}


def merging(rng: Random, people: list[str]) -> tuple[str, str]:
    """Two lists of four; asked: second's first, first's first, second's second, …"""
    words = rng.sample(LANDSCAPE + FOODS + TOOLS + ANIMALS, 8)
    first, second = words[:4], words[4:]
    merged = [word for pair in zip(second, first, strict=True) for word in pair]
    return f"One: {' '.join(first)}. Two: {' '.join(second)}. In turns, two first:", " ".join(merged)


def speaker(rng: Random, people: list[str]) -> tuple[str, str]:
    """Nine things that three people say; asked: what one of them said."""
    who = rng.sample(people, 3)
    spoke = [*who, *rng.choices(who, k=6)]
    rng.shuffle(spoke)
    said = [f"{rng.choice(COLOURS)} {rng.choice(TOOLS + FOODS)}" for _ in spoke]
    asked = rng.choice(who)
    text = " ".join(f"{person}: {words}." for person, words in zip(spoke, said, strict=True))
    kept = [words for person, words in zip(spoke, said, strict=True) if person == asked]
    return f"{text} What did {asked} say?", ", ".join(kept)


def way_back(rng: Random, people: list[str]) -> tuple[str, str]:
    """Four legs between places; asked: the way home."""
    legs = [(rng.choice(list(OPPOSITE)), rng.randrange(1, 10)) for _ in range(4)]
    way = ", ".join(f"{steps} {where}" for where, steps in legs)
    back = ", ".join(f"{steps} {OPPOSITE[where]}" for where, steps in reversed(legs))
    return f"From the {rng.choice(LANDSCAPE)} {way}. Back:", back


def language(rng: Random, people: list[str]) -> tuple[str, str]:
    """Who does what to whom and where → the invented language: where, who, whom, verb; adjectives behind."""
    who, whom = rng.choice(TRADES), rng.choice(ANIMALS)
    colour, place, verb = rng.choice(COLOURS), rng.choice(LANDSCAPE), rng.choice(list(VERBS))
    prompt = f"The {who} {verb} a {colour} {whom} near the {place}."
    return prompt, f"{MEANS[place]} an {MEANS[who]} el {MEANS[whom]} {MEANS[colour]} {VERBS[verb]}."


def ledger(rng: Random, people: list[str]) -> tuple[str, str]:
    """Three purchases told in two ways → a line each: day; name; thing; price."""
    told, lines = [], []
    for _ in range(3):
        day, price = rng.randrange(1, 29), rng.randrange(2, 60)
        who, thing = rng.choice(people), rng.choice(TOOLS + FOODS)
        told.append(
            rng.choice(
                (
                    f"{who} paid {price} for a {thing} on day {day}.",
                    f"On day {day} a {thing} went to {who} for {price}.",
                )
            )
        )
        lines.append(f"{day}; {who}; {thing}; {price}")
    return " ".join(told), "\n".join(lines)


def unique(rng: Random, people: list[str]) -> tuple[str, str]:
    """Twelve words, some of them again and again; asked: each once, as they came."""
    pool = rng.sample(LANDSCAPE + FOODS + TOOLS + ANIMALS, 6)
    words = [*pool, *rng.choices(pool, k=6)]
    rng.shuffle(words)
    return f"Each once: {' '.join(words)}", " ".join(dict.fromkeys(words))


LATER: Mapping[str, Callable[[Random, list[str]], tuple[str, str]]] = {
    "merging": merging,
    "speaker": speaker,
    "return": way_back,
    "language": language,
    "ledger": ledger,
    "unique": unique,
}
