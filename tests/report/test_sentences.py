"""The words and numbers of the report, without a browser. Law 8: nothing that is not in the ledger."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_example import VARIANTS, load, study

from loratlas.errors import OutputError, RequestError
from loratlas.report import (
    build,
    figure_theme,
    figures,
    forest_plot,
    moves_section,
    scan_section,
    sentences,
    side_tables,
    tables,
)
from loratlas.report.quotes import FORMS, WAYS, QuotedStudy, plain

# The only numbers that the page's own words may hold: zero as the sign of a difference and the power that
# detectable differences are stated for, both part of the method.
METHOD = ("below 0 is better", "rank 0", "with 80 % power")

VOID = ("meta", "input", "rect", "line", "path", "circle")


class Page(html.parser.HTMLParser):
    """Visible text of a page, apart for what is quoted from the study and what is not."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.quotes: list[tuple[dict[str, str | None], str]] = []
        self.own: list[str] = []
        self._stack: list[tuple[str, dict[str, str | None]]] = []
        self._quoted: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        self._stack.append((tag, dict(attrs)))
        if "data-from" in dict(attrs):
            self._quoted = []

    def handle_endtag(self, tag: str) -> None:
        while tag not in VOID and self._stack:
            name, attributes = self._stack.pop()
            if "data-from" in attributes and self._quoted is not None:
                self.quotes.append((attributes, "".join(self._quoted)))
                self._quoted = None
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        names = [name for name, _ in self._stack]
        if {"title", "script", "style", "svg", "pre"} & set(names):
            return
        if self._quoted is not None:
            self._quoted.append(data)
        else:
            self.own.append(data)


def page_of(study: dict[str, Any], folder: Path) -> str:
    return build(study, folder / "report.html").read_text(encoding="utf-8")


def resolve(study: Any, path: str) -> Any:
    """A JSON pointer, read without the code under test."""
    for key in path.replace("%20", " ").split("/")[1:]:
        study = (
            study[int(key)] if isinstance(study, list) else study[key.replace("~1", "/").replace("~0", "~")]
        )
    return study


@pytest.mark.parametrize(
    "variant", ["example", "undetermined", "diverged", "incomplete", "measured", "scanned", "moved"]
)
def test_the_page_says_nothing_that_is_not_in_the_study(variant: str, tmp_path: Path) -> None:
    made = VARIANTS[variant]()
    page = Page(page_of(made, tmp_path))
    assert len(page.quotes) > 100
    for attributes, text in page.quotes:
        paths = (attributes["data-from"] or "").split(" ")
        if text == "–":
            continue
        values = [resolve(made, path) for path in paths]
        form, how = attributes["data-form"] or "", attributes.get("data-how") or "value"
        assert text == FORMS[form](WAYS[how](*values)), attributes
    own = " ".join(page.own)
    for allowed in METHOD:
        own = own.replace(allowed, "")
    assert re.findall(r"[^\n]{0,20}\d[^\n]{0,20}", own) == []


def test_a_number_without_a_source_is_noticed() -> None:
    page = Page('<p>The loss is <data data-from="/arms/0/nll" data-form="loss">3.5</data>, or 4.</p>')
    assert page.quotes == [({"data-from": "/arms/0/nll", "data-form": "loss"}, "3.5")]
    assert "4" in "".join(page.own)


def test_the_drawn_intervals_are_the_study_s(tmp_path: Path) -> None:
    """Positions in the forest plots, turned back into nats per token."""
    made = study()
    result = sentences.findings(QuotedStudy(made))
    half = forest_plot.scale([fact.interval for fact in result])
    drawings = re.findall(r'<svg class="forest (?:better|worse).*?</svg>', page_of(made, tmp_path), re.DOTALL)
    assert len(drawings) == len(made["findings"])
    for drawing, finding in zip(drawings, made["findings"], strict=True):
        position = float(re.findall(r'class="point" cx="([\d.]+)"', drawing)[0])
        low, high = re.findall(r'class="ci" d="M([\d.]+) [\d.]+H([\d.]+)', drawing)[0]
        for x, value in (
            (position, finding["difference"]),
            (low, finding["ci"][0]),
            (high, finding["ci"][1]),
        ):
            back = ((float(x) - 10) / (forest_plot.WIDTH - 20) * 2 - 1) * half
            assert back == pytest.approx(value, abs=half / 1000)


