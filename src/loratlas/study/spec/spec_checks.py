"""What takes more than one key of a study's file to judge."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import pairwise

from loratlas.errors import SettingsError, SpecError, printable
from loratlas.scan.plan_from_scores import is_auto, is_scan
from loratlas.study.spec.rates_and_seeds import WIDEST_FACTOR
from loratlas.study.spec.study_spec import FEWEST_TUNING_ROWS, FEWEST_TUNING_SEEDS, WRITTEN, StudySpec

LONGEST_NAME = 100
"""Characters of a name."""

MOST_ARMS = 200
"""More could not be told from one another: each comparison's p is corrected for all of them."""


def check(spec: StudySpec, where: str, *, kept: bool = False) -> None:
    """Refuse the first thing that does not fit together.

    Raises:
        SpecError: so.
    """
    for given, fault, instead in _faults(spec, kept):
        raise SpecError(given=f"{given} in {where}", found=fault, instead=instead)


def _faults(spec: StudySpec, kept: bool) -> Iterator[tuple[str, str, str]]:
    names = ", ".join(spec.arms)
    if len(spec.arms) > MOST_ARMS:
        yield f"{len(spec.arms):,} arms", f"more than {MOST_ARMS}", "the arms that a question is about"
        return
    if spec.protocol == 1 and not kept:
        yield (
            "protocol: 1",
            "the first edition of the method, whose rates are too far apart to decide anything small",
            "protocol: 2, or no such line",
        )
    if not spec.reference:
        yield (
            "no reference",
            f"no arm, or more than one, is `all`; the arms are {names}",
            "reference: one of them",
        )
    elif spec.reference not in spec.arms:
        near = get_close_matches(spec.reference, spec.arms, n=1, cutoff=0.3)
        yield (
            f"reference: {spec.reference!r}",
            f"no arm has this name; the arms are {names}",
            f"reference: {near[0] if near else next(iter(spec.arms))}",
        )
    for what, name in [("name: ", spec.name), *(("arms.", name) for name in spec.arms)]:
        if why := _why_not_a_name(name):
            yield f"{what}{printable(name, 60)}", f"a name {why}", "a short plain name"
    if not kept:
        yield from _moving_faults(spec)
    yield from _dora_faults(spec)
    rates = spec.learning_rates
    if list(rates) != sorted(set(rates)):
        yield f"learning_rates: {list(rates)}", "rates that repeat or do not rise", str(sorted(set(rates)))
    wide = [(a, b) for a, b in pairwise(rates) if b / a > WIDEST_FACTOR * (1 + 1e-9)]
    if wide and not spec.demonstration:
        a, b = wide[0]
        yield (
            f"learning_rates: {list(rates)}",
            f"{a:g} and {b:g} are a factor of {b / a:.3g} apart, so that the best rate may lie between them",
            f"rates at most a factor of {WIDEST_FACTOR:g} apart, e.g. {a:g}, {a * WIDEST_FACTOR:g}, "
            f"{a * WIDEST_FACTOR**2:g} (or demonstration: true)",
        )
    if spec.tuning.rows < FEWEST_TUNING_ROWS and not spec.demonstration:
        yield (
            f"tuning.rows: {spec.tuning.rows}",
            "too few rows to choose a learning rate on",
            f"{FEWEST_TUNING_ROWS} or more (or demonstration: true)",
        )
    if spec.tuning.seeds < FEWEST_TUNING_SEEDS and not spec.demonstration:
        yield (
            f"tuning.seeds: {spec.tuning.seeds}",
            "one seed cannot distinguish a good rate from a lucky one",
            f"{FEWEST_TUNING_SEEDS} or more (or demonstration: true)",
        )
    written = spec.metric is not None and spec.metric.name in WRITTEN
    if spec.metric is not None and written and spec.metric.rows > spec.evaluation.rows:
        yield (
            f"metric.rows: {spec.metric.rows}",
            f"{spec.evaluation.rows} evaluation rows to take them from",
            f"{spec.evaluation.rows} or less",
        )
    if spec.data.eval is None and spec.data.eval_split is None and not spec.data.train.startswith("demo:"):
        yield (
            f"data.train: {spec.data.train!r}",
            "no rows to evaluate on: neither data.eval nor data.eval_split",
            "data.eval: another file, or data.eval_split: another split of the same source",
        )


def _moving_faults(spec: StudySpec) -> Iterator[tuple[str, str, str]]:
    """Of arms whose adapters move, or were asked to."""
    for name, arm in spec.arms.items():
        asked = [key for key in ("signal", "head", "decide") if getattr(arm, key) is not None]
        if not is_auto(arm.placement):
            if asked:
                yield (
                    f"arms.{name}.{asked[0]}",
                    f"the placement {printable(arm.placement, 60)}, whose adapters stay where they are",
                    f"placement: auto, or no {asked[0]}",
                )
            continue
        from loratlas.adapters.attach import takes_from_base
        from loratlas.study.inputs.match_budgets import moving_of

        if takes_from_base(arm.init):
            yield (
                f"arms.{name}.init: {arm.init}",
                "adapters that took a part of the base's weights along, whose ranks cannot change",
                "no init, or a placement in words, such as all:8",
            )
        try:
            moving_of(arm).schedule.steps(spec.steps)
        except SettingsError as error:
            yield f"arms.{name}: {error.given}", error.found, error.instead.replace("--", "")


def _dora_faults(spec: StudySpec) -> Iterator[tuple[str, str, str]]:
    """Of arms with DoRA where ranks move, where a scan places them, or where arms are matched by what ranks cost."""
    for name, arm in spec.arms.items():
        if arm.dora and (is_auto(arm.placement) or is_scan(arm.placement)):
            yield (
                f"arms.{name}.dora",
                f"the placement {arm.placement}, whose ranks are given out by what low-rank changes do",
                "no dora, or a placement in words, such as all:8",
            )
        if arm.dora and spec.match in ("time", "memory"):
            yield (
                f"arms.{name}.dora with match: {spec.match}",
                "a price of ranks, and DoRA's lengths cost a pass over every adapted matrix at any rank",
                "match: params, or match: none",
            )


def _why_not_a_name(name: str) -> str:
    """What keeps a text from being the name of an arm or a study; "" where nothing does."""
    if not name.strip():
        return "that is empty"
    if len(name) > LONGEST_NAME:
        return f"of {len(name):,} characters, more than {LONGEST_NAME}"
    if not name.isprintable():
        return "with characters that a terminal would obey"
    return "that holds a slash" if any(slash in name for slash in "/\\") else ""
