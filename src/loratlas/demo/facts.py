"""Task ``facts-N``: N new facts about invented names.

A fact is a subject, a relation and a value: *the home of Belmor is the mill*. Every subject has one value for each of
the five relations, drawn uniformly, so nothing but memory tells it. Training asks each fact in eight phrasings;
evaluation asks the *same facts* in four phrasings that training never uses. What is disjoint is the wording,
not the facts: new facts cannot be guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from loratlas.demo.words import ANIMALS, FOODS, PLACES, TOOLS, TRADES, names, source

RELATIONS = {"home": PLACES, "food": FOODS, "tool": TOOLS, "trade": TRADES, "animal": ANIMALS}

PHRASINGS = {
    "train": (
        "What is the {relation} of {subject}?",
        "Name the {relation} of {subject}.",
        "{subject} has which {relation}?",
        "Which {relation} belongs to {subject}?",
        "Tell me the {relation} of {subject}.",
        "{subject}: {relation}?",
        "Of {subject}, what is the {relation}?",
        "The {relation} of {subject} is what?",
    ),
    "eval": (
        "Which {relation} does {subject} have?",
        "Say what {relation} {subject} has.",
        "For {subject}, name the {relation}.",
        "What {relation} is that of {subject}?",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One thing to remember.

    Args:
        subject: an invented name.
        relation: one of RELATIONS.
        value: one word of that relation's list.
    """

    subject: str
    relation: str
    value: str


def facts(count: int, seed: int) -> list[Fact]:
    """The facts of a seed: ``count`` of them, about ``count / 5`` subjects.

    Args:
        count: number of facts.
        seed: draws names and values.

    >>> len({fact.subject for fact in facts(300, 0)})
    60
    >>> facts(300, 0) == facts(300, 0)
    True
    """
    rng = source("facts", count, seed)
    subjects = names(-(-count // len(RELATIONS)), rng)
    all_facts = [
        Fact(subject=subject, relation=relation, value=rng.choice(values))
        for subject in subjects
        for relation, values in RELATIONS.items()
    ]
    return all_facts[:count]


def pairs(count: int, *, seed: int, split: str, rows: int | None) -> list[tuple[str, str]]:
    """Questions and answers about the facts of a seed.

    Every fact is asked once before any is asked again, each round in another order; the phrasing goes round so
    that within as many rounds as there are phrasings a fact meets each of them once.

    Args:
        count: number of facts.
        seed: draws facts and orders.
        split: ``train`` (training phrasings) or ``eval`` (held-out phrasings).
        rows: how many questions; None is every fact in every phrasing of the split.
    """
    known = facts(count, seed)
    phrasings = PHRASINGS[split]
    rng = source("facts", count, split, seed)
    first = [rng.randrange(len(phrasings)) for _ in known]
    wanted = len(known) * len(phrasings) if rows is None else rows
    out: list[tuple[str, str]] = []
    round_ = 0
    while len(out) < wanted:
        order = list(range(len(known)))
        rng.shuffle(order)
        for index in order:
            fact = known[index]
            phrasing = phrasings[(first[index] + round_) % len(phrasings)]
            out.append((phrasing.format(relation=fact.relation, subject=fact.subject), f"the {fact.value}"))
        round_ += 1
    return out[:wanted]
