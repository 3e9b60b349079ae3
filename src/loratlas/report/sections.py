"""The sections of the page, in reading order: what each shows, as data. How it looks is its template's business.

A section is one function here, one row of :data:`SECTIONS` and one file ``templates/sections/KEY.html.j2``, which gets
what the function returns as ``view``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from loratlas.report import captions, forest_plot, moves_section, scan_section, sentences, side_tables, tables
from loratlas.report.figure_theme import DARK, LIGHT
from loratlas.report.figures import AXES
from loratlas.report.quotes import Phrase, QuotedStudy, clean

_SIGNS = {"better": "▼", "worse": "▲", "equivalent": "≈", "undetermined": "?"}
_DIFFERENT_COSTS = {"params": ("time", "memory", "params"), "memory": ("time", "params", "memory")}
"""What was matched → the cost that the trade-offs open on: one that can differ between the arms."""

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of the page.

    Args:
        key: its anchor and the name of its template.
        name: its word in the navigation.
        title: its heading.
        lead: what it shows, in a sentence or two.
        view: what its template draws.
    """

    key: str
    name: str
    title: str
    lead: Phrase
    view: Mapping[str, Any]


Made = tuple[str, Phrase, Mapping[str, Any]] | None
"""Heading, lead and view of a section; None where the study has nothing for it."""


def sections(ledger: QuotedStudy, drawn: Figures) -> list[Section]:
    """The sections that this study has something for."""
    made = ((key, name, make(ledger, drawn)) for key, name, make in SECTIONS)
    return [
        Section(key=key, name=name, title=content[0], lead=content[1], view=content[2])
        for key, name, content in made
        if content is not None
    ]


def _findings(ledger: QuotedStudy, drawn: Figures) -> Made:
    findings = sentences.findings(ledger)
    if not findings:
        return "Findings", sentences.answer(ledger), {"cards": [], "per": ledger.per}
    lead: Phrase = ("Every arm against the reference, ", ledger.word("/findings/0/versus"))
    lead += (". A difference below 0 is better: a lower loss on held-out rows.",)
    half = forest_plot.scale([fact.interval for fact in findings])
    cards = [
        {
            "fact": fact,
            "sign": _SIGNS[fact.verdict],
            "mark": side_tables.mark(ledger, i),
            "flips": side_tables.flips(ledger, i),
            "sentence": _word(ledger, f"/findings/{i}/sentence"),
            "drawing": forest_plot.drawing(fact.interval, half=half),
            "label": captions.forest(ledger, i),
        }
        for i, fact in enumerate(findings)
    ]
    return "Findings", lead, {"cards": cards, "per": ledger.per}


def _word(ledger: QuotedStudy, path: str) -> Phrase:
    return (ledger.word(path),) if ledger.at(path) else ()


def _arms(ledger: QuotedStudy, drawn: Figures) -> Made:
    content = _with_columns(ledger, tables.arms(ledger))
    if not content.rows:
        return None
    lead: Phrase = (
        *sentences.gap(ledger),
        " Losses are those of the last step, averaged over the evaluation seeds, with their interval in brackets."
        " Step times are relative to the reference.",
        *side_tables.lead(ledger),
    )
    return "Arms", lead, {"arms": content, "runs": tables.runs(ledger)}


def _with_columns(ledger: QuotedStudy, content: tables.Table) -> tables.Table:
    """The table of arms with the side metrics, where there are any."""
    more = [
        (heading, make)
        for what, heading, make in (
            ("metric", "Task metric", side_tables.metric),
            ("forgetting", f"Forgetting, {ledger.per}", side_tables.forgetting),
        )
        if side_tables.has(ledger, what)
    ]
    at = content.columns.index("Trainable")
    return replace(
        content,
        columns=(*content.columns[:at], *(heading for heading, _ in more), *content.columns[at:]),
        rows=tuple(
            (*row[:at], *(make(ledger, i) for _, make in more), *row[at:])
            for i, row in enumerate(content.rows)
        ),
    )


def _definitions(ledger: QuotedStudy, drawn: Figures) -> Made:
    if not ledger.number("/ranks/compared"):
        return None
    lead: Phrase = (
        *side_tables.counted(ledger),
        " A reversal is established only if both signs are, on new seeds and new examples.",
    )
    view = {"orders": side_tables.orders(ledger), "opposed": side_tables.opposed(ledger)}
    return "Would another definition rank the arms otherwise?", lead, view


def _trade_offs(ledger: QuotedStudy, drawn: Figures) -> Made:
    axes = [axis for axis in AXES if f"pareto.{axis}" in drawn]
    if not axes:
        return None
    lead = "Left and low is better. Bars are the arms' own intervals; to compare two arms, read the findings,"
    lead += " which pair seeds and examples. The dotted line joins the arms that no other arm beats in both."
    wanted = _DIFFERENT_COSTS.get(str(ledger.at("/spec/match")), tuple(AXES))
    first = next(axis for axis in wanted if axis in axes)
    choices = [
        {
            "axis": axis,
            "name": AXES[axis][2],
            "measured": axis in axes,
            "alternative": captions.pareto(ledger, axis),
        }
        for axis in AXES
    ]
    view = {"choices": choices, "first": first, "alternative": captions.pareto(ledger, first)}
    return "What a lower loss costs", (lead,), view


