"""The map of ranks for a terminal: what it shows, and that it fits."""

from __future__ import annotations

import io
import sys

import pytest
from tests.adapters.architectures import config

from loratlas.anatomy.read import read
from loratlas.anatomy.sites import Site
from loratlas.cli import output
from loratlas.dynamic.rank_map import rank_map

ROLES = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")


def sites(layers, roles=ROLES, scope="decoder"):
    return [
        Site(
            path=f"{scope}.{layer}.{role}",
            module=f"{scope}.{layer}.{role}",
            layer=layer,
            scope=scope,
            role=role,
            shape=(64, 64),
            kind="linear",
        )
        for layer in range(layers)
        for role in roles
    ]


def drawn(chosen, before, changes=(), **options):
    ranks = {site.path: before for site in chosen}
    return list(rank_map(chosen, ranks, ranks | dict(changes), **options).lines())


@pytest.mark.parametrize("layers", [1, 4, 24, 25, 35, 36, 48, 72, 73, 126, 400])
def test_a_map_fits_and_shows_every_change(layers):
    chosen = sites(layers)
    last = f"decoder.{layers - 1}.ffn.down"
    lines = drawn(chosen, 2, {last: 5})
    assert len(lines) == 2 + len(ROLES)
    assert max(map(len, lines)) <= 80
    cells = lines[-1].split(maxsplit=1)[1]
    assert cells.rstrip("▴")[-1] == "5"
    assert cells.count("2") == (layers - 1 if layers <= 72 else len(lines[3].split()[1]) - 1)


def test_layers_share_a_column_where_there_are_more_than_columns():
    lines = drawn(sites(9, ("attn.q",)), 1, {"decoder.4.attn.q": 3, "decoder.8.attn.q": 0}, width=10)
    assert lines[0].startswith("  ranks by layer (2 layers a column, their highest)")
    assert lines[2] == "  q  1131·"
    assert lines[1] == "     0"


def test_ranks_above_nine_are_letters_and_above_35_one_sign():
    (line,) = drawn(
        sites(5, ("attn.q",)), 9, {f"decoder.{n}.attn.q": r for n, r in enumerate((10, 35, 36, 0))}
    )[2:]
    assert line == "  q  a▴ z▴ #▴ ·▾ 9"


def test_roles_of_one_name_are_told_from_each_other():
    chosen = [*sites(1, ("attn.q", "xattn.q")), *sites(1, ("attn.q",), scope="encoder")]
    names = [line[:18].rstrip() for line in drawn(chosen, 1)[2:]]
    assert names == ["  decoder attn.q", "  decoder xattn.q", "  encoder attn.q"]
    assert [line.split()[0] for line in drawn(sites(1, ("attn.q", "xattn.q")), 1)[2:]] == [
        "attn.q",
        "xattn.q",
    ]


def test_a_real_anatomy_is_drawn_whole():
    chosen = [site for site in read(config("t5")).adaptable if site.layer is not None]
    text = "".join(line.split(maxsplit=2)[2] for line in drawn(chosen, 1)[2:])
    assert text.count("1") == len(chosen)


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_gets_the_map(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    chosen = sites(4)
    ranks = {site.path: 2 for site in chosen}
    output.ranks(chosen, ranks, ranks | {"decoder.1.attn.k": 3, "decoder.2.attn.o": 0})
    text = screen.getvalue()
    if not terminal:
        assert not text
        return
    assert "\x1b[1;32m3▴ " in text
    assert "\x1b[1;35m·▾ " in text
