"""`scan`, and the placement `auto` that it decides: maps, JSON, plans, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loratlas.adapters.peft_check import prove_on_meta
from loratlas.models.config import load_config
from loratlas.placement.plan import Plan
from loratlas.sources import model_source

MODEL, DATA = "demo:llama-mini", "demo:facts-300"
FEW = (
    "--rows",
    "16",
    "--max-length",
    "48",
    "--limit",
    "64",
    "--among",
    "all@top/2",
    "--dtype",
    "float32",
    "--trial-steps",
    "8",
)
TWO = ("--signal", "gradient", "--signal", "probe_yield")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory) -> Path:
    """The file that ``scan --json`` printed."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from loratlas.cli import run

    out = StringIO()
    with redirect_stdout(out), redirect_stderr(StringIO()):
        assert run(["scan", MODEL, DATA, *FEW, "--all-signals", "--budget", "params=9k", "--json"]) == 0
    path = tmp_path_factory.mktemp("scan") / "scan.json"
    path.write_text(out.getvalue())
    return path


def test_json_keeps_the_contract(scanned: Path):
    told = json.loads(scanned.read_text())
    assert (told["schema"], told["version"], told["by"]) == ("loratlas.scan", 1, "probe_energy")
    assert {"path", "signal", "value", "unit", "error"} == set(told["scores"][0])
    columns = {signal["name"] for signal in told["signals"]}
    assert columns == {
        "gradient", "gradient_energy", "activation", "activation_gradient", "alignment", "attention",
        "attention_entropy", "spectrum", "stable_rank", "probe_energy", "probe_descent",
        "probe_yield",
    }  # fmt: skip
    by_column = {name: [s for s in told["scores"] if s["signal"] == name] for name in columns}
    assert len(by_column["gradient"]) == 28
    assert len(by_column["attention"]) == 16
    assert all(score["error"] is not None for score in by_column["gradient"])
    assert {pair["one"] for pair in told["agreement"]} < columns
    assert all(-1 <= pair["tau"] <= 1 for pair in told["agreement"])
    assert told["cost_in_steps"] == told["visits"] / 16 == 1 + 2 * 8
    assert told["rows"] == 64
    assert told["plan"]["trainable"] == told["allocation"]["spent"] <= 9000
    assert all("per 1,000" in row["why"] for row in told["plan"]["sites"])


def test_a_scan_repeats_itself(cli, scanned: Path):
    again = cli("scan", MODEL, DATA, *FEW, *TWO, "--budget", "params=9k", "--json").json
    told = json.loads(scanned.read_text())
    assert [s for s in told["scores"] if s["signal"] == "gradient"] == [
        s for s in again["scores"] if s["signal"] == "gradient"
    ]
    assert again["plan"]["digest"] == told["plan"]["digest"]


def test_people_get_a_map_in_80_columns(cli):
    outcome = cli("scan", MODEL, DATA, *FEW, "--signal", "spectrum", "--by", "stable_rank", "--multiple", "2")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.partition("from peft")[0].splitlines()
    drawn = [line for line in lines if not line.startswith(("As text", "stable_rank (", "Next: "))]
    assert max(map(len, drawn)) <= 110  # sentences are the terminal's to wrap
    assert max(len(line) for line in drawn if line.startswith(" ")) <= 80
    assert any(line.split()[:1] == ["7"] and "█" in outcome.out for line in lines)
    assert "Plan for like=all:16" in outcome.out
    assert "weights alone" in outcome.out


def test_trials_come_without_the_passes_of_the_others(cli):
    outcome = cli(
        "scan", MODEL, DATA, *FEW, "--signal", "probe_yield", "--by", "probe_descent", "--json"
    ).json
    columns = {signal["name"]: signal for signal in outcome["signals"]}
    assert set(columns) == {"probe_energy", "probe_descent", "probe_yield"}
    assert outcome["cost_in_steps"] * 16 == outcome["visits"] == 2 * 8 * 16
    assert outcome["rows"] == 64
    assert outcome["loss"] is None
    assert outcome["settled"] in (True, False)
    signal = columns["probe_descent"]
    assert outcome["settled"] == (min(signal["repeats"], signal["repeats_top"]) >= 0.9)
    assert outcome["settled"] or any("two trials" in note for note in outcome["notes"])


def test_scores_make_a_plan_without_weights(cli, scanned: Path):
    told = json.loads(scanned.read_text())
    outcome = cli(
        "plan", MODEL, "--placement", "auto", "--scores", scanned, "--budget", "params=9k", "--json"
    )
    assert outcome.json["digest"] == told["plan"]["digest"]
    assert outcome.json["sites"][0]["why"]
    by = cli(
        "plan", MODEL, "--placement", "auto", "--scores", scanned, "--by", "alignment", "--budget",
        "params=9k", "--json",
    )  # fmt: skip
    assert by.json["digest"] != outcome.json["digest"]


