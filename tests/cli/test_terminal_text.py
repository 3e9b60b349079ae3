"""Nothing of a stranger's text reaches the terminal raw, and pipes get clean lines."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import environment

from loratlas.cli import output
from loratlas.cli.progress import Progress
from loratlas.errors import Interrupted, LoratlasError, ModelError
from loratlas.report import build

MODEL, DATA = "demo:llama-mini", "demo:facts-300"
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e\x9b2J[bold]x[/bold][/]"
RAW = ("\x1b", "\x07", "\u202e", "\x9b")


def clean(told) -> bool:
    return not any(mark in told.out + told.err for mark in RAW)


def rows(folder: Path, *made: dict) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def test_a_placement_an_option_and_a_path(cli, tmp_path: Path):
    for words in (
        ("plan", MODEL, "--placement", f'"{EVIL}":4'),
        ("plan", MODEL, "--placement", EVIL),
        ("plan", MODEL, "--placement", "q:4", "--budget", EVIL),
        ("map", f"no/such{EVIL}"),
        ("eval", MODEL, f"nothing{EVIL}.jsonl"),
        ("train", MODEL, DATA, "--placement", "q:4", "--steps", EVIL, "--out", tmp_path / "run"),
        (f"pl{EVIL}an",),
    ):
        told = cli(*words)
        assert told.code == 2, words
        assert clean(told), (words, told)


def test_a_model_type_and_a_config(cli, tmp_path: Path):
    for name, config in (
        ("type", {"model_type": EVIL}),
        ("kind", {"model_type": "llama", "architectures": [EVIL], "hidden_act": EVIL}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        told = cli("map", folder)
        assert clean(told), told


def test_columns_labels_and_cells(cli, tmp_path: Path):
    columns = rows(tmp_path, {EVIL: "a", "b": "c"})
    assert clean(told := cli("eval", MODEL, columns)), told
    extra = rows(tmp_path, {"prompt": "a", "completion": "b", EVIL: 1})
    assert clean(told := cli("eval", MODEL, extra)), told
    labels = rows(tmp_path, *({"text": f"row {i}", "label": EVIL if i % 2 else "good"} for i in range(8)))
    words = ("--placement", "q:1", "--steps", "1", "--max-length", "16", "--eval", labels)
    told = cli("train", MODEL, labels, *words, "--out", tmp_path / "run")
    assert told.code == 0, told.err
    assert clean(told), told
    assert "[bold]x[/bold]" in "".join(told.out.split()), "brackets are no style"


def test_arms_and_findings_of_a_study(cli, tmp_path: Path):
    spec = tmp_path / "study.yaml"
    spec.write_text(json.dumps({"name": EVIL, "arms": {EVIL: "q:4"}, EVIL: 1}), encoding="utf-8")
    told = cli("study", spec, "--out", tmp_path / "out")
    assert told.code == 2
    assert clean(told), told


def test_every_way_to_print(capsys):
    drawn = output.table("a", (EVIL, "right"), title=EVIL)
    drawn.add_row(EVIL, EVIL)
    output.say(EVIL)
    output.note(EVIL)
    output.show(drawn)
    for error in (
        ModelError(given=EVIL, found=EVIL, instead=EVIL),
        Interrupted(given=EVIL, found=EVIL, instead=EVIL),
    ):
        output.fail(error, as_json=False)
    with Progress("x", total=1, unit="y") as bar:
        bar.to(1, EVIL, title=EVIL)
    said = capsys.readouterr()
    assert not any(mark in said.out + said.err for mark in RAW)
    assert said.out.count("\\x1b]0;owned") >= 4
    assert not any(mark in str(LoratlasError(given=EVIL, found=EVIL, instead=EVIL)) for mark in RAW)


def test_json_escapes_what_a_terminal_obeys(cli, tmp_path: Path):
    evil = EVIL + "\x7f\x85\u2028\u200b\ufeff\U000e0041"
    told = cli("map", f"no/such{evil}", "--json")
    assert told.code == 2
    assert told.out.rstrip("\n").isprintable()
    assert evil in told.json["error"]["given"]
    told = cli("plan", MODEL, "--placement", f'"{evil}":4', "--json")
    assert told.out.rstrip("\n").isprintable()


@pytest.mark.filterwarnings("always")
def test_what_libraries_warn_of_and_log(cli, capsys, tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from loratlas.demo import base_path
    from loratlas.models.quiet import quiet

    with quiet():
        base = AutoModelForCausalLM.from_pretrained(base_path(MODEL))
        config = LoraConfig(target_modules=["q_proj"], exclude_modules="zz\x1b]0;owned\x07\u202e")
        get_peft_model(base, config).save_pretrained(tmp_path)
    told = cli("eval", MODEL, DATA, "--adapter", tmp_path, "--limit", "2")
    assert told.code == 0, told.err
    assert "no modules were excluded" in told.words
    assert clean(told), told

    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("a.library")
    logger.addHandler(handler)
    with output.others_are_quoted():
        logger.warning("an option %s", EVIL)
    logger.removeHandler(handler)
    said = capsys.readouterr().err
    assert "an option" in said
    assert not any(mark in said for mark in RAW)


@pytest.mark.parametrize("words", [("map", MODEL), ("plan", MODEL, "--placement", "q_proj:8")])
def test_lines_in_a_pipe_end_without_spaces(cli, words):
    told = cli(*words)
    assert told.code == 0
    assert [line for line in told.out.splitlines() if line != line.rstrip()] == []
    shown = cli("plan", "--help")
    assert "--placement" in shown.out
    assert [line for line in shown.out.splitlines() if line != line.rstrip()] == []
    error = cli("plan", MODEL, "--placement", "nonsense:8")
    assert [line for line in error.err.splitlines() if line != line.rstrip()] == []


def test_python_runs_the_package():
    done = subprocess.run(
        [sys.executable, "-m", "loratlas", "plan", MODEL, "--placement", "nonsense:8", "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    told = json.loads(done.stdout)
    assert (told["schema"], told["version"], told["error"]["code"]) == ("loratlas.error", 1, "placement")


def test_a_page_of_such_a_study_is_told_in_clean_lines(cli, tmp_path: Path):
    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1] / "report"))
    from report_example import VARIANTS

    made = VARIANTS["hostile"]()
    (tmp_path / "study.json").write_text(json.dumps(made).replace("\\ud800", "?"), encoding="utf-8")
    told = cli("report", tmp_path / "study.json", "--out", tmp_path / "page.html")
    assert clean(told), told
    assert build(made, tmp_path / "other.html").is_file()
