"""The sections of the page, in reading order. Sentences and numbers come from the facts and tables."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from loratlas.report import captions, tables
from loratlas.report import forest_plot as forest
from loratlas.report import scan_section as scanned
from loratlas.report import sentences as facts
from loratlas.report import side_tables as beside
from loratlas.report.figures import AXES, DARK, LIGHT
from loratlas.report.markup import attribute, dot, folded, phrase, plot, table, title
from loratlas.report.quotes import Ledger, clean

_SIGNS = {"better": "▼", "worse": "▲", "equivalent": "≈", "undetermined": "?"}


def body(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    """Everything between ``<body>`` and the scripts; a section without content is left out."""
    made = [
        ("findings", "Findings", _findings(ledger)),
        ("arms", "Arms", _arms(ledger)),
        ("definitions", "Definitions", _definitions(ledger)),
        ("trade-offs", "Trade-offs", _pareto(ledger, drawn)),
        ("training", "Training", _curves(ledger, drawn)),
        ("tuning", "Tuning", _tuning(ledger, drawn)),
        ("scan", "Scan", _scan(ledger, drawn)),
        ("maps", "Maps", _maps(ledger, drawn)),
        ("limits", "Limits", _limits(ledger)),
        ("repeat", "Repeat it", _repeat(ledger)),
    ]
    shown = [(key, name, content) for key, name, content in made if content]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in shown)
    parts = ['<a class="skip" href="#findings">To the findings</a>', _head(ledger, links), "<main>"]
    for key, _, content in shown:
        parts.append(f'<section id="{key}" aria-labelledby="{key}-title">{content}</section>')
    parts += [
        "</main><footer>Made by loratlas. Every number on this page names its place in the study, which lies",
        "in this file: see <code>data-from</code> in the source.</footer>",
    ]
    return "\n".join(parts)


def _head(ledger: Ledger, links: str) -> str:
    banners = "".join(
        f'<p class="banner {kind}" role="note">{phrase(said)}</p>' for kind, said in facts.banners(ledger)
    )
    return (
        f'<header class="top"><p class="eyebrow">{phrase(("Study: ", ledger.word("/name")))}</p>'
        f"<h1>{phrase(facts.title(ledger))}</h1>"
        f'<p class="answer">{phrase(facts.answer(ledger))}</p>'
        f'<p class="conditions">{phrase(facts.conditions(ledger))}</p>{banners}'
        f'<nav aria-label="Sections">{links}</nav></header>'
    )


def _findings(ledger: Ledger) -> str:
    found = facts.findings(ledger)
    if not found:
        return title("findings", "Findings", phrase(facts.answer(ledger)))
    lead: tuple[Any, ...] = ("Every arm against the reference, ", ledger.word("/findings/0/versus"))
    lead += (". A difference below 0 is better: a lower loss on rows that nothing was chosen on.",)
    half = forest.scale([fact.interval for fact in found])
    cards = "".join(_card(ledger, i, fact, half) for i, fact in enumerate(found))
    return title("findings", "Findings", phrase(lead)) + cards + _key(ledger)


def _card(ledger: Ledger, i: int, fact: facts.FindingFact, half: float) -> str:
    label = attribute(captions.forest(ledger, i))
    drawing = forest.draw(fact.interval, half=half, verdict=fact.verdict, label=label)
    reason = f'<p class="reason">{phrase(("Because ", *fact.reason, "."))}</p>' if fact.reason else ""
    numbers = "".join(
        f"<div><dt>{phrase(name)}</dt><dd>{phrase(said)}</dd></div>" for name, said in fact.numbers
    )
    own = ""
    if ledger.at(f"/findings/{i}/sentence"):
        own = folded("In full", f"<p>{phrase((ledger.word(f'/findings/{i}/sentence'),))}</p>")
    sign = f'<span aria-hidden="true">{_SIGNS[fact.verdict]}</span>'
    marked, turned = beside.mark(ledger, i), ""
    if marked:
        marked = f' <span class="badge undetermined"><span aria-hidden="true">⇄</span>{marked}</span>'
        turned = "".join(f'<p class="reason">{phrase(said)}</p>' for said in beside.flips(ledger, i))
    return (
        f'<article class="card finding {fact.verdict}"><div class="says">'
        f'<span class="badge">{sign}{fact.verdict}</span>{marked}<h3>{dot(fact.arm)}{phrase(fact.headline)}</h3>'
        f'{reason}{turned}<dl class="numbers">{numbers}</dl>{own}</div><div>{drawing}'
        '<p class="sides" aria-hidden="true"><span>← lower loss</span><span>higher loss →</span></p>'
        "</div></article>"
    )


def _sample(drawing: str, text: str) -> str:
    svg = f'<svg viewBox="0 0 26 14" class="forest equivalent" aria-hidden="true">{drawing}</svg>'
    return f"<li>{svg}{text}</li>"


def _key(ledger: Ledger) -> str:
    return "".join(
        (
            '<ul class="key" aria-label="How to read the intervals">',
            _sample(
                '<circle class="point" cx="13" cy="7" r="5.5"/>', f"difference, {html.escape(ledger.per)}"
            ),
            _sample('<path class="ci" d="M2 7H24M2 3v8M24 3v8"/>', "interval that decides"),
            _sample('<rect class="band" width="26" height="14"/>', "±δ: counts as equivalent"),
            _sample(
                '<path class="detectable" d="M6 3v11M20 3v11"/>',
                "detectable: the smallest difference that would have been found with 80 % power",
            ),
            "</ul>",
        )
    )


def _arms(ledger: Ledger) -> str:
    content = _with_columns(ledger, tables.arms(ledger))
    if not content.rows:
        return ""
    lead = phrase(facts.gap(ledger))
    lead += " Losses are those of the last step, averaged over the evaluation seeds, with their interval in"
    lead += " brackets. Step times are relative to the reference."
    lead += phrase(beside.lead(ledger))
    made = table(content, name="arms", caption="The arms of the study")
    runs = tables.runs(ledger)
    every = table(runs, name="runs", caption="Every evaluation run")
    return (
        title("arms", "Arms", lead)
        + f'<div class="card scroll">{made}</div>'
        + (folded("Every evaluation run", every) if runs.rows else "")
    )


def _with_columns(ledger: Ledger, content: tables.Table) -> tables.Table:
    """The table of arms with what was measured beside the loss, where anything was."""
    more = [
        (heading, make)
        for what, heading, make in (
            ("metric", "Task metric", beside.metric),
            ("forgetting", f"Forgetting, {ledger.per}", beside.forgetting),
        )
        if beside.has(ledger, what)
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


def _definitions(ledger: Ledger) -> str:
    if not ledger.number("/ranks/compared"):
        return ""
    lead = phrase(beside.counted(ledger))
    lead += " A reversal is established only if both signs are, on new seeds and new examples."
    made = table(beside.orders(ledger), name="orders", caption="The arms by every measure")
    turned = beside.opposed(ledger)
    every = table(turned, name="opposed", caption="Pairs that another measure ranks the other way round")
    return (
        title("definitions", "Would another definition rank the arms otherwise?", lead)
        + f'<div class="card scroll">{made}</div>'
        + (f'<div class="card scroll">{every}</div>' if turned.rows else "")
    )


def _pareto(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    axes = [axis for axis in AXES if f"pareto.{axis}" in drawn]
    if not axes:
        return ""
    lead = "Left and low is better. Bars are the arms' own intervals; to compare two arms, read the findings,"
    lead += " which pair seeds and examples. The dotted line joins the arms that no other arm beats in both."
    choices = "".join(_choice(ledger, axis, axes) for axis in AXES)
    drawing = plot(f"pareto.{axes[0]}", captions.pareto(ledger, axes[0]), identity="pareto")
    return (
        title("trade-offs", "What a lower loss costs", lead)
        + '<div class="card"><fieldset><legend>Loss against</legend>'
        + f'<span class="choice">{choices}</span></fieldset><figure>{drawing}</figure></div>'
        + "<noscript><p>The figures need JavaScript; the tables hold the same numbers.</p></noscript>"
    )


def _choice(ledger: Ledger, axis: str, axes: list[str]) -> str:
    """One cost to choose; one that was not measured can be seen but not chosen."""
    name = AXES[axis][2]
    if axis not in axes:
        return f'<label class="off"><input type="radio" name="cost" disabled>{name}: not measured</label>'
    checked = " checked" if axis == axes[0] else ""
    said = attribute(captions.pareto(ledger, axis))
    return f'<label><input type="radio" name="cost" value="{axis}"{checked} data-alternative="{said}">{name}</label>'


def _curves(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    if "curves" not in drawn:
        return ""
    lead = (
        "Training loss, mean over the evaluation seeds; the band reaches from the lowest seed to the highest."
    )
    drawing = plot("curves", captions.curves(ledger))
    return title("training", "Training", lead) + f'<div class="card"><figure>{drawing}</figure></div>'


def _tuning(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    if "tuning" not in drawn:
        return ""
    lead = "Every arm was tuned on the same learning rates with the same seeds, on rows kept for that. Marks"
    lead += " are runs, lines their means; the ring is the rate that each arm was then judged with."
    drawing = plot("tuning", captions.tuning(ledger))
    every = table(tables.tuning(ledger), name="tuned", caption="Every tuning run")
    return (
        title("tuning", "Tuning of the learning rate", lead)
        + f'<div class="card"><figure>{drawing}</figure></div>'
        + folded("Every tuning run", every)
    )


def _scan(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    """What placed the arms whose placement is ``auto``."""
    if "scan" not in drawn:
        return ""
    drawing = plot("scan", scanned.caption(ledger), tall=False)
    signals = table(scanned.signals(ledger), name="signals", caption="What the scan measured")
    why = scanned.reasons(ledger)
    every = table(why, name="reasons", caption="Why every site has its rank")
    return (
        title("scan", "Where adaptation pays, measured before training", phrase(scanned.lead(ledger)))
        + f'<figure class="card">{drawing}</figure><div class="card scroll">{signals}</div>'
        + (folded("Why every site has its rank", every) if why.rows else "")
    )


def _maps(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    shown = [i for i in ledger.items("/arms") if f"map.{i}" in drawn]
    if not shown:
        return ""
    lead = "Layers upwards, roles sideways. Colour and figure are the rank, on one scale for all arms; pale"
    lead += " cells carry no adapter."
    maps = "".join(_map(ledger, i) for i in shown)
    return title("maps", "Where the adapters are", lead) + _scale(ledger) + f'<div class="maps">{maps}</div>'


def _map(ledger: Ledger, i: int) -> str:
    heading = f"<h3>{dot(i)}{phrase((ledger.word(f'/arms/{i}/name'),))}</h3>"
    trainable = ledger.quote("count", f"/arms/{i}/trainable")
    placement = phrase((ledger.word(f"/arms/{i}/placement"), ", ", trainable, " trainable"))
    drawing = plot(f"map.{i}", captions.model_map(ledger, i), tall=False)
    return f'<figure class="card">{heading}<p>{placement}</p>{drawing}</figure>'


def _scale(ledger: Ledger) -> str:
    """The common scale of ranks, from 0 to the largest rank of any arm."""
    paths = [
        f"/arms/{i}/plan/sites/{j}/rank"
        for i in ledger.items("/arms")
        for j in ledger.items(f"/arms/{i}/plan/sites")
    ]
    at = max(paths, key=lambda path: ledger.number(path) or 0)
    bars = "".join(
        f'<i class="{name}" style="background:linear-gradient(90deg,{",".join(c for _, c in stops)})"></i>'
        for name, stops in (("light", LIGHT.ranks), ("dark", DARK.ranks))
    )
    highest = phrase((ledger.quote("count", at),))
    return f'<p class="scale"><span>rank 0</span>{bars}<span>{highest}</span></p>'


def _limits(ledger: Ledger) -> str:
    items = "".join(f"<li>{phrase(sentence)}</li>" for sentence in facts.reach(ledger))
    return title("limits", "What this does not say") + f'<ul class="limits">{items}</ul>'


def _repeat(ledger: Ledger) -> str:
    rows = tables.data(ledger)
    made = table(rows, name="data", caption="The data of the study")
    data = f'<div class="block"><h3>Data</h3><div class="card scroll">{made}</div></div>' if rows.rows else ""
    pairs = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{phrase(said)}</dd></div>"
        for name, said in tables.settings(ledger)
    )
    return (
        title("repeat", "Repeat it", "Save the spec, run the command, compare the digests.")
        + _block("Spec", "spec", spec_text(ledger))
        + _block("Command", "command", "loratlas study study.yaml --out study")
        + data
        + f'<div class="block"><h3>Settings</h3><div class="card"><dl class="pairs">{pairs}</dl></div></div>'
        + '<div class="block"><button type="button" data-save="study.json">Save the study as JSON</button>'
        + "</div>"
    )


def spec_text(ledger: Ledger) -> str:
    """The study's spec as YAML, to be saved and run again."""
    text = yaml.safe_dump(ledger.at("/spec") or {}, sort_keys=False, allow_unicode=True, width=100)
    return "\n".join(clean(line) for line in text.split("\n")).rstrip()


def _block(name: str, identity: str, text: str) -> str:
    """Text to copy, with a button that does it."""
    button = f'<button type="button" data-copy="{identity}" aria-label="Copy the {identity}">Copy</button>'
    return (
        f'<div class="block"><div class="head"><h3>{name}</h3>{button}</div>'
        f'<pre id="{identity}" tabindex="0">{html.escape(text)}</pre></div>'
    )