def test_train_places_by_a_scan_that_was_made_before(cli, scanned: Path, tmp_path: Path):
    outcome = cli(
        "train", MODEL, DATA, "--placement", "auto", "--scores", scanned, "--budget", "params=9k", "--steps", "2",
        "--batch-size", "4", "--max-length", "48", "--limit", "32", "--dtype", "float32", "--out",
        tmp_path / "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["trainable"] <= 9000
    assert outcome.json["placement"] != "auto"
    assert outcome.json["moves"] == []


def test_plain_scans_measure_the_deciding_score_alone(cli, tmp_path: Path):
    """And keep it, say by which score it was decided, and end with a LoraConfig and the next command."""
    out = tmp_path / "scan"
    words = ("scan", MODEL, DATA, *FEW, "--out", out)
    shown = cli(*words)
    assert shown.code == 0, shown.err
    assert "alignment" not in shown.out
    assert "trial training: about" in shown.err
    assert "config = LoraConfig(" in shown.out
    command = shown.out.splitlines()[-1].removeprefix("Next: ")
    assert command.startswith(f"loratlas train {MODEL} {DATA} --placement ")
    kept = json.loads((out / "scan.json").read_text())
    assert {signal["name"] for signal in kept["signals"]} == {"probe_energy", "probe_descent", "probe_yield"}
    begin, end = shown.out.index("from peft"), shown.out.index("\nNext:")
    scope: dict = {}
    exec(shown.out[begin:end], scope)
    lines = [line for line in shown.out[begin:end].splitlines() if "base_model_name_or_path" not in line]
    assert max(map(len, lines)) <= 80  # a path is as long as it is
    assert Path(scope["config"].base_model_name_or_path, "config.json").is_file()
    scope["config"].base_model_name_or_path = None
    prove_on_meta(Plan.from_json(kept["plan"]).rows, scope["config"], load_config(model_source(MODEL)))
    again = cli(*words)
    assert again.code == 2
    assert "already holds" in again.words
    plan = cli("plan", MODEL, "--placement", "auto", "--scores", out, "--json").json
    assert plan["digest"] == kept["plan"]["digest"]


ROUND = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64}


