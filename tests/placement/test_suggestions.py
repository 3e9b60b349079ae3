"""Every suggestion of every placement error is typed, and works."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.placement.toy import anatomy, decoder, mixture, site
from tests.tiny import tiny_anatomy

from loratlas.anatomy.sites import Unresolved
from loratlas.errors import PlacementError
from loratlas.placement.language import parse
from loratlas.placement.plan import place

WRONG_TEXTS = (
    "", "   ", "attention:x", "attention:", "attention:0", "attention:1.5", "attention:-4", "attention:autox",
    "atention:4", "q:4 + + v:4", "q:4 + - v", "q,", "q v", "- q", "q@", "q@:4", "q@4..4", "q@4..2", "q@2..", "q@top/0",
    "q@first0",
    "q@middle", "q@x:4", "decoder", "decoder:4", "vision:2", "router.q:2", "attn.c_prj:2", "q.k:2",
    '"h.0', '"h.0:4 + v:2', 'q + ""', "all - q:4", "q:4 v", "q:4 all", "q_prj:4", "q_proj:8", "c_proj:8",
    "c_attn:8", "query_key_value:8", "w1:8", "mixer:4", "xattn:2 + q:2", "q:2 + xattn:2", "q,router:4", "vision.q:4",
    "vision.all:4", "encoder.q:4", "all-lineer:4", "all - linear", "q@99:4", "q@6..99:4", "q@first99:4",
    "q@last99:4", "q@top/99:4", "head@0:4", "embed@1:4", "k:999", "k", "k:999!", "attention:4 + q:8",
    "q:8! + attention:4",
    "attention:4 + q", "q:4 - q", "q:4 - all", 'q:4 - "model.layers.99.attn.q"', '"layers.3.attn.q":4',
    '"transformer.h.0.attn.c_attm":4', '"nothing like it":4', "q:auto", "q@0:auto + v:4", "q:4 - nonsense",
    "ffn.donw:4", "feedforward.donw:4", "mlp.up_prj:4", "embed:1", "head.lm:1", "q:99999999999", "q@999999:2",
    "self_atn:4", "layers:4", "top/2:4", "attn q:4", "q;v:4", "q:4,v:4", "q/v", "QKV:4", "Attention:4", "lora:8",
)  # fmt: skip


def _inert():
    return anatomy(
        [
            site("h.0.q.weight", "attn.q", (24, 24), layer=0, flags=frozenset({"inert"})),
            site("h.0.k.weight", "attn.k", (24, 24), layer=0),
            site("h.0.x", "attn.v", (24, 24), layer=0, kind="parameter"),
        ],
        layers=1,
    )


def _unsure():
    item = Unresolved(path="x.q.weight", module="x.q", shape=(4, 4), reason="odd")
    return replace(decoder(), unresolved=(item,))


MODELS = {
    "llama": lambda: tiny_anatomy("llama"),
    "gpt2": lambda: tiny_anatomy("gpt2"),
    "toy": decoder,
    "mixture": mixture,
    "inert": _inert,
    "unidentified": _unsure,
}


def refusal(model, text):
    try:
        place(model, text)
    except PlacementError as error:
        return error
    return None


@pytest.mark.parametrize("name", MODELS)
def test_every_suggestion_of_every_error_works_when_typed(name):
    model, typed = MODELS[name](), 0
    for text in WRONG_TEXTS:
        error = refusal(model, text)
        if error is None:
            continue
        shown = [part for part in re.findall(r"`([^`]*)`", error.instead) if not part.startswith("loratlas ")]
        assert shown == list(error.suggestions), text
        for suggestion in shown:
            again = refusal(model, suggestion)
            # Where a text has two mistakes, the second one is told next; it lies behind the first.
            assert again is None or _further(error, again, text, suggestion), (text, suggestion, str(again))
            typed += again is None
    assert typed >= 50


def _further(error, again, text, suggestion):
    """Whether what is wrong now is another mistake, which the text had before as well."""
    return again.found != error.found and again.suggestions


@pytest.mark.parametrize("name", MODELS)
def test_typing_suggestions_always_ends_in_a_plan(name):
    model = MODELS[name]()
    for text in WRONG_TEXTS:
        seen = [text]
        while (error := refusal(model, seen[-1])) is not None:
            assert error.suggestions, (seen, str(error))
            assert error.suggestions[0] not in seen, seen
            seen.append(error.suggestions[0])
        assert len(seen) <= 7, seen


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_one_typing_mistake_is_mended_by_what_is_suggested(data):
    model = tiny_anatomy(data.draw(st.sampled_from(["llama", "gpt2", "gemma2"])))
    text = data.draw(
        st.sampled_from(["attention:4", "attn.o@0..2:2 + mlp:4", "all:4 - down@1", "down@top/2,ffn:3"])
    )
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(["", text[at] * 2, "z", "7"]))
    error = refusal(model, text[:at] + letter + text[at + 1 :])
    for suggestion in error.suggestions if error else ():
        again = refusal(model, suggestion)
        assert again is None or again.found != error.found


@pytest.mark.parametrize(
    "text",
    [
        '"********x":4',
        '"' + "*" * 5000 + 'x":4',
        '"' + "*a" * 3000 + '":4',
        '"' + "?*" * 3000 + 'x":4',
        "q:" + "9" * 5000,
        "q@" + "9" * 5000,
        "q@0.." + "9" * 5000,
        "q@top/" + "9" * 5000 + ":4",
        "q@first" + "9" * 5000 + ":4",
        " + ".join(["q:4"] * 100_000),
        ",".join(["q"] * 100_000),
        "q@" + ",".join(["0..99999"] * 100_000),
        "+" * 100_000,
        '"' * 100_001,
        "x" * 1_000_000,
        "x." * 1_000_000,
        "a" * 5_000_000,
        "q" + "\N{ARABIC-INDIC DIGIT THREE}" * 100_000,
        "q:4 + \x1b]0;owned\x07\x1b[2J",
        ",".join(f'"h.{i}.*"' for i in range(40_000)),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_a_hostile_placement_gets_a_sentence(text):
    # Processor time, so that a busy machine fails nothing; without bounds these take minutes, or for ever.
    began = time.process_time()
    error = refusal(tiny_anatomy("llama"), text)
    assert time.process_time() - began < 5
    assert error is not None
    assert len(error.found) < 500
    assert len(error.instead) < 1000


@pytest.mark.parametrize("text", [" - ".join(["all:4"] + ["q"] * 40_000), " + ".join(["q@0:4"] * 40_000)])
def test_a_long_placement_is_no_mistake(text):
    assert refusal(tiny_anatomy("llama"), text) is None


def test_terms_that_name_every_site_over_and_over_are_bounded():
    began = time.process_time()
    error = refusal(decoder(60), " + ".join(["all:4"] * 49_999))
    assert time.process_time() - began < 5
    assert error is not None
    assert "1,000,000 sites" in error.found
    assert refusal(decoder(60), error.suggestions[0]) is None


def test_a_long_text_is_answered_with_the_piece_to_change():
    text = " + ".join(["attn.q@0:4"] * 40) + " + ffn.donw:4"
    error = refusal(tiny_anatomy("llama"), text)
    assert error is not None
    assert "`ffn.down:4` there" in error.instead
    assert refusal(tiny_anatomy("llama"), error.suggestions[0]) is None


def test_the_exact_text_of_a_deep_model_is_read():
    # The identity of plan and text holds as well where every matrix has to be named.
    model = decoder(600)
    plan = place(model, "attention:4")
    paths = ",".join(f'"{row.site.module}"' for row in plan.rows)
    assert place(model, f"{paths}:4").rows == plan.rows
    assert parse(f"{paths}:4").text == f"{paths}:4"