def test_figures_draw_the_study_s_numbers() -> None:
    made = study()
    drawn = figures.figures(QuotedStudy(made))
    assert set(drawn) == {
        *(f"pareto.{axis}" for axis in figures.AXES),
        "curves",
        "tuning",
        *(f"map.{i}" for i in range(3)),
    }
    for axis, (field, _, _) in figures.AXES.items():
        unit = 2**20 if axis == "memory" else 1
        points = [
            trace for trace in drawn[f"pareto.{axis}"]["light"]["data"] if trace["mode"] == "markers+text"
        ]
        assert {(p["x"][0], p["y"][0]) for p in points} == {(a[field] / unit, a["nll"]) for a in made["arms"]}
        for arm in made["arms"]:
            (bar,) = (p["error_y"] for p in points if p["y"][0] == arm["nll"])
            assert arm["nll"] - bar["arrayminus"][0] == pytest.approx(arm["ci"][0])
            assert arm["nll"] + bar["array"][0] == pytest.approx(arm["ci"][1])
    lines = [trace for trace in drawn["curves"]["dark"]["data"] if trace.get("showlegend") is not False]
    assert [list(line["y"]) for line in lines] == [arm["curve"]["mean"] for arm in made["arms"]]


def test_the_map_shows_every_rank_and_every_bare_site() -> None:
    made = study()
    for i, arm in enumerate(made["arms"]):
        ground, ranks = figures.figures(QuotedStudy(made))[f"map.{i}"]["light"]["data"]
        assert sum(value is not None for row in ground["z"] for value in row) == 8 * 7
        assert sorted(v for row in ranks["z"] for v in row if v) == sorted(
            r["rank"] for r in arm["plan"]["sites"]
        )
        assert ranks["zmax"] == 6, "one scale for all arms"
        assert "embed" not in ranks["x"], "outside the blocks only where adapted"


def test_a_scan_has_its_section(tmp_path: Path) -> None:
    made = VARIANTS["scanned"]()
    ledger = sentences.read(made)
    assert plain(scan_section.lead(ledger)) == (
        "A scan read training rows 64 times, at the cost of 4 training steps, and placed feedforward. Its order had "
        "settled: the two halves of the rows agree."
    )
    assert "Map of scores by gradient_energy" in plain(
        scan_section.caption(ledger)
    )  # the second column decided
    (heat,) = figures.figures(ledger)["scan"]["light"]["data"]
    assert sorted(value for row in heat["z"] for value in row) == [1.0 + i for i in range(56)]
    outcome = [[plain(cell) for cell in row] for row in scan_section.signals(ledger).rows]
    assert outcome[1] == ["gradient energy", "nats per token", "high", "none", "0.91", "0.95"]
    assert len(scan_section.reasons(ledger).rows) == len(made["arms"][2]["plan"]["sites"])
    text = page_of(made, tmp_path)
    assert html.escape(made["arms"][2]["plan"]["sites"][0]["why"]) in text
    made["scan"]["settled"] = False
    assert "had not settled" in plain(scan_section.lead(sentences.read(made)))
    assert 'id="scan"' not in page_of(study(), tmp_path)


def test_moves_have_their_section(tmp_path: Path) -> None:
    made = VARIANTS["moved"]()
    ledger = sentences.read(made)
    assert plain(moves_section.lead(ledger)).startswith("feedforward placed adapters inside the runs")
    assert "seed 11, over 40 steps" in plain(moves_section.caption(ledger, 2))
    assert "mark 2 moves" in plain(moves_section.caption(ledger, 2))
    shown = [[plain(cell) for cell in row] for row in moves_section.decisions(ledger).rows]
    evidence = "halves agree by τ = 0.61"
    assert shown == [
        ["feedforward", "11", "4", "2", "73,000", "3.250", "3.500", evidence],
        ["feedforward", "12", "4", "0", "73,000", "3.250", "3.500", evidence],
    ]
    first, second = made["arms"][2]["plan"]["sites"][:2]
    shown = [[plain(cell) for cell in row] for row in moves_section.moves(ledger).rows]
    assert shown == [
        [first["path"], "4", f"{first['rank']} → 0", "0.25", "50 %", "reason 0"],
        [second["path"], "4", f"{second['rank']} → 7", "0.25", "50 %", "reason 7"],
    ]
    for theme in ("light", "dark"):
        heat, marks = figures.figures(ledger)["moves.2"][theme]["data"]
        by_site = dict(zip(heat["y"], heat["z"], strict=True))
        assert by_site[first["path"].removesuffix(".weight")] == [first["rank"], 0]
        assert by_site[second["path"].removesuffix(".weight")] == [second["rank"], 7]
        assert len(by_site) == len(made["arms"][2]["plan"]["sites"])
        assert list(heat["x"]) == [0, 4, 40]
        assert list(marks["marker"]["symbol"]) == ["triangle-down", "triangle-up"]
    text = page_of(made, tmp_path)
    assert 'id="moves"' in text
    assert 'id="moves"' not in page_of(study(), tmp_path)


