"""The founding study's page, figures and table of placements: what the committed results give, and nothing else."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loratlas.claims.comparisons import contrasts
from loratlas.claims.evidence_files import packaged

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", autouse=True)
def tools():
    """The folder of the repository, which tools are imported from."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


def changed(verdict: str, difference: float, half: str = "feedforward"):
    """The evidence, with every finding of one half another."""
    evidence = packaged()
    studies = copy.deepcopy([dict(study) for study in evidence.studies])
    for one in contrasts(studies):
        if one.half == half:
            one.finding.update(verdict=verdict, difference=difference)  # pyright: ignore[reportAttributeAccessIssue]
    return replace(evidence, studies=tuple(studies))


def test_pages_and_figures_are_what_the_committed_results_give():
    from tools.claims import founding

    for path, text in founding().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python tools/claims.py"


def committed(*names: str):
    from tools.claims import committed as every

    return [copy.deepcopy(study) for study in every() if study["name"] in names]


def test_superseded_verdicts_are_marked_and_counted_by_themselves():
    from tools.founding.studies import studies_page

    written = studies_page(committed("gpt2-mini-nl2bash", "gpt2-mini-alpaca"))
    assert "(-0.0796 to -0.0403), -2.0 %: **better** (superseded) |" in written
    assert "+9.5 %: **worse** |" in written
    assert "| attention | second edition | 0 | 0 | 1 | 0 |" in written
    assert "| attention | superseded | 0 | 0 | 1 | 0 |" in written
    assert "| feed-forward | second edition | 0 | 0 | 0 | 1 |" in written
    assert "| feed-forward | superseded | 1 | 0 | 0 | 0 |" in written
    assert "| feed-forward < all < attention | 0 | 1 |" in written
    assert "superseded |" not in studies_page(committed("gpt2-mini-alpaca"))


def test_a_study_whose_rates_were_chosen_by_too_few_seeds_is_marked():
    from tools.founding.studies import studies_page

    (study,) = committed("smollm2-nl2bash")
    assert "second edition, 3 tuning seeds near each optimum" in " ".join(studies_page([study]).split())
    seed = study["arms"][0]["tuning"][-1]["seed"]
    for arm in study["arms"]:
        kept = [run for run in arm["tuning"] if run["lr"] not in arm["near"]]
        arm["tuning"] = kept + [{**kept[0], "lr": lr, "seed": seed + s} for lr in arm["near"] for s in (0, 1)]
    written = studies_page([study])
    mark = "(short of the protocol: 2 tuning seeds near an optimum)"
    assert written.count(f"**worse** {mark}") == 2  # side by side, and with the study's own findings
    assert "| attention | second edition, short of it | 0 | 0 | 1 | 0 |" in written


def test_the_table_follows_the_findings():
    from tools.founding.advice import advice

    def first(evidence):
        return advice(evidence)[0]

    assert first(packaged()).placement == "`all`"
    better = first(changed("better", -0.2))
    assert better.placement == "`feedforward`"
    assert "-0.200 nats" in better.because
    unseen = first(changed("undetermined", 0.0))
    assert unseen.placement == "`all`"
    assert "feed-forward alone, at equal parameters, shows no difference from `all`" in unseen.because
    assert "would have been seen" in unseen.because


def test_auto_is_advised_only_where_unseen_cases_say_so():
    from tools.founding.advice import advice

    evidence = packaged()

    def last(better, worse, **against):
        pooled = {"better": better, "worse": worse, "cases": 9, "auto_against": against}
        return advice(replace(evidence, auto={"pooled_unseen": pooled}))[-1]

    assert last(5, 0).placement == "`auto`, or any placement with `--init auto`"
    assert last(6, 1).placement == last(4, 0).placement == "`all`, and let `--lr auto` choose the rate"
    assert "the moves among that in 1 and 2" in last(5, 0, begun={"better": 1, "worse": 2}).because
    assert "moves among" not in last(5, 0).because


def test_long_runs_are_one_row_until_feedforward_stays_ahead():
    """The row counts from the length at which the slowest task is level; a task that never is says `feedforward`."""
    from tools.founding.advice import advice

    def picture(task, *highs):
        points = [
            {
                "arm": "feedforward",
                "steps": 25 * 2**index,
                "seeds": 1,
                "fresh": True,
                "minus_all": {"value": high - 0.02, "low": high - 0.04, "high": high},
            }
            for index, high in enumerate(highs)
        ]
        return {"base": "real:some-base", "task": task, "budget": "like=all:2", "points": points}

    def rows(*pictures):
        evidence = replace(packaged(), placement={"real_base": list(pictures)})
        return [row for row in advice(evidence) if row.situation.startswith("a pretrained decoder")]

    level, slow, ahead = (
        picture("one", -0.01, 0.01, 0.01),
        picture("two", 0.01, -0.01, 0.01),
        picture("three", -0.01, -0.01),
    )
    (row,) = rows(level, slow)
    assert (row.situation, row.placement[:5]) == (
        "a pretrained decoder and time for 100 steps or more",
        "`all`",
    )
    assert row.because.count("after 25 steps") == 2
    row, stays = rows(level, ahead)
    assert row.situation == "a pretrained decoder and time for 50 steps or more"
    assert stays.placement == "`feedforward`"
    assert "three all:2 on some-base, -0.030 (-0.050 to -0.010) after 25 steps" in stays.because


def test_figures_hold_every_finding():
    from tools.founding.page import pictures

    evidence = packaged()
    drawn = pictures(evidence)
    forest = ElementTree.fromstring(drawn["founding-forest.svg"])
    shown = [one for one in contrasts(evidence.standing) if one.equal]
    assert len(forest.findall(f"{SVG}circle")) == len(shown) + 2  # two of the legend
    for name, svg in drawn.items():
        _, _, width, height = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
        for circle in ElementTree.fromstring(svg).iter(f"{SVG}circle"):
            assert 0 < float(circle.attrib["cx"]) < width, name
            assert 0 < float(circle.attrib["cy"]) < height, name


def test_what_is_missing_is_said():
    from tools.founding.page import page

    evidence = packaged()
    there = {study["name"] for study in evidence.studies if study["complete"]}
    assert "smollm2-nl2bash" in there
    said = "`recipes/smollm2-nl2bash.yaml`: not run yet."
    assert said not in page(evidence)
    without = tuple(study for study in evidence.studies if study["name"] != "smollm2-nl2bash")
    assert said in page(replace(evidence, studies=without))
    assert "superseded" in page(evidence) or not any(study["superseded"] for study in evidence.standing)


def test_what_a_page_may_name_as_missing_has_a_recipe():
    from tools.founding.page import WANTED

    assert all((ROOT / "recipes" / f"{name}.yaml").is_file() for name in WANTED)
