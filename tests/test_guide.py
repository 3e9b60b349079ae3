"""Every block of the guide is real: its Python runs, page by page, and prints what its comments promise; its commands
exist with every option that they show; its YAML and JSON are read."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loratlas.cli import run
from loratlas.study.spec.spec_file import parse_spec
from loratlas.study.spec.study_spec import StudySpec

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """Blocks of a page in these languages."""
    return [
        text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


RUNS = [page for page in PAGES if blocks(page, "python")]
SMALL = """
learning_rates: [0.003]
tuning: {seeds: 1, rows: 2, extensions: 0}
evaluation: {seeds: 2, rows: 3}
steps: 2
batch_size: 2
max_length: 48
demonstration: true
"""
"""Appended to the study of the guide, so that it ends in seconds."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the pages speak of, small."""
    rows = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    for name in ("rows.jsonl.gz", "other-rows.jsonl.gz"):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write(lines if name == "rows.jsonl.gz" else lines.replace("+", " plus "))
    (tmp_path / "questions.csv").write_text(
        "question,answer\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    )
    reviews = [{"text": f"film {n}", "label": ("bad", "good")[n % 2]} for n in range(6)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    study, *_ = blocks(ROOT / "docs/guide/studies.md", "yaml")
    (tmp_path / "where.yaml").write_text(study + SMALL)
    (tmp_path / "bases").symlink_to(ROOT / "bases")
    return tmp_path


BEFORE = {
    "evaluation.md": lambda at: run(
        ["eval", "demo:llama-mini", str(at / "rows.jsonl"), "--out", str(at / "out")]
    ),
    "report.md": lambda at: (
        (at / "where").mkdir(),
        shutil.copy(ROOT / "tests/report/study_example.json", at / "where" / "findings.json"),
    ),
}
"""What a page takes for granted: commands that it shows before its Python."""


@pytest.mark.parametrize("page", RUNS, ids=[page.stem for page in RUNS])
def test_the_python_of_a_page_runs(page: Path, folder: Path):
    BEFORE.get(page.name, lambda _: None)(folder)
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout.splitlines()
    for promised in re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE):
        if not promised.startswith("which "):
            assert promised in printed
    assert printed or "print(" not in code


def test_pages_with_python():
    assert {page.stem for page in RUNS} >= {
        "placement", "training", "tasks", "report", "data", "studies", "evaluation"
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_commands_have_every_option_that_is_shown(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    for line in "\n".join(blocks(page, "bash", "console")).splitlines():
        words = shlex.split(line.removeprefix("$ "))
        if words[:1] != ["loratlas"]:
            continue
        assert run([words[1], "--help"]) == 0
        text = capsys.readouterr().out
        for word in words[2:]:
            if word.startswith("--"):
                assert word in text, f"{words[1]} has no {word}"


def test_the_study_and_the_error_are_read():
    studies = [parse_spec(text) for text in blocks(ROOT / "docs/guide/studies.md", "yaml")]
    assert [study.reference for study in studies] == ["full", "full"]
    assert [study.trainer and study.trainer.name for study in studies] == [None, "dpo"]
    (error,) = blocks(ROOT / "docs/guide/command-line.md", "json")
    assert set(json.loads(error)["error"]) == {"code", "given", "found", "instead"}


def test_the_keys_of_a_study_are_listed_once_each():
    """All of them, and no other: `metric`, `forgetting` and `delta` stood there twice."""
    text = (ROOT / "docs/guide/studies.md").read_text(encoding="utf-8")
    table = text.partition("## All keys")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    keys = [key for cell in cells for key in re.findall(r"`(.*?)`", cell)]
    assert len(keys) == len(set(keys))
    assert {key.partition(".")[0] for key in keys} == set(StudySpec.model_fields)


def test_every_word_of_the_placement_tables_parses():
    from loratlas.placement.language import parse

    text = (ROOT / "docs/guide/placement.md").read_text(encoding="utf-8")
    table = text.partition("| you write | you get |")[2].partition("Routers, gates")[0]
    for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE):
        for word in re.findall(r"`(.*?)`", cell):
            assert parse(word).terms