def test_an_adapted_embedding_gets_its_row() -> None:
    made = study()
    made["arms"][0]["plan"]["sites"].append({"path": "model.embed_tokens.weight", "rank": 9, "alpha": 18.0})
    _, ranks = figures.figures(QuotedStudy(made))["map.0"]["light"]["data"]
    assert ranks["y"][-1] == "none"
    assert [value for value in ranks["z"][-1] if value] == [9]
    assert ranks["zmax"] == 9


def test_a_cost_that_was_not_measured_is_seen_but_cannot_be_chosen(tmp_path: Path) -> None:
    made = study()
    for arm in made["arms"]:
        arm["peak_bytes"] = None
    text = page_of(made, tmp_path)
    assert "pareto.memory" not in figures.figures(QuotedStudy(made))
    assert '<input type="radio" name="cost" disabled>Memory: not measured' in text


def test_names_of_near_points_stand_apart() -> None:
    made = study()
    first, second, far = made["arms"]
    first["step_seconds"], second["step_seconds"], far["step_seconds"] = 0.2, 0.201, 0.3
    first["nll"], second["nll"], far["nll"] = 3.6, 3.6001, 3.5
    points = [t for t in figures.figures(QuotedStudy(made))["pareto.time"]["light"]["data"] if "text" in t]
    assert [point["textposition"] for point in points] == ["top right", "top left", "top left"]


def test_arms_that_name_their_ranks_are_not_called_matched() -> None:
    made = study()
    made["arms"][2]["match"]["solved"] = False
    assert "matched but for arms that name their ranks" in plain(sentences.conditions(QuotedStudy(made)))
    assert plain(tables.match(QuotedStudy(made), 2)).startswith("94.74 % as given")


def test_arms_keep_one_colour() -> None:
    drawn = figures.figures(QuotedStudy(study()))
    for name, theme in figure_theme.THEMES.items():
        points = [t for t in drawn["pareto.time"][name]["data"] if t["mode"] == "markers+text"]
        lines = [t for t in drawn["curves"][name]["data"] if t.get("showlegend") is not False]
        assert {p["name"]: p["marker"]["color"] for p in points} == {
            t["name"]: t["line"]["color"] for t in lines
        }
        assert {p["marker"]["color"] for p in points} == set(theme.arms[:3])


