"""The guide's Python runs as written, and prints what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "placement.md"


def test_the_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), str(GUIDE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (.*)", blocks[0])
    assert printed[: len(promised)] == promised


def test_every_word_of_the_tables_parses():
    from loratlas.placement.language import parse

    text = (
        GUIDE.read_text(encoding="utf-8")
        .partition("| you write | you get |")[2]
        .partition("Routers, gates")[0]
    )
    for cell in re.findall(r"^\| (.*?) \|", text, re.MULTILINE):
        for word in re.findall(r"`(.*?)`", cell):
            assert parse(word).terms
