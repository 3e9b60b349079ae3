"""Task ``facts-N``: N new facts about invented names.

A fact is a subject, a relation and a value: *the brother of Belmor is Tasin Gode*. Every subject has one
value for each of five relations; the value is two invented names that occur nowhere else, so nothing but
memory tells it. Training asks every fact in eight phrasings; evaluation asks the *same facts* in
phrasings that training never uses. What is disjoint is the wording, not the facts: new facts cannot be
guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from loratlas.demo.words import names, source

RELATIONS = ("brother", "teacher", "doctor", "friend", "judge")
PHRASINGS = {
    "train": (
        "What is the {relation} of {subject} called?",
        "Name the {relation} of {subject}.",
        "{subject} has which {relation}?",
        "Which {relation} belongs to {subject}?",
        "Tell me the {relation} of {subject}.",
        "{subject}: {relation}?",
        "Of {subject}, who is the {relation}?",
        "The {relation} of {subject} is who?",
    ),
    "eval": (
        "Which {relation} does {subject} have?",
        "Say what {relation} {subject} has.",
        "For {subject}, name the {relation}.",
        "Who is the {relation} of {subject}?",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One thing to remember.

    Args:
        subject: an invented name.
        relation: one of RELATIONS.
        value: two invented names.
    """

    subject: str
    relation: str
    value: str


def facts(count: int, seed: int) -> list[Fact]:
    """The facts of a seed.

    Args:
        count: number of facts; there are a fifth as many subjects.
        seed: draws names and values.

    >>> len({fact.subject for fact in facts(300, 0)})
    60
    >>> facts(300, 0) == facts(300, 0)
    True
    """
    rng = source("facts", count, seed)
    subjects = -(-count // len(RELATIONS))
    # No name stands in two values: a list of names that can be learnt as such would not be memory of facts.
    everyone = names(subjects + 2 * count, rng)
    values = iter(everyone[subjects:])
    asked = [(subject, relation) for subject in everyone[:subjects] for relation in RELATIONS]
    return [
        Fact(subject=subject, relation=relation, value=f"{next(values)} {next(values)}")
        for subject, relation in asked[:count]
    ]


def pairs(count: int, *, seed: int, split: str, rows: int | None) -> list[tuple[str, str]]:
    """Questions and answers about the facts of a seed.

    Every fact is asked once before any is asked again, each round in another order. From round to round
    a fact goes through the phrasings of the split, beginning at one drawn for it.

    Args:
        count: number of facts.
        seed: draws facts and orders.
        split: ``train`` or ``eval``, which have no phrasing in common.
        rows: how many questions. None is, in training, every fact in every phrasing and, in evaluation, every
            fact once: two phrasings of one fact are no two independent examples.
    """
    known = facts(count, seed)
    phrasings = PHRASINGS[split]
    rng = source("facts", count, split, seed)
    first = [rng.randrange(len(phrasings)) for _ in known]
    if rows is None:
        rows = count * len(phrasings) if split == "train" else count
    out: list[tuple[str, str]] = []
    rounds = 0
    while len(out) < rows:
        order = list(range(count))
        rng.shuffle(order)
        for index in order:
            fact = known[index]
            phrasing = phrasings[(first[index] + rounds) % len(phrasings)]
            out.append((phrasing.format(relation=fact.relation, subject=fact.subject), fact.value))
        rounds += 1
    return out[:rows]