@pytest.mark.parametrize("name", ["light", "dark"])
def test_colours_stand_out_from_the_background(name: str) -> None:
    """WCAG 2.2: 4.5:1 for text, 3:1 for what is drawn."""
    theme = figure_theme.THEMES[name]

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(colour: str) -> float:
        low, high = sorted((luminance(colour), luminance(theme.paper)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(theme.text), contrast(theme.faint)) >= 4.5
    assert min(map(contrast, theme.arms)) >= 3


def test_the_facts_of_the_example() -> None:
    """Golden: the whole example in words, read by a person once and kept."""
    ledger = sentences.read(load())
    assert load() == study(), "study_example.json is what report_example.py writes"
    assert plain(sentences.title(ledger)) == "Where should LoRA go in llama-mini for facts-300?"
    assert plain(sentences.answer(ledger)) == (
        "feedforward is better than full by 0.022 nats per token, and attention is worse than full by 0.039."
    )
    assert plain(sentences.conditions(ledger)) == (
        "8.39 million parameters · 250 steps of 16 rows · trainable parameters matched · 5 fresh seeds × 1,000 rows"
    )
    first, second = sentences.findings(ledger)
    assert (first.verdict, plain(first.headline)) == (
        "worse",
        "attention is worse than full by 0.039 nats per token.",
    )
    assert [(plain(name), plain(said)) for name, said in second.numbers] == [
        ("Difference", "−0.022"),
        ("97.5 % interval", "−0.033 to −0.011"),
        ("Adjusted p", "0.0008"),
        ("Detectable", "0.014"),
        ("Seeds × examples", "5 × 1,000"),
    ]
    rows = ["|".join(plain(phrase).replace("\n", " ") for phrase in row) for row in tables.arms(ledger).rows]
    assert rows == [
        "full reference|all:2|0.0135|3.589 [3.570, 3.608]|36.20|77,824 0.93 % of base"
        "|1.00 × 214 ms|312 MiB|100 % 77,824 of 77,824",
        "attention|attention:auto q,o:6 + k,v:5|0.0135|3.628 [3.609, 3.646]|37.62|79,872 0.95 % of base"
        "|0.81 × 174 ms|268 MiB|102.63 % 79,872 of 77,824",
        "feedforward|feedforward:auto feedforward:3|0.0045|3.567 [3.548, 3.586]|35.41|73,728 0.88 % of base"
        "|0.90 × 193 ms|291 MiB|94.74 % 73,728 of 77,824",
    ]
    assert (
        plain(sentences.gap(ledger)) == "Without any adapter the base has a loss of 4.046 (perplexity 57.19)."
    )
    assert [plain(sentence) for sentence in sentences.reach(ledger)] == [
        "The findings hold for this base (llama-mini, 8.39 million parameters), this task (facts-300), and this budget"
        " (250 steps of 16 rows). They are about new seeds and new examples of the same task, not about other tasks,"
        " other bases or longer training.",
        "A base of 8,392,960 parameters is small. What helps there may not help in a large one.",
        "2 of 3 arms were solved to the reference's parameters; their ranks are whole numbers.",
    ]
    assert sentences.banners(ledger) == ()


def test_a_finding_that_flips_is_marked(tmp_path: Path) -> None:
    made = VARIANTS["measured"]()
    ledger = sentences.read(made)
    assert [side_tables.mark(ledger, i) for i in range(2)] == [
        "flips with the task metric",
        "flips with the definition",
    ]
    text = page_of(made, tmp_path)
    for finding in made["findings"]:
        assert html.escape(finding["flip_sentences"][0]) in text
    assert text.count('aria-hidden="true">⇄</span>') == 2
    plain_page = page_of(study(), tmp_path)
    assert "⇄</span>" not in plain_page
    assert 'id="definitions"' not in plain_page, "studies from before have no such section"


def test_what_is_measured_beside_the_loss_stands_in_the_tables(tmp_path: Path) -> None:
    ledger = sentences.read(VARIANTS["measured"]())
    assert plain(side_tables.forgetting(ledger, 0)).split("\n") == [
        "+0.091",
        "[+0.070, +0.112], 4.211 → 4.303",
    ]
    assert plain(side_tables.metric(ledger, 0)).split("\n") == ["31 %", "exact match [27 %, 35 %]"]
    rows = {plain(row[0]): plain(row[1]) for row in side_tables.orders(ledger).rows}
    assert rows["token mean"] == "feedforward 3.567 · full 3.589 · attention 3.628"
    assert rows["exact match"] == "attention 46 % · feedforward 33.5 % · full 31 %"
    outcome = [[plain(cell) for cell in row] for row in side_tables.opposed(ledger).rows]
    assert outcome[0][2:] == ["exact match", "+15 points", "0.041", "established"]
    assert outcome[1][-2:] == ["–", "no test"]
    text = page_of(VARIANTS["measured"](), tmp_path)
    assert "Forgetting, nats per token" in text
    assert "Forgetting, nats per token" not in page_of(study(), tmp_path)
    assert [plain(row[0]) for row in tables.data(ledger).rows][-1] == "Forgetting"


def test_the_answer_of_every_kind_of_study() -> None:
    said = {name: plain(sentences.answer(sentences.read(VARIANTS[name]()))) for name in VARIANTS}
    assert said["undetermined"] == "This study cannot distinguish attention and feedforward from full."
    assert (
        said["diverged"]
        == "feedforward is equivalent to full within ±0.01, and attention is undetermined, because "
        "a run of attention diverged."
    )
    assert said["incomplete"] == "Nothing has been compared with full yet."


def test_an_unfinished_study_says_so_in_its_answer() -> None:
    made = VARIANTS["undetermined"]()
    made["complete"] = False
    assert (
        plain(sentences.answer(sentences.read(made)))
        == "So far, this study cannot distinguish attention and feedforward from full."
    )


def test_undetermined_comes_with_its_reason() -> None:
    made = study()
    edge = "the best rate of attention lies at the edge of those tried"
    made["findings"][0] |= {"verdict": "undetermined", "reason": edge}
    assert plain(sentences.answer(sentences.read(made))) == (
        f"feedforward is better than full by 0.022 nats per token, and attention is undetermined, because {edge}."
    )
    made["findings"][1] |= {"verdict": "undetermined", "reason": edge}
    both = "feedforward and attention are undetermined, because"
    assert plain(sentences.answer(sentences.read(made))) == f"{both} {edge}."
    made["findings"][1]["reason"] = "the 97.5 % interval holds 0 and reaches beyond ±0.01 nats per token"
    assert plain(sentences.answer(sentences.read(made))).count("because") == 2
    assert (
        plain(sentences.findings(sentences.read(made))[0].headline)
        == "attention against full is undetermined."
    )


def test_banners_name_what_a_page_is_not() -> None:
    (incomplete, how_far), (demonstration, _) = sentences.banners(sentences.read(VARIANTS["incomplete"]()))
    assert (incomplete, demonstration) == ("incomplete", "demonstration")
    assert "18 of 45 runs are finished" in plain(how_far)


def test_a_large_base_is_not_called_small() -> None:
    made = study()
    made["base"]["parameters"] = 70_553_706_496
    assert not any("small" in plain(sentence) for sentence in sentences.reach(sentences.read(made)))


def test_limits_name_diverged_runs_and_rates_at_the_edge() -> None:
    said = " ".join(plain(sentence) for sentence in sentences.reach(sentences.read(VARIANTS["diverged"]())))
    assert "The best learning rate lies at the edge of those tried: attention (0.0405)." in said
    assert "Evaluation runs that diverged: attention (1)." in said


def test_the_spec_on_the_page_is_the_study_s(tmp_path: Path) -> None:
    made = study()
    text = page_of(made, tmp_path)
    (block,) = re.findall(r'<pre id="spec" tabindex="0">(.*?)</pre>', text, re.DOTALL)
    assert yaml.safe_load(html.unescape(block)) == made["spec"]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_study_lies_whole_in_its_page(variant: str, tmp_path: Path) -> None:
    made = VARIANTS[variant]()
    text = page_of(made, tmp_path)
    (kept,) = re.findall(r'<script type="application/json" id="study">(.*?)</script>', text, re.DOTALL)
    plain_json = json.dumps(made).replace("NaN", "null").replace("\\ud800", "?")
    assert json.loads(kept) == json.loads(plain_json)


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    for wrong in ({}, {"schema": "loratlas.study", "version": 2}, []):
        with pytest.raises(RequestError, match="report is made from"):
            build(wrong, tmp_path / "report.html")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build(study(), tmp_path)
    assert page == tmp_path / "report.html"
    before = page.read_bytes()
    assert len(before) < 6 * 2**20
    assert page.stat().st_mode & 0o444

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        build(VARIANTS["diverged"](), page)
    assert page.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        build(study(), tmp_path / "missing" / "report.html")


def test_the_same_study_makes_the_same_page(tmp_path: Path) -> None:
    assert page_of(study(), tmp_path) == page_of(load(), tmp_path)


def test_nothing_of_a_hostile_study_becomes_markup(tmp_path: Path) -> None:
    text = page_of(VARIANTS["hostile"](), tmp_path)
    body = text[text.index("<body>") : text.index('<script type="application/json" id="figures">')]
    assert "<img" not in text
    assert "<svg onload" not in text
    assert "<iframe" not in text
    assert "<script" not in body
    assert (
        text.count("<script")
        == 4 + text.count("<script", text.index("<script>"), text.rindex("<script>")) - 1
    )
    assert "\u202e" not in body


def test_missing_numbers_are_dashes_not_zeros() -> None:
    ledger = QuotedStudy({"a": {"nan": math.nan, "inf": math.inf, "none": None, "zero": 0.0}})
    assert [ledger.quote("loss", f"/a/{key}").text for key in ("nan", "inf", "none", "gone", "zero")] == [
        *"––––",
        "0.000",
    ]