def _training(ledger: QuotedStudy, drawn: Figures) -> Made:
    if "curves" not in drawn:
        return None
    lead = (
        "Training loss, mean over the evaluation seeds; the band reaches from the lowest seed to the highest."
    )
    return "Training", (lead,), {"alternative": captions.curves(ledger)}


def _tuning(ledger: QuotedStudy, drawn: Figures) -> Made:
    if "tuning" not in drawn:
        return None
    lead = "Every arm was tuned on the same learning rates with the same seeds, on rows kept for that. Marks"
    lead += " are runs, lines their means; the ring is the rate that the arm was then evaluated with."
    view = {"alternative": captions.tuning(ledger), "runs": tables.tuning(ledger)}
    return "Tuning of the learning rate", (lead,), view


def _scan(ledger: QuotedStudy, drawn: Figures) -> Made:
    """What placed the arms whose placement is ``auto``."""
    if "scan" not in drawn:
        return None
    view = {
        "alternative": scan_section.caption(ledger),
        "signals": scan_section.signals(ledger),
        "reasons": scan_section.reasons(ledger),
    }
    return "Where adapters help most, measured before training", scan_section.lead(ledger), view


def _moves(ledger: QuotedStudy, drawn: Figures) -> Made:
    """What moved in the arms whose adapters move while they train."""
    shown = [i for i in moves_section.moving(ledger) if f"moves.{i}" in drawn]
    if not shown:
        return None
    maps = [
        {
            "arm": i,
            "name": (ledger.word(f"/arms/{i}/name"),),
            "figure": f"moves.{i}",
            "alternative": moves_section.caption(ledger, i),
        }
        for i in shown
    ]
    tabled = {"decisions": moves_section.decisions(ledger), "moves": moves_section.moves(ledger)}
    return "Where adapters went while they trained", moves_section.lead(ledger), {"maps": maps, **tabled}


def _maps(ledger: QuotedStudy, drawn: Figures) -> Made:
    shown = [i for i in ledger.items("/arms") if f"map.{i}" in drawn]
    if not shown:
        return None
    lead = "Layers upwards, roles sideways. Colour and number are the rank, on one scale for all arms; pale"
    lead += " cells carry no adapter."
    ranks = [
        f"/arms/{i}/plan/sites/{j}/rank"
        for i in ledger.items("/arms")
        for j in ledger.items(f"/arms/{i}/plan/sites")
    ]
    highest = max(ranks, key=lambda path: ledger.number(path) or 0)
    scales = [
        (name, ",".join(colour for _, colour in stops))
        for name, stops in (("light", LIGHT.ranks), ("dark", DARK.ranks))
    ]
    view = {
        "maps": [_map(ledger, i) for i in shown],
        "scales": scales,
        "highest": (ledger.quote("count", highest),),
    }
    return "Where the adapters are", (lead,), view


def _map(ledger: QuotedStudy, i: int) -> Mapping[str, Any]:
    trainable = ledger.quote("count", f"/arms/{i}/trainable")
    return {
        "arm": i,
        "name": (ledger.word(f"/arms/{i}/name"),),
        "placement": (ledger.word(f"/arms/{i}/placement"), ", ", trainable, " trainable"),
        "figure": f"map.{i}",
        "alternative": captions.model_map(ledger, i),
    }


def _limits(ledger: QuotedStudy, drawn: Figures) -> Made:
    return "What this does not say", (), {"sentences": sentences.reach(ledger)}


def _repeat(ledger: QuotedStudy, drawn: Figures) -> Made:
    view = {"spec": spec_text(ledger), "data": tables.data(ledger), "settings": tables.settings(ledger)}
    return "Repeat it", ("Save the spec, run the command, compare the digests.",), view


def spec_text(ledger: QuotedStudy) -> str:
    """The study's spec as YAML, to be saved and run again."""
    text = yaml.safe_dump(ledger.at("/spec") or {}, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(clean(line) for line in text.split("\n")).rstrip()


SECTIONS: tuple[tuple[str, str, Callable[[QuotedStudy, Figures], Made]], ...] = (
    ("findings", "Findings", _findings),
    ("arms", "Arms", _arms),
    ("definitions", "Definitions", _definitions),
    ("trade-offs", "Trade-offs", _trade_offs),
    ("training", "Training", _training),
    ("tuning", "Tuning", _tuning),
    ("scan", "Scan", _scan),
    ("moves", "Moves", _moves),
    ("maps", "Maps", _maps),
    ("limits", "Limits", _limits),
    ("repeat", "Repeat it", _repeat),
)
"""Key, word in the navigation, and what the section shows; in the page's order."""
