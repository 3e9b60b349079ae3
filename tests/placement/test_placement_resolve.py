"""Terms → sites: what each word holds, and every way in which a placement cannot be met."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.placement.toy import anatomy, block, decoder, mixture, site

from loratlas.anatomy.sites import Unresolved
from loratlas.errors import PlacementError
from loratlas.placement.language import parse
from loratlas.placement.resolve import resolve


def found(text, model=None, **more):
    return {
        s.path.removesuffix(".weight"): rank
        for s, rank in resolve(parse(text), model or decoder(), **{"default": 2, **more})
    }


def roles(text, model):
    return {s.role for s, _ in resolve(parse(text), model, default=1)}


def refuses(text, model=None):
    with pytest.raises(PlacementError) as caught:
        resolve(parse(text), model or decoder())
    return caught.value


def test_sets_hold_what_the_design_says():
    model = decoder()
    assert roles("attention", model) == {"attn.q", "attn.k", "attn.v", "attn.o"}
    assert roles("feedforward", model) == {"ffn.gate", "ffn.up", "ffn.down"}
    assert roles("all", model) == roles("attention", model) | roles("feedforward", model)
    assert len(found("all", model)) == 8 * 7


def test_routers_gates_embeddings_heads_and_other_towers_only_when_named():
    model = mixture()
    dense = anatomy([s for s in model.sites if s.kind != "experts"], layers=2)
    assert roles("all", dense) == {"attn.q", "attn.o", "shared.up", "mixer.out"}
    assert roles("router:1", model) == {"router"}
    assert roles("shared_gate:1", model) == {"shared_gate"}
    assert roles("attn.rel", model) == {"attn.rel"}
    assert roles("mixer", model) == {"mixer.decay", "mixer.out"}
    assert {s.scope for s, _ in resolve(parse("q:1"), model)} == {"decoder"}
    assert {s.scope for s, _ in resolve(parse("vision.q:1"), model)} == {"vision"}
    assert roles("vision.all", model) == {"attn.q", "ffn.up"}
    assert roles("embed:4", decoder()) == {"embed"}
    assert roles("head:4", decoder()) == {"head.lm"}


def test_words_layers_and_ranks():
    assert found("q@0..2:4") == {"model.layers.0.attn.q": 4, "model.layers.1.attn.q": 4}
    assert list(found("down@top/4")) == ["model.layers.6.ffn.down", "model.layers.7.ffn.down"]
    assert found("feedforward.down@0 + attention.q@0:3", default=5) == {
        "model.layers.0.attn.q": 3,
        "model.layers.0.ffn.down": 5,
    }
    assert found("q@0:auto + k@0", default="auto") == {
        "model.layers.0.attn.q": None,
        "model.layers.0.attn.k": None,
    }


def test_layers_are_counted_in_the_tower_of_the_site():
    assert list(found("vision.q@last1", mixture())) == ["vision.layers.3.attn.q"]


def test_paths_are_whole_names():
    assert list(found('"model.layers.3.attn.q"')) == ["model.layers.3.attn.q"]
    assert list(found('"model.layers.3.attn.q.weight"')) == ["model.layers.3.attn.q"]
    assert list(found('"model.layers.?.attn.o"@0..2')) == ["model.layers.0.attn.o", "model.layers.1.attn.o"]
    assert len(found('"model.layers.3.*"')) == 7
    error = refuses('"layers.3.attn.q"')
    assert '"model.layers.3.attn.q"' in error.instead


def test_a_dot_in_a_path_is_a_dot():
    model = anatomy([site("aXb.weight", "attn.q", (8, 8)), site("a.b.weight", "attn.k", (8, 8))], layers=1)
    assert list(found('"a.b"', model)) == ["a.b"]


def test_order_of_terms_and_of_sites():
    assert found("v@0:2 + q@0:2") == found("q@0:2 + v@0:2")
    assert list(found("v@0:2 + q@0:2")) == ["model.layers.0.attn.q", "model.layers.0.attn.v"]
    # From left to right: what is put in again stays.
    assert found("q@0..2:2 - q@0 + q@0:4") == {"model.layers.0.attn.q": 4, "model.layers.1.attn.q": 2}


def test_contradicting_ranks_need_an_exclamation_mark():
    error = refuses("attention:4 + q@0:8")
    assert "two ranks for model.layers.0.attn.q" in error.found
    assert error.position == len("attention:4 + q@0:")
    assert found("attention@0:4 + q@0:8!")["model.layers.0.attn.q"] == 8
    assert found("attention@0:4 + q@0:4")["model.layers.0.attn.q"] == 4
    assert "two ranks" in refuses("attention:4 + q").found
    # The mark is the later term's: an earlier one does not shield its rank.
    assert "two ranks" in refuses("q:8! + attention:4").found


def test_a_rank_beyond_the_matrix_is_refused():
    assert "at most 8" in refuses("k:9").instead
    assert found("k@0:8") == {"model.layers.0.attn.k": 8}
    assert "(the default)" in refuses("k").found


def test_nothing_found_names_what_is_near():
    fused = anatomy([site("h.0.qkv.weight", "attn.qkv", (48, 16), layer=0)], layers=1)
    assert "attn.qkv" in refuses("q:4", fused).instead
    assert "attn.qkv" in refuses("attention.v:4", fused).instead
    assert "decoder" in refuses("vision.all:4", fused).instead
    assert refuses("attn.q:4 + xattn:2").position == len("attn.q:4 + ")
    assert "0 to 7" in refuses("q@8:4").found
    assert "0 to 7" in refuses("q@6..9:4").found
    assert "is in no layer" in refuses("head@0:4").found


def test_each_name_of_a_list_must_find_something():
    error = refuses("q,router:4")
    assert error.position == 2


def test_taking_away_what_is_not_there():
    assert found("q@0:4 - router") == {"model.layers.0.attn.q": 4}
    assert found("q@0:4 - k") == {"model.layers.0.attn.q": 4}
    assert refuses('q:4 - "model.layers.99.attn.q"').position == 6
    assert "0 to 7" in refuses("q:4 - q@9").found
    assert "nothing is left" in refuses("q:4 - q").found


def test_what_cannot_carry_an_adapter_is_refused_with_the_reason():
    model = mixture()
    assert "model.layers.0.experts.gate_up" in found("all:1", model)
    raw = anatomy([site("h.0.q", "attn.q", (8, 8), layer=0, kind="parameter")], layers=1)
    assert "kind parameter" in refuses("all:1", raw).found
    assert "attn.q" in refuses("all:1", raw).instead
    assert "shares its weights" in refuses("embed:1", model).found
    assert "shares its weights" in refuses("head.lm:1", model).found
    inert = anatomy([site("h.0.q.weight", "attn.q", (8, 8), layer=0, flags=frozenset({"inert"}))], layers=1)
    assert "of no effect" in refuses("q:1", inert).found


def test_an_unresolved_matrix_is_named_with_its_reason():
    base = decoder(1)
    unresolved = Unresolved(path="model.odd.weight", module="model.odd", shape=(4, 4), reason="nobody knows")
    model = type(base).from_json({**base.to_json(), "unresolved": [unresolved.to_json()]})
    assert "nobody knows" in refuses('"model.odd":1', model).found
    assert "nobody knows" in refuses("router:1", model).found
    with pytest.raises(PlacementError, match="1 matrices are unresolved"):
        resolve(parse("router:1"), model, allow_unresolved=True)


def test_a_model_of_one_block_has_layers():
    assert list(found("q@0:2", anatomy(block(0), layers=1))) == ["model.layers.0.attn.q"]


def test_only_unknown_matrices_that_a_name_may_mean_stand_in_its_way():
    def with_(**changes):
        item = Unresolved(path="x.weight", module="x", shape=(4, 4), reason="odd", **changes)
        return replace(decoder(), unresolved=(item,))

    query, gate = (with_(opinions=(opinion,)) for opinion in ("names: attn.q", "trace: *.gate"))
    found("feedforward", query)
    found("up - attention", query)
    found("all", with_(scope="vision"))
    assert found("all", query, allow_unresolved=True) == found("all")
    for model, text in ((query, "q"), (query, "all"), (gate, "feedforward"), (with_(), "q")):
        assert "x.weight (odd)" in refuses(text, model).found
