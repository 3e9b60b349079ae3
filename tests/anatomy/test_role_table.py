"""One table of roles: complete, obeyed by every place that knows roles, and shown to people as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from loratlas.anatomy.compare.overrides import OVERRIDES
from loratlas.anatomy.names import name_reader
from loratlas.anatomy.role_table import (
    FAMILIES,
    PARTS,
    PARTS_OF,
    ROLES,
    SCOPES,
    SETS,
    TEXT_SCOPES,
    in_set,
    observable,
    related_parts,
    tokens,
)
from loratlas.placement.language import parse
from loratlas.placement.vocabulary import holds

ROOT = Path(__file__).resolve().parents[2]
_ATTENTION = "q,k,v,o,qkv,kv,qk,q_a,q_b,kv_a,kv_b,o_a,o_b,gate,rel,index,relbias,adapter"
_FEEDFORWARD = "gate,up,gate_up,down"
WRITTEN = {
    "attn": _ATTENTION,
    "xattn": _ATTENTION,
    "ffn": _FEEDFORWARD + ",adapter",
    "shared": _FEEDFORWARD,
    "moe": _FEEDFORWARD,
    "mixer": "in,q,k,v,qkv,gate,decay,beta,x,dt,out",
    "head": "lm,transform,cls",
    **dict.fromkeys(("router", "shared_gate", "residual", "adapter", "embed", "proj", "conv", "vector"), ""),
}
"""The words of the design."""


def test_the_table_has_the_words_of_the_design_and_no_other():
    wanted = {f"{f}.{part}" if part else f for f, parts in WRITTEN.items() for part in parts.split(",")}
    assert set(ROLES) == wanted
    assert all(name == row.name for name, row in ROLES.items())


def test_the_words_of_the_shared_design_are_all_in_the_table(shared):
    text = shared("DESIGN.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("| **role** |"))
    named = set()
    for word in re.findall(r"`([^`]+)`", line):
        family, _, parts = word.partition(".")
        inner = parts.strip("{}").split(",")
        named |= {f"{family}.{part}" for part in inner if part not in ("part", "…")} if parts else {family}
    assert len(named) > 40
    assert named - {"family"} <= set(ROLES)


def test_rows_say_what_they_mean():
    for row in ROLES.values():
        assert row.sets <= set(SETS)
        assert "all" in row.sets or not row.sets, row.name  # attention and feedforward are parts of all
        assert set(row.after or ()) <= set(PARTS_OF.get(row.family, PARTS)), row.name
        assert row.use == "map" or not row.sets, row.name
        # What a probe can judge lies in a step of a block, and what is observed is probed.
        assert not row.tokens or row.block, row.name
        assert row.tokens or not row.observed, row.name
        assert (
            row.stage == 0
            or row.after
            or any(o.stage < row.stage for o in ROLES.values() if o.family == row.family)
        )
    assert set(SCOPES) > TEXT_SCOPES


@pytest.mark.parametrize("name", ROLES)
def test_every_place_derives_from_the_row(name):
    row = ROLES[name]
    # The placement language reads the word, and its sets hold exactly what the row says.
    for word in (name, row.family, *({row.part} - {"", *FAMILIES})):
        assert parse(f"{word}:4").terms
        assert holds(word, name)
    for set_ in SETS:
        assert holds(set_, name) is in_set(set_, name) is (set_ in row.sets)
    # The readers and the probe's expectations.
    assert tokens(name) == row.tokens
    assert observable(name) is row.observed
    assert row.part not in related_parts(row.part)


def test_readers_speak_in_the_words_of_the_table():
    voted = {family for family, _ in name_reader._FAMILIES} - {"norm"}
    assert {word.partition(".")[0] for word in voted} <= set(FAMILIES)
    for entry in OVERRIDES:
        role = re.sub(r"\\\d|\.$", "", entry.role).rstrip(".")
        assert role in ROLES or role in FAMILIES, entry


def _lists_of_families(path: Path) -> list[int]:
    """Lines on which two or more families are listed."""
    listed = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            said = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            if len(said) > 1 and len(said) == len(node.elts) and set(said) <= set(FAMILIES):
                listed.append(node.lineno)
    return listed


def test_nothing_else_lists_families():
    """Knowledge of roles stands in the table; the readers alone turn names and behaviour into roles."""
    source = ROOT / "src" / "loratlas"
    readers = [source / "anatomy" / part for part in ("names", "trace", "role_table.py")]
    listed = {
        str(path.relative_to(source)): lines
        for path in sorted(source.rglob("*.py"))
        if not any(path == one or one in path.parents for one in readers)
        and (lines := _lists_of_families(path))
    }
    assert listed == {}


def test_a_list_of_families_would_be_seen(tmp_path):
    (tmp_path / "x.py").write_text('A = frozenset({"attn", "xattn"})\nB = ("head", "tail")\n')
    assert _lists_of_families(tmp_path / "x.py") == [1]


def guide_lines() -> list[str]:
    """The guide's table of roles, as the role table has it."""
    lines = ["| family | parts | in no set, so adapted only by name |", "|---|---|---|"]
    for family in FAMILIES:
        parts = PARTS_OF.get(family, ())
        alone = [row.part or family for row in ROLES.values() if row.family == family and not row.sets]
        words = ", ".join(f"`{part}`" for part in parts) or "–"
        lines.append(f"| `{family}` | {words} | {', '.join(f'`{part}`' for part in alone) or '–'} |")
    return lines


def test_the_guide_shows_the_table():
    guide = (ROOT / "docs" / "guide" / "placement.md").read_text(encoding="utf-8").splitlines()
    wanted = guide_lines()
    start = guide.index(wanted[0])
    assert guide[start : start + len(wanted)] == wanted


def test_the_words_of_the_guide_hold_what_it_says():
    guide = (ROOT / "docs" / "guide" / "placement.md").read_text(encoding="utf-8")
    table = guide.partition("| you write | you get |")[2].partition("\n\n")[0]
    words = [
        word for line in table.strip().splitlines() for word in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(words) >= 12
    kinds = {word: parse(f"{word}:4").terms[0].names[0].kind for word in (*words, "nonsense")}
    assert kinds.pop("nonsense") == "suffix"
    # The names that people know from PEFT are shown as well; all others are words of the table.
    assert {word for word, kind in kinds.items() if kind == "suffix"} == {
        "q_proj,v_proj",
        "c_attn",
        "mlp.c_proj",
    }
    held = {name for name in ROLES if holds("attention", name)}
    assert {"attn.rel", "attn.index", "xattn.rel", "mixer.in"} & held == set()
    assert {"attn.q", "xattn.kv_b", "attn.o"} <= held
    assert {name for name in ROLES if holds("feedforward", name)} == {
        f"{family}.{part}" for family in ("ffn", "shared", "moe") for part in _FEEDFORWARD.split(",")
    }
    left = {"decay", "beta", "dt", "x"}
    assert {
        ROLES[name].part for name in ROLES if name.startswith("mixer.") and not holds("all", name)
    } == left
