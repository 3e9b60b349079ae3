"""Six more made-up tasks, for cases that neither a rule nor a start was chosen on.

=========  ========================================  ====================================================
task       what it asks                              what it needs
=========  ========================================  ====================================================
counting   how often each kind occurs among words    gathering over the whole prompt, knowing kinds
reversal   seven words from the last to the first    positions that run against each other
code       words in a code that the prompt explains  a small dictionary, used word by word
editing    a text with one word exchanged            copying, but for the places that a rule names
calendar   days of the week some days on             arithmetic modulo seven
record     a sentence → its fields, as JSON          fixed marks, fields in an order of their own
=========  ========================================  ====================================================

Each takes a source of chance and the names of people, and returns prompt and completion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from random import Random

from loratlas.demo.words import ANIMALS, COLOURS, FOODS, LANDSCAPE, TOOLS, TRADES

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

KINDS = {"tools": TOOLS, "foods": FOODS, "animals": ANIMALS, "colours": COLOURS}


def counting(rng: Random, people: list[str]) -> tuple[str, str]:
    """Twelve words of four kinds; asked: how many of each."""
    kinds = rng.choices(list(KINDS), k=12)
    words = [rng.choice(KINDS[kind]) for kind in kinds]
    return f"Count: {' '.join(words)}", ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS)


def reversal(rng: Random, people: list[str]) -> tuple[str, str]:
    """Seven words, backwards."""
    words = rng.sample(LANDSCAPE + FOODS + TOOLS + ANIMALS, 7)
    return f"Backwards: {' '.join(words)}", " ".join(reversed(words))


def code(rng: Random, people: list[str]) -> tuple[str, str]:
    """Six words stand for others; asked: a message of five words, read."""
    means = dict(zip(rng.sample(COLOURS, 6), rng.sample(LANDSCAPE + TOOLS, 6), strict=True))
    sent = rng.choices(list(means), k=5)
    explained = ", ".join(f"{word} is {meaning}" for word, meaning in means.items())
    return f"{explained}. Read: {' '.join(sent)}", " ".join(means[word] for word in sent)


def editing(rng: Random, people: list[str]) -> tuple[str, str]:
    """Four short sentences; asked: the same with one thing in another's place wherever it stands."""
    old, new, *others = rng.sample(TOOLS + FOODS, 4)
    who = rng.sample(people, 4)
    things = [old, *rng.choices([old, *others], k=3)]
    rng.shuffle(things)
    text = [
        f"{person} has the {thing} at the {rng.choice(LANDSCAPE)}."
        for person, thing in zip(who, things, strict=True)
    ]
    edited = [sentence.replace(f"the {old} at", f"the {new} at") for sentence in text]
    return f"{' '.join(text)} Write {new} for {old}:", " ".join(edited)


def calendar(rng: Random, people: list[str]) -> tuple[str, str]:
    """A day and three spans, one after the other; asked: the day after each."""
    day, spans = rng.randrange(7), [rng.randrange(1, 31) for _ in range(3)]
    prompt, reached = f"{DAYS[day]}, then {', then '.join(f'{span} days' for span in spans)}:", []
    for span in spans:
        day = (day + span) % 7
        reached.append(DAYS[day])
    return prompt, ", ".join(reached)


def record(rng: Random, people: list[str]) -> tuple[str, str]:
    """Facts about a person in one of three orders → the same as JSON, some fields null."""
    name, trade, age = rng.choice(people), rng.choice(TRADES), rng.randrange(12, 90)
    place = rng.choice(LANDSCAPE)
    animal = rng.choice((*ANIMALS, None))
    food = rng.choice((*FOODS, None))
    keeps = f" with a {animal}" if animal else ""
    eats = f", fond of {food}" if food else ""
    prompt = rng.choice(
        (
            f"{name}, {age}, is a {trade} from the {place}{keeps}{eats}.",
            f"At the {place} lives a {trade} of {age}{keeps}{eats}: {name}.",
            f"Ask the {trade} {name}, {age}{eats}{keeps}, about the {place}.",
        )
    )
    fields = {"age": age, "animal": animal, "food": food, "name": name, "place": place, "trade": trade}
    return prompt, json.dumps(fields)


FURTHER: Mapping[str, Callable[[Random, list[str]], tuple[str, str]]] = {
    "counting": counting,
    "reversal": reversal,
    "code": code,
    "editing": editing,
    "calendar": calendar,
    "record": record,
}
