"""Plans: law 7's identities, the published arithmetic, golden JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.placement.toy import anatomy, block, decoder
from tests.tiny import TYPES, tiny_anatomy

from loratlas.errors import PlacementError, SettingsError
from loratlas.placement.plan import Plan, place

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plan.json"
MODEL = decoder(6)
TOWERS = anatomy(
    [
        site
        for layer in range(3)
        for scope in ("decoder", "encoder", "vision")
        for site in block(layer, scope=scope, shapes={"attn.q": (8, 8), "attn.v": (8, 8), "ffn.up": (12, 8)})
    ],
    layers=3,
)


@pytest.mark.parametrize(
    ("text", "trainable", "less_than_full_lora", "less_than_full_tuning"),
    [
        ("full:16", 6_291_456, 0.0, 0.9823),
        ("attention:16", 2_359_296, 0.6250, 0.9934),
        ("feedforward:8", 1_966_080, 0.3750, 0.9945),
    ],
)
def test_the_published_arithmetic(shared, text, trainable, less_than_full_lora, less_than_full_tuning):
    plan = place(_dialogpt(str(shared("models/dialogpt-medium-config"))), text)
    assert plan.trainable == trainable
    assert plan.parameters == 354_823_168
    assert round(1 - plan.of_model, 4) == less_than_full_tuning
    assert plan.of_full_lora == pytest.approx(1 - less_than_full_lora)


_READ: dict[str, object] = {}


def _dialogpt(path):
    from loratlas.anatomy.read import read

    return _READ.setdefault(path, _READ.get(path) or read(path))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_plan_to_text_to_plan_is_the_identity(data):
    model = data.draw(st.sampled_from([MODEL, TOWERS]))
    sites = data.draw(st.lists(st.sampled_from(model.sites), min_size=1, unique=True))
    chosen = [site for site in sites if site.role not in ("embed", "head.lm")]
    if not chosen:
        return
    text = " + ".join(f'"{site.module}":{data.draw(st.integers(1, 4))}' for site in chosen)
    plan = place(model, text)
    again = place(model, plan.text)
    assert again.rows == plan.rows
    assert again.text == plan.text == again.placement
    assert again.digest == plan.digest
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("model_type", TYPES)
def test_identity_on_every_type(model_type):
    model = tiny_anatomy(model_type)
    for text in (
        "all:3",
        "attention@top/2:2 + feedforward:1",
        "ffn.down:2 + attn.o@0:3",
        "all:2 - ffn.down@0",
    ):
        plan = place(model, text)
        assert place(model, plan.text).rows == plan.rows
        assert Plan.from_json(plan.to_json()) == plan
    budgeted = place(model, "all", budget="params=10%")
    assert place(model, budgeted.text).rows == budgeted.rows


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("full:2", "all:2"),
        ("q,k,v,o:2 + mlp:2", "all:2"),
        ("all:2 - k", "attn.q,attn.v,attn.o,feedforward:2"),
        ("attention@0..3:2 + attention@3..6:2", "attention:2"),
        ("all:2 + down@5:4!", "all@0..5:2 + attention,ffn.gate,ffn.up@5:2 + ffn.down@5:4"),
        ('"model.layers.2.attn.q":1', "attn.q@2:1"),
        ("head:2", "head:2"),
    ],
)
def test_the_text_is_short_where_words_fit(written, text):
    plan = place(MODEL, written)
    assert place(MODEL, text).rows == plan.rows
    assert len(plan.text) <= len(text) + 12


def test_alpha_and_scale():
    assert {row.alpha for row in place(MODEL, "q:3 + v:2").rows} == {6.0, 4.0}
    fixed = place(MODEL, "q:4", alpha=32)
    assert {row.scaling(rslora=False) for row in fixed.rows} == {8.0}
    assert {row.scaling(rslora=True) for row in fixed.rows} == {16.0}
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SettingsError):
            place(MODEL, "q:4", alpha=alpha)


def test_default_rank_is_16_and_auto_with_a_budget():
    assert {row.rank for row in place(MODEL, "q").rows} == {16}
    plan = place(MODEL, "q", budget="params=1000")
    assert {row.rank for row in plan.rows} == {4, 5}
    assert plan.budget == "params=1000"
    assert place(MODEL, "q:2").budget is None


def test_of_full_lora_is_coverage():
    assert place(MODEL, "all:1").of_full_lora == 1.0
    assert place(MODEL, "all@0..3:7").of_full_lora == pytest.approx(0.5)
    assert place(MODEL, "all@0..3:7 + all@3..6:2").of_full_lora == 1.0


def test_the_digest_names_what_is_done_not_how_it_was_written():
    one = place(MODEL, "attention:4")
    assert place(MODEL, "q,k,v,o:4").digest == one.digest
    for other in (
        place(MODEL, "attention:5"),
        place(MODEL, "attention:4", alpha=1),
        place(MODEL, "attention:4", rslora=True),
    ):
        assert other.digest != one.digest


def test_json_of_another_kind_or_tampered_is_refused():
    data = place(MODEL, "q:4").to_json()
    with pytest.raises(PlacementError, match="schema"):
        Plan.from_json({**data, "schema": "loratlas.map"})
    data["sites"][0]["rank"] = 5
    with pytest.raises(PlacementError, match="digest"):
        Plan.from_json(data)


def test_golden_plan_json():
    plan = place(decoder(2), "q,v:4 + feedforward.down@last1:2", alpha=8)
    assert plan.to_json() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_towers_of_unlike_depth_keep_a_short_text():
    shapes = {"attn.q": (8, 8)}
    model = anatomy(
        [
            s
            for scope, n in (("encoder", 3), ("decoder", 6))
            for i in range(n)
            for s in block(i, scope=scope, shapes=shapes)
        ],
        layers=6,
    )
    plan = place(model, "q@1:2 + decoder.q@5:2")
    assert [row.site.layer for row in plan.rows] == [1, 1, 5]
    assert '"' not in plan.text
    assert place(model, plan.text).rows == plan.rows
