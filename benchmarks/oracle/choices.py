"""The choice set of a case: every plan spends the same parameters, and every plan is trained."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.oracle.rules import RULES, Given
from benchmarks.oracle.tasks import Size
from loratlas.anatomy.sites import Anatomy
from loratlas.errors import SettingsError
from loratlas.placement.allocate import allocate
from loratlas.placement.plan import place, place_allocation
from loratlas.scan.plan_from_scores import candidates

REFERENCE = "all"
PRESETS = ("all", "attention", "feedforward", "q,v")
FUSED = {"q,v": "attn.qkv"}
"""Preset → what PEFT's own default takes where a base has one matrix for query, key and value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One plan of the set.

    Args:
        kind: preset, role, pair, hybrid, random or rule; earlier: a rule's before it changed.
        placement: with every rank written.
        same_as: an earlier choice with the same table, which is trained in its place; None where it is trained.
    """

    kind: str
    placement: str
    same_as: str | None = None


def choices(given: Given, size: Size, *, seed: int = 0) -> dict[str, Choice]:
    """Every choice of a case by name, the reference first."""
    anatomy, budget = given.anatomy, given.budget
    texts: list[tuple[str, str, str]] = []

    def solved(kind: str, name: str, text: str) -> None:
        texts.append((kind, name, place(anatomy, text, budget=budget).text))

    roles = list(dict.fromkeys(site.role for site in candidates(anatomy)))
    for text in PRESETS:
        fused = FUSED.get(text)
        solved("preset", text, fused if fused in roles else text)
    if size.roles:
        for role in roles:
            solved("role", role, role)
    if size.pairs:
        for role in roles:
            for first in range(0, anatomy.layers - 1, 2):
                solved("pair", f"{role} {first}", f"{role}@{first}..{first + 2}")
    if size.hybrids:
        half, end = anatomy.layers // 2, anatomy.layers
        for text in (
            f"attention@0..{half} + feedforward@{half}..{end}",
            f"feedforward@0..{half} + attention@{half}..{end}",
            f"feedforward + attention@{half}..{end}",
            f"attention + feedforward@{half}..{end}",
            f"all@0..{half}",
            f"all@{half}..{end}",
        ):
            solved("hybrid", text, text)
    for number in range(size.randoms):
        texts.append(("random", f"random {number + 1}", _random(anatomy, budget, seed, number)))
    for rule in size.rules:
        try:
            texts.append(("rule", f"rule {rule}", RULES[rule](given)))
        except SettingsError as silent:  # a rule without a signal abstains
            print(f"rule {rule} makes no choice: {silent.found}")
    found: dict[str, Choice] = {}
    tables: dict[str, str] = {}
    for kind, name, text in texts:
        digest = place(anatomy, text).digest
        found[name] = Choice(kind=kind, placement=text, same_as=tables.get(digest))
        tables.setdefault(digest, name)
    return found


def merged(
    record: Mapping[str, Any], made: Mapping[str, Choice], anatomy: Anatomy
) -> tuple[dict[str, Choice], dict[str, str]]:
    """(choices of a kept case with those that rules make now, which of them are kept: name → name in the record).

    Args:
        record: of the case.
        made: the rules' choices.
        anatomy: of the base.
    """
    found: dict[str, Choice] = {}
    names: dict[str, str] = {}
    trained: dict[str, str] = {}

    def keep_as(name: str, kept: str, kind: str) -> None:
        told = record["choices"][kept]
        found[name], names[name] = Choice(kind=kind, placement=told["placement"]), kept
        trained.setdefault(place(anatomy, told["placement"]).digest, name)

    kept = {name: told for name, told in record["choices"].items() if told["same_as"] is None}
    for name, told in kept.items():
        if _gone(name, told):
            keep_as(_free(name.replace("rule", "earlier"), kept), name, "earlier")
        elif name not in made:
            keep_as(name, name, told["kind"])
    for name, choice in made.items():
        digest = place(anatomy, choice.placement).digest
        if name in kept and place(anatomy, kept[name]["placement"]).digest == digest:
            keep_as(name, name, choice.kind)
            continue
        again = trained.get(digest, "")
        if again.startswith("earlier"):  # what a rule chose before it chose otherwise
            found[name] = replace(found.pop(again), kind=choice.kind)
            trained[digest], names[name] = name, names.pop(again)
        if name in kept:
            keep_as(_free(name.replace("rule", "earlier"), kept), name, "earlier")
        if name in found:
            continue
        found[name] = replace(choice, same_as=trained.get(digest))
        if found[name].same_as is None:
            trained[digest] = name
    for name, told in record["choices"].items():
        if told["same_as"] is not None and name not in made and not _gone(name, told):
            now = next(new for new, old in names.items() if old == told["same_as"])
            found[name] = Choice(kind=told["kind"], placement=told["placement"], same_as=now)
    return found, names


def _gone(name: str, told: Mapping[str, Any]) -> bool:
    """Whether it is the choice of a rule that the bench no longer has."""
    return told["kind"] == "rule" and name.removeprefix("rule ") not in RULES


def _free(name: str, taken: Container[str]) -> str:
    """The name, or with the first number that makes it new."""
    return next(each for each in chain([name], (f"{name} {n}" for n in count(2))) if each not in taken)


def _random(anatomy: Anatomy, budget: str, seed: int, number: int) -> str:
    """A plan from gains that mean nothing: exponential per site, halved with every rank."""
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 7, number])))
    gains = {
        site.path: (float(stream.exponential()) * 0.5 ** np.arange(min(64, site.max_rank))).tolist()
        for site in candidates(anatomy)
    }
    return place_allocation(anatomy, allocate(anatomy, gains, budget)).text


def keep(path: Path, found: dict[str, Choice]) -> None:
    """Write a choice set; it is made once, so that a bench that goes on trains what it began with."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps({n: asdict(c) for n, c in found.items()}, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def kept(path: Path) -> dict[str, Choice]:
    """Read what `keep` wrote."""
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: Choice(**choice) for name, choice in told.items()}