def test_ranks_are_rounded_by_scan_train_and_python(cli, scanned: Path, tmp_path: Path):
    """The same table from each of them, and from the command that the scan ends with."""
    import loratlas
    from loratlas.scan.scores import load_scan

    budget = ("--budget", "params=90k")
    words = ("--placement", "auto", "--scores", scanned, *budget)
    exact = cli("plan", MODEL, *words, "--json").json
    rounded = cli("plan", MODEL, *words, "--round-ranks", "--json").json
    assert {site["rank"] for site in exact["sites"]} - ROUND
    assert {site["rank"] for site in rounded["sites"]} <= ROUND
    run = tmp_path / "run"
    few = ("--steps", "1", "--batch-size", "2", "--max-length", "48", "--limit", "16", "--lr", "0.01")
    trained = cli("train", MODEL, DATA, *words, *few, "--round-ranks", "--out", run, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["trainable"] == rounded["trainable"] < exact["trainable"]
    assert loratlas.place(MODEL, exact["text"], round_ranks=True).digest == rounded["digest"]
    assert load_scan(scanned).by == "probe_energy"
    cheap = ("scan", MODEL, DATA, *FEW, "--signal", "spectrum", "--by", "spectrum", *budget, "--round-ranks")
    outcome = cli(*cheap, "--json").json
    assert {site["rank"] for site in outcome["plan"]["sites"]} <= ROUND
    assert outcome["allocation"]["spent"] == outcome["plan"]["trainable"]
    shown = cli("scan", MODEL, DATA, "--signal", "spectrum", "--by", "spectrum", "--round-ranks", "--out",
                tmp_path / "scan", "--rslora", "--alpha", "32")  # fmt: skip
    last = shown.out.splitlines()[-1]
    assert all(word in last for word in ("--round-ranks", "--rslora", "--alpha 32", "--scores")), last


def test_rounding_is_refused_where_ranks_change_or_are_brought(cli, scanned: Path, tmp_path: Path):
    more = ("--round-ranks", "--steps", "20", "--out", tmp_path / "run")
    moving = cli("train", MODEL, DATA, "--placement", "auto", *more)
    assert moving.code == 2
    assert "changes ranks as it goes" in moving.words


def test_a_plan_follows_the_score_that_decided_the_scan(cli, tmp_path: Path):
    out = tmp_path / "scan"
    by = ("--by", "gradient")
    outcome = cli("scan", MODEL, DATA, *FEW, *by, "--budget", "params=9k", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["by"] == "gradient"
    assert {signal["name"] for signal in outcome.json["signals"]} == {"gradient", "gradient_energy"}
    plan = cli("plan", MODEL, "--placement", "auto", "--scores", out, "--budget", "params=9k", "--json")
    assert plan.code == 0, plan.err
    assert plan.json["digest"] == outcome.json["plan"]["digest"]
    assert "plans by gradient lost" in plan.err
    other = cli("plan", MODEL, "--placement", "auto", "--scores", out, "--by", "probe_yield")
    assert other.code == 2
    assert "--by gradient" in other.words


def test_a_scan_that_would_take_too_long_stops_at_once(cli):
    outcome = cli("scan", MODEL, DATA, *FEW, "--minutes", "0")
    assert outcome.code == 2
    assert "the pace of the first steps" in outcome.words
    assert "--yes" in outcome.words
    assert cli("scan", MODEL, DATA, *FEW, "--minutes", "0", "--yes").code == 0


def test_resuming_where_nothing_was_kept_begins_and_says_so(cli, tmp_path: Path):
    words = ("scan", MODEL, DATA, *FEW, "--resume", "--json")
    outcome = cli(*words, "--out", tmp_path / "scan")
    assert outcome.code == 0, outcome.err
    assert "begins at the beginning" in " ".join(outcome.err.split())
    assert cli(*words).code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", MODEL, "--placement", "auto"), "no scores to place by"),
        (("plan", MODEL, "--placement", "auto", "--scores", "none.json"), "no such file"),
        (("plan", MODEL, "--placement", "all:1", "--scores", "none.json"), "names its sites itself"),
        (("scan", MODEL, DATA, "--signal", "magic"), "no such signal"),
        (("scan", MODEL, DATA, "--by", "magic"), "no such score"),
        (("scan", MODEL, DATA, "--signal", "spectrum", "--by", "gradient"), "is not measured"),
        (("scan", MODEL, DATA, "--budget", "params=10", *FEW, "--signal", "spectrum", "--by", "spectrum"),
         "smallest step anywhere costs"),
        (("scan", MODEL, DATA, "--multiple", "3", "--min-rank", "4"), "multiples of 3"),
        (("scan", MODEL, DATA, "--among", "embed"), "shares its weights"),
        (("scan", MODEL, DATA, "--among", "nothing"), "matches nothing"),
    ],
)  # fmt: skip
def test_bad_requests_are_sentences(cli, words, said):
    outcome = cli(*words)
    assert outcome.code == 2
    assert said in outcome.words
    assert "Traceback" not in outcome.err


def test_a_budget_that_buys_nothing_is_refused_before_anything_is_trained(cli, tmp_path: Path):
    outcome = cli("scan", MODEL, DATA, "--budget", "params=10")
    assert outcome.code == 2
    assert "smallest step anywhere costs 384" in outcome.words
    assert "scanning" not in outcome.err
    train = ("--placement", "auto", "--steps", "20", "--out", tmp_path / "run")
    outcome = cli("train", MODEL, DATA, *train, "--budget", "params=10")
    assert outcome.code == 2
    assert "38,912, and that is more than 1.5 times the budget" in outcome.words
    assert not (tmp_path / "run").exists()


def test_sites_that_cannot_be_chosen_are_refused_before_rows_are_read(cli):
    for budget in ("like=all:1", "memory=2GB"):
        outcome = cli("scan", MODEL, "no-such-file.jsonl", "--among", "nothing", "--budget", budget)
        assert outcome.code == 2
        assert "matches nothing" in outcome.words


def test_scores_of_another_model_are_refused(cli, scanned: Path, tmp_path: Path):
    told = json.loads(scanned.read_text())
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**told, "config_digest": "0" * 16, "model": "another"}))
    outcome = cli("plan", MODEL, "--placement", "auto", "--scores", path)
    assert outcome.code == 2
    assert "another config" in outcome.words
    path.write_text("[]")
    assert cli("plan", MODEL, "--placement", "auto", "--scores", path).code == 2
    path.write_text(json.dumps({**told, "schema": "loratlas.map"}))
    assert (
        cli("plan", MODEL, "--placement", "auto", "--scores", path, "--json").json["error"]["code"]
        == "request"
    )


def test_silence_is_no_plan(cli, scanned: Path, tmp_path: Path):
    told = json.loads(scanned.read_text())
    for signal in told["signals"]:
        signal["silent"] = "every value is 0"
    path = tmp_path / "silent.json"
    path.write_text(json.dumps(told))
    outcome = cli("plan", MODEL, "--placement", "auto", "--scores", path)
    assert outcome.code == 2
    assert "no signal: every value is 0" in outcome.words
