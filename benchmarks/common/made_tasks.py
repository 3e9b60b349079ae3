"""Made-up tasks that differ in what a model has to do, for cases that no rule was chosen on.

=============  =====================================================  =====================================
task           what it asks                                           what it needs
=============  =====================================================  =====================================
lookup-twice   where the thing is that somebody holds                 two look-ups, the second by the first
sorting        six words in the order of the alphabet                 comparing all with all
arithmetic     a running total, step by step                          carrying digits
style          a plain sentence in another voice                      moving phrases, inflecting one
long-copy      eight words that follow a name, out of sixty           a position far back
table-to-text  a sentence about a row of a table                      a frame chosen by the values
=============  =====================================================  =====================================

`benchmarks.common.further_tasks` and `benchmarks.common.later_tasks` have six more each. Rows depend on (task, seed,
split) alone. A prompt belongs to the evaluation split if its CRC-32 is divisible by 5, so that no prompt is in both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from random import Random

from benchmarks.common.further_tasks import FURTHER
from benchmarks.common.later_tasks import LATER
from loratlas.demo.words import ANIMALS, COLOURS, FOODS, LANDSCAPE, TOOLS, TRADES, names, source

NAMES = 400
LONG, COPIED = 60, 8
"""Words of a text in `long_copy`, and how many of them are asked for."""

VERBS = {
    "saw": "seen",
    "took": "taken",
    "hid": "hidden",
    "broke": "broken",
    "found": "found",
    "drew": "drawn",
}


def lookup_twice(rng: Random, people: list[str]) -> tuple[str, str]:
    """Who holds what, what lies where; asked: person → thing → place, with a colour on the way."""
    who, things = rng.sample(people, 4), rng.sample(TOOLS, 4)
    places, colours = rng.sample(LANDSCAPE, 4), rng.choices(COLOURS, k=4)
    said = [f"{person} holds the {thing}." for person, thing in zip(who, things, strict=True)]
    said += [
        f"The {thing} is {colour} and from the {place}."
        for thing, place, colour in zip(things, places, colours, strict=True)
    ]
    rng.shuffle(said)
    asked = rng.randrange(4)
    prompt = f"{' '.join(said)} What does {who[asked]} hold?"
    return prompt, f"{colours[asked]} {things[asked]}, {places[asked]}"


def sorting(rng: Random, people: list[str]) -> tuple[str, str]:
    """Six words, sorted."""
    words = rng.sample(LANDSCAPE + FOODS + TOOLS + ANIMALS, 6)
    return f"Sort: {' '.join(words)}", " ".join(sorted(words))


def arithmetic(rng: Random, people: list[str]) -> tuple[str, str]:
    """Three sums and differences; asked: the total after each, digits apart."""
    total = rng.randrange(10, 80)
    prompt, totals = str(total), []
    for _ in range(3):
        change = rng.randrange(-min(total, 40), 41)
        total += change
        prompt += f" {'+' if change >= 0 else '-'} {abs(change)}"
        totals.append(" ".join(str(total)))
    return f"{prompt} =", " , ".join(totals)


def style(rng: Random, people: list[str]) -> tuple[str, str]:
    """Active and plain → passive and like a chronicle."""
    verb = rng.choice(list(VERBS))
    who, what = rng.choice(TRADES + ANIMALS), f"{rng.choice(COLOURS)} {rng.choice(TOOLS + FOODS)}"
    where, day = rng.choice(LANDSCAPE), rng.randrange(2, 30)
    prompt = f"On day {day} the {who} {verb} the {what} near the {where}."
    return (
        prompt,
        f"It is written that near the {where} the {what} was {VERBS[verb]} by the {who}, day {day}.",
    )


def long_copy(rng: Random, people: list[str]) -> tuple[str, str]:
    """Sixty words with names in between; asked: the eight words behind one of the names."""
    pool = LANDSCAPE + FOODS + TOOLS + TRADES + ANIMALS + COLOURS
    words, marks = rng.choices(pool, k=LONG), rng.sample(people, 3)
    starts = sorted(rng.sample(range(0, LONG - COPIED, COPIED + 1), 3))
    text: list[str] = []
    for index, word in enumerate(words):
        text += [marks[starts.index(index)], word] if index in starts else [word]
    asked = rng.randrange(3)
    copied = words[starts[asked] : starts[asked] + COPIED]
    return f"{' '.join(text)}\nAfter {marks[asked]}:", " ".join(copied)


def table_to_text(rng: Random, people: list[str]) -> tuple[str, str]:
    """A row with some fields missing → a sentence whose frame depends on trade and age."""
    name, trade, age = rng.choice(people), rng.choice(TRADES), rng.randrange(12, 90)
    place, food, animal = rng.choice(LANDSCAPE), rng.choice(FOODS), rng.choice(ANIMALS)
    fields = {"name": name, "trade": trade, "age": str(age), "place": place, "eats": food, "keeps": animal}
    for field in rng.sample(["eats", "keeps"], rng.randrange(2)):
        del fields[field]
    order = list(fields)
    rng.shuffle(order)
    stage = "young" if age < 25 else "old" if age > 60 else "seasoned"
    sentence = f"{name}, the {stage} {trade} of the {place},"
    said = [f"lives on {food}"] * ("eats" in fields) + [f"owns a {animal}"] * ("keeps" in fields)
    return " | ".join(f"{field}: {fields[field]}" for field in order), f"{sentence} {' and '.join(said)}."


GENERATORS: Mapping[str, Callable[[Random, list[str]], tuple[str, str]]] = {
    "lookup-twice": lookup_twice,
    "sorting": sorting,
    "arithmetic": arithmetic,
    "style": style,
    "long-copy": long_copy,
    "table-to-text": table_to_text,
    **FURTHER,
    **LATER,
}


def split_of(prompt: str) -> str:
    """The split of a prompt: one in five is ``eval``."""
    return "eval" if zlib.crc32(prompt.encode()) % 5 == 0 else "train"


def generate(task: str, *, split: str, rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with ``prompt`` and ``completion``.

    Args:
        task: one of `GENERATORS`. split: ``train`` or ``eval``. rows: how many. seed: draws names and rows.

    >>> generate("arithmetic", split="train", rows=1)[0]["prompt"][-1]
    '='
    """
    people = names(NAMES, source("bench", task, "names", seed))
    rng = source("bench", task, split, seed)
    made: list[dict[str, str]] = []
    while len(made) < rows:
        prompt, completion = GENERATORS[task](rng, people)
        if split_of(prompt) == split:
            made.append({"prompt": prompt, "completion": completion})
    return made
