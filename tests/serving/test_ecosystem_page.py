"""The table of docs/ecosystem.md: what a row rests on, and its version, are those of the tests that prove it."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tests.serving.reference_readers import READ_AT, READERS
from tools.engine_sources import WHEELS

from loratlas.serving.engine_registry import ENGINES

ROOT = Path(__file__).parents[2]
PROOFS = {"run": "engine", "parser": "parser", "sources": "sources"}
"""The page's word → what an engine's class says."""


def rows() -> dict[str, dict[str, str]]:
    """Engine's title → column → cell."""
    lines = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| engine |"))
    names = [cell.strip() for cell in lines[start].strip("|").split("|")]
    table = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        table[cells[0]] = dict(zip(names, cells, strict=True))
    return table


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, package
    return found[1]


def of_release(version: str, page: str) -> bool:
    """Whether a version is of the release that the page names: 0.21 of 0.21.2, and not of 0.210.

    >>> of_release("0.21.2", "0.21"), of_release("0.210.0", "0.21")
    (True, False)
    """
    return f"{version}.".startswith(f"{page}.")


def test_the_page_has_every_engine_with_its_version_and_its_proof():
    table = rows()
    engines = {engine.title: engine for engine in ENGINES.values()}
    assert table.keys() == engines.keys()
    for title, engine in engines.items():
        assert table[title]["version"] == engine.version, title
        assert PROOFS[table[title]["rests on"]] == engine.evidence, title


def test_the_page_says_what_each_word_means():
    text = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    for word in PROOFS:
        assert f"- **{word}**: " in text
    assert {row["rests on"] for row in rows().values()} == PROOFS.keys()


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if engine.evidence == "sources"])
def test_a_rule_that_was_rebuilt_is_of_the_version_on_the_page(name):
    assert name in READERS
    version, file = READ_AT[name]
    assert version == ENGINES[name].version
    assert f"`{file}`" in (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if engine.evidence == "parser"])
def test_a_parser_is_of_the_version_on_the_page(name):
    wheel = Requirement(WHEELS[name][0])
    (pin,) = wheel.specifier
    assert of_release(pin.version, ENGINES[name].version)
    assert name in READERS  # its rule was rebuilt as well


def test_engines_that_run_are_those_that_are_installed():
    run = {name for name, engine in ENGINES.items() if engine.evidence == "engine"}
    assert run == {"peft", "llama.cpp"}
    assert of_release(importlib.metadata.version("peft"), ENGINES["peft"].version)
    assert of_release(pinned("peft"), ENGINES["peft"].version)
    # The last number of xllamacpp's version is the build of llama.cpp in it.
    assert f"b{Version(pinned('xllamacpp')).release[-1]}" == ENGINES["llama.cpp"].version


def test_no_reader_speaks_of_an_engine_that_is_not_on_the_page():
    assert READ_AT.keys() == {name for name, engine in ENGINES.items() if engine.evidence == "sources"}
    assert READERS.keys() <= ENGINES.keys()
