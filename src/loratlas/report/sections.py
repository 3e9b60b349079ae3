"""The sections of the page, in reading order. HTML only: every sentence and number comes from the rooms' facts."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import yaml

from loratlas.report import captions, facts, forest, tables
from loratlas.report.figures import AXES, DARK, LIGHT, cells
from loratlas.report.ledger import Ledger, Phrase, Quote, clean, plain

_NAMED = re.compile(r"/(arms/\d+/name|findings/\d+/(arm|versus)|spec/reference|pareto/\w+/\d+)$")
_CODE = re.compile(r"/(placement|\w*digest|revision|digest)$")
_SIGNS = {"better": "▼", "worse": "▲", "equivalent": "≈", "undetermined": "?"}


def phrase(parts: Phrase) -> str:
    """A phrase as HTML: words escaped, every quote with the place in the study that it came from."""
    return "".join(html.escape(part) if isinstance(part, str) else _quote(part) for part in parts)


def _quote(quote: Quote) -> str:
    where = html.escape(" ".join(path.replace(" ", "%20") for path in quote.paths))
    attributes = f'data-from="{where}" data-form="{quote.form}"'
    if quote.how != "value":
        attributes += f' data-how="{quote.how}"'
    text = html.escape(quote.text)
    if quote.value is not None:
        return f'<data value="{quote.value!r}" {attributes}>{text}</data>'
    if len(quote.paths) == 1 and _NAMED.search(quote.paths[0]):
        return f'<span class="name" {attributes}>{text}</span>'
    if len(quote.paths) == 1 and _CODE.search(quote.paths[0]):
        return f"<code {attributes}>{text}</code>"
    return f"<span {attributes}>{text}</span>"


def attribute(parts: Phrase) -> str:
    """A phrase as the value of an HTML attribute."""
    return html.escape(plain(parts))


def body(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    """Everything between ``<body>`` and the scripts."""
    made = [
        ("findings", "Findings", _findings(ledger)),
        ("arms", "Arms", _arms(ledger)),
        ("trade-offs", "Trade-offs", _pareto(ledger, drawn)),
        ("training", "Training", _curves(ledger, drawn)),
        ("tuning", "Tuning", _tuning(ledger, drawn)),
        ("maps", "Maps", _maps(ledger, drawn)),
        ("limits", "Limits", _limits(ledger)),
        ("repeat", "Repeat it", _repeat(ledger)),
    ]
    shown = [(key, name, content) for key, name, content in made if content]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in shown)
    return "\n".join(
        (
            '<a class="skip" href="#findings">To the findings</a>',
            _head(ledger, links),
            "<main>",
            *(f'<section id="{key}" aria-labelledby="{key}-title">{content}</section>' for key, _, content in shown),
            "</main>",
            "<footer>Made by loratlas. Every number on this page names its place in the study, which lies in"
            " this file: see <code>data-from</code> in the source.</footer>",
        )
    )


def _head(ledger: Ledger, links: str) -> str:
    banners = "".join(
        f'<p class="banner {kind}" role="note">{phrase(sentence)}</p>' for kind, sentence in facts.banners(ledger)
    )
    eyebrow = ("loratlas study ", ledger.word("/name"))
    return (
        f'<header class="top"><p class="eyebrow">{phrase(eyebrow)}</p>'
        f"<h1>{phrase(facts.title(ledger))}</h1>"
        f'<p class="answer">{phrase(facts.answer(ledger))}</p>{banners}'
        f'<nav aria-label="Sections">{links}</nav></header>'
    )


def _title(key: str, text: str, lead: str = "") -> str:
    return f'<h2 id="{key}-title">{text}</h2>' + (f'<p class="lead">{lead}</p>' if lead else "")


def _dot(index: int | None) -> str:
    """The colour of an arm, as a dot beside its name."""
    if index is None:
        return ""
    return f'<span class="dot" style="--c:var(--arm-{index % len(LIGHT.arms)})" aria-hidden="true"></span>'


def _findings(ledger: Ledger) -> str:
    found = facts.findings(ledger)
    if not found:
        return _title("findings", "Findings", phrase(facts.answer(ledger)))
    half = forest.scale([fact.interval for fact in found])
    lead = phrase(("Every arm against the reference, ", ledger.word("/findings/0/versus"), ". Below 0 is better: a"))
    lead += " lower loss per answer token on rows that nothing was chosen on."
    cards: list[str] = []
    for i, fact in enumerate(found):
        label = attribute(captions.forest(ledger, i))
        drawing = forest.draw(fact.interval, half=half, verdict=fact.verdict, label=label)
        reason = f'<p class="reason">{phrase(("Why: ", *fact.reason, "."))}</p>' if fact.reason else ""
        words = ledger.word(f"/findings/{i}/sentence")
        own = f"<details><summary>As the study says it</summary><p>{phrase((words,))}</p></details>"
        cards.append(
            f'<article class="card finding {fact.verdict}"><div>'
            f'<span class="badge"><span aria-hidden="true">{_SIGNS[fact.verdict]}</span>{fact.verdict}</span>'
            f"<h3>{_dot(fact.arm)}{phrase(fact.headline)}</h3><p>{phrase(fact.detail)}</p>{reason}"
            f"{own if ledger.at(f'/findings/{i}/sentence') else ''}</div>"
            f'<div>{drawing}<p class="sides" aria-hidden="true"><span>← lower loss</span>'
            "<span>higher loss →</span></p></div></article>"
        )
    return _title("findings", "Findings", lead) + "".join(cards) + _FOREST_KEY


_FOREST_KEY = """<ul class="key" aria-label="How to read the intervals">
<li><svg viewBox="0 0 26 14" class="forest equivalent" aria-hidden="true"><circle class="point" cx="13" cy="7" r="5.5"/>
</svg>difference</li>
<li><svg viewBox="0 0 26 14" class="forest equivalent" aria-hidden="true"><path class="ci" d="M2 7H24M2 3v8M24 3v8"/>
</svg>interval that decides</li>
<li><svg viewBox="0 0 26 14" class="forest" aria-hidden="true"><rect class="band" width="26" height="14"/>
</svg>±δ, counts as equivalent</li>
<li><svg viewBox="0 0 26 14" class="forest" aria-hidden="true"><path class="detectable" d="M13 1v12"/>
</svg>smallest difference the study would have found with 80 % power</li></ul>"""


def table(content: tables.Table, *, name: str, caption: str) -> str:
    """An HTML table with headers; the first cell of a row is its header."""
    head = "".join(f'<th scope="col" role="columnheader">{html.escape(column)}</th>' for column in content.columns)
    rows = "".join(_row(content, cell_row, key) for cell_row, key in zip(content.rows, content.keys, strict=True))
    return (
        f'<table class="{name}" role="table" aria-label="{html.escape(caption)}"><thead role="rowgroup">'
        f'<tr role="row">{head}</tr></thead><tbody role="rowgroup">{rows}</tbody></table>'
    )


def _row(content: tables.Table, row: tuple[Phrase, ...], key: int | None) -> str:
    cells_ = [f'<th scope="row" role="rowheader">{_dot(key)}{phrase(row[0])}</th>']
    for column, parts in zip(content.columns[1:], row[1:], strict=True):
        cells_.append(f'<td role="cell" data-label="{html.escape(column)}"><span>{phrase(parts)}</span></td>')
    return f'<tr role="row">{"".join(cells_)}</tr>'


def _arms(ledger: Ledger) -> str:
    content = tables.arms(ledger)
    if not content.rows:
        return ""
    lead = phrase(facts.gap(ledger)) + " Losses are those of the last step, averaged over the evaluation seeds,"
    lead += " with their interval in brackets. Step times are relative to the reference."
    made = table(content, name="arms", caption="The arms of the study")
    seeds = tables.runs(ledger)
    every = ""
    if seeds.rows:
        runs = table(seeds, name="runs", caption="Every evaluation run")
        every = f'<details><summary>Every evaluation run</summary><div class="scroll">{runs}</div></details>'
    return _title("arms", "Arms", lead) + f'<div class="card scroll">{made}</div>{every}'


def _plot(name: str, alternative: Phrase, *, identity: str = "", tall: bool = True) -> str:
    mark = f' id="{identity}"' if identity else ""
    size = "plot tall" if tall else "plot"
    return f'<div class="{size}"{mark} data-figure="{name}" role="img" aria-label="{attribute(alternative)}"></div>'


def _pareto(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    axes = [axis for axis in AXES if f"pareto.{axis}" in drawn]
    if not axes:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="cost" value="{axis}"{" checked" if axis == axes[0] else ""} '
        f'data-alternative="{attribute(captions.pareto(ledger, axis))}">{AXES[axis][2]}</label>'
        for axis in axes
    )
    plot = _plot(f"pareto.{axes[0]}", captions.pareto(ledger, axes[0]), identity="pareto")
    return (
        _title("trade-offs", "What a lower loss costs", "Left and low is better. Bars are the arms' own intervals;")
        .replace(
            "intervals;</p>",
            "intervals; two arms are compared by the findings above, which pair seeds and examples. The dotted"
            " line joins arms that no other arm beats in both.</p>",
        )
        + f'<div class="card"><fieldset><legend>Against</legend><span class="choice">{choices}</span></fieldset>'
        f"<figure>{plot}</figure></div>{_NOSCRIPT}"
    )


_NOSCRIPT = "<noscript><p>The figures need JavaScript; the tables hold the same numbers.</p></noscript>"


def _curves(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    if "curves" not in drawn:
        return ""
    lead = "Training loss, mean over the evaluation seeds; the band shows how far the seeds spread."
    plot = _plot("curves", captions.curves(ledger))
    return _title("training", "Training", lead) + f'<div class="card"><figure>{plot}</figure></div>'


def _tuning(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    if "tuning" not in drawn:
        return ""
    lead = "Every arm was tuned on the same learning rates with the same seeds, on rows kept for that. Marks are"
    lead += " runs, lines their means; the ring is the rate each arm was then judged with."
    content = table(tables.tuning(ledger), name="tuned", caption="Every tuning run")
    return (
        _title("tuning", "Tuning of the learning rate", lead)
        + f'<div class="card"><figure>{_plot("tuning", captions.tuning(ledger))}</figure></div>'
        + f'<details><summary>Every tuning run</summary><div class="scroll">{content}</div></details>'
    )


def _maps(ledger: Ledger, drawn: Mapping[str, Any]) -> str:
    shown = [i for i in ledger.items("/arms") if f"map.{i}" in drawn]
    if not shown:
        return ""
    lead = "Layers upwards, roles sideways. Colour and figure are the rank, on one scale for all arms; pale cells"
    lead += " carry no adapter."
    items: list[str] = []
    for i in shown:
        heading = f"<h3>{_dot(i)}{phrase((ledger.word(f'/arms/{i}/name'),))}</h3>"
        trainable = ledger.quote("count", f"/arms/{i}/trainable")
        placement = phrase((ledger.word(f"/arms/{i}/placement"), ", ", trainable, " trainable"))
        plot = _plot(f"map.{i}", captions.model_map(ledger, i), tall=False)
        items.append(f'<figure class="card">{heading}<p>{placement}</p>{plot}</figure>')
    return _title("maps", "Where the adapters are", lead) + _scale(ledger) + f'<div class="maps">{"".join(items)}</div>'


def _scale(ledger: Ledger) -> str:
    """The common scale of ranks, from 0 to the largest rank of any arm."""
    best: tuple[int, str] | None = None
    for i in ledger.items("/arms"):
        for key in ("rows", "sites"):
            for j in ledger.items(f"/arms/{i}/plan/{key}"):
                at = f"/arms/{i}/plan/{key}/{j}/rank"
                rank = ledger.number(at)
                if rank is not None and cells(ledger, i) and (best is None or rank > best[0]):
                    best = (int(rank), at)
    if best is None:
        return ""
    bars = "".join(
        f'<i class="{name}" style="background:linear-gradient(90deg,{",".join(c for _, c in theme.ranks)})"></i>'
        for name, theme in (("light", LIGHT), ("dark", DARK))
    )
    return f'<p class="scale"><span>rank 0</span>{bars}<span>{phrase((ledger.quote("count", best[1]),))}</span></p>'


def _limits(ledger: Ledger) -> str:
    items = "".join(f"<li>{phrase(sentence)}</li>" for sentence in facts.reach(ledger))
    return _title("limits", "What this does not say") + f'<ul class="limits">{items}</ul>'


def _repeat(ledger: Ledger) -> str:
    spec = yaml.safe_dump(ledger.at("/spec") or {}, sort_keys=False, allow_unicode=True, width=100)
    spec = "\n".join(clean(line) for line in spec.splitlines())
    pairs = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{phrase(value)}</dd></div>" for name, value in tables.settings(ledger)
    )
    rows = tables.data(ledger)
    data = ""
    if rows.rows:
        content = table(rows, name="data", caption="The data of the study")
        data = f'<div class="block"><h3>Data</h3><div class="card scroll">{content}</div></div>'
    return (
        _title("repeat", "Repeat it", "Save the spec, run the command, compare the digests.")
        + '<div class="block"><div class="head"><h3>Spec</h3><button type="button" data-copy="spec">Copy</button>'
        + f'</div><pre id="spec" tabindex="0">{html.escape(spec)}</pre></div>'
        + '<div class="block"><div class="head"><h3>Command</h3><button type="button" data-copy="command">Copy'
        + '</button></div><pre id="command" tabindex="0">loratlas study study.yaml --out study</pre></div>'
        + data
        + f'<div class="block"><h3>Settings</h3><div class="card"><dl class="pairs">{pairs}</dl></div></div>'
        + '<div class="block"><button type="button" data-save="study.json">Save the study as JSON</button></div>'
    )
