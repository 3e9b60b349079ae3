"""Text → terms → canonical text, and where a text that does not parse goes wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratlas.errors import PlacementError
from loratlas.placement.language import parse
from loratlas.placement.layer_ranges import Ends, Numbers, Part, numbers


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("attention", "attention"),
        ("mlp", "feedforward"),
        ("full:16", "all:16"),
        ("  q , v : 16+feedforward.down :4 ", "q,v:16 + feedforward.down:4"),
        ("mlp.down", "feedforward.down"),
        ("feedforward@top/2:8", "feedforward@top/2:8"),
        ("all - router", "all - router"),
        ("all-q", "all - q"),
        ("vision.attn.q@ bottom / 3", "vision.attn.q@bottom/3"),
        ("q@3,1,2", "q@1..4"),
        ("q@0..2,5", "q@0..2,5"),
        ("q@last8:4!", "q@last8:4!"),
        ("attention:auto", "attention:auto"),
        ("'h.0.*':2", '"h.0.*":2'),
        ("q,v@0,2:3 - v@2", "q,v@0,2:3 - v@2"),
        ("decoder.all", "decoder.all"),
        ("attention:016", "attention:16"),
        ("q_proj , v_proj:8", "q_proj,v_proj:8"),
        ("c_attn+mlp.c_proj:4", "c_attn + mlp.c_proj:4"),
        ("all-linear:8", "all-linear:8"),
        ("all-linear@0..2 - lm_head", "all-linear@0..2 - lm_head"),
        ("All-Linear:8", "all-linear:8"),
        ("all -linear_attn", "all - linear_attn"),
        ("vision.q_proj", "vision.q_proj"),
        ("model.layers.0.self_attn.q_proj:8", "model.layers.0.self_attn.q_proj:8"),
    ],
)
def test_canonical_text(written, canonical):
    assert parse(written).text == canonical
    assert parse(canonical).text == canonical


def test_terms_keep_what_was_written():
    first, second = parse('q,vision.mlp@0..4:8! - "h.*"@last2').terms
    assert [(n.scope, n.word, n.quoted) for n in first.names] == [
        (None, "q", False),
        ("vision", "feedforward", False),
    ]
    assert (first.adds, first.rank, first.force) == (True, 8, True)
    assert first.layers == Numbers(spans=((0, 4),))
    assert (second.adds, second.names[0].quoted, second.layers, second.rank) == (
        False,
        True,
        Ends(where="last", n=2),
        None,
    )


@pytest.mark.parametrize(
    ("text", "position", "word"),
    [
        ("", 0, "empty"),
        ("   ", 3, "empty"),
        ("attention:x", 10, "'x'"),
        ("attention:", 10, "end of the text"),
        ("attention:0", 10, "rank 0"),
        ("attention:1.5", 11, "behind the rank"),
        ("attention:-4", 10, "'-'"),
        ("attention:autox", 14, "behind auto"),
        ("q + + v", 4, "'+'"),
        ("q,", 2, "end of the text"),
        ("q v", 2, "'v'"),
        ("- q", 0, "'-'"),
        ("q@", 2, "end of the text"),
        ("q@4..4", 2, "holds no layer"),
        ("q@4..", 5, "end of the text"),
        ("q@top/0", 2, "count of 0"),
        ("q@first0", 2, "count of 0"),
        ("q@middle", 2, "'middle'"),
        ('"h.0', 0, "quotation"),
        ('q + ""', 4, "no path"),
        ("all - q:4", 8, "a rank"),
        ("q:4 v", 4, "'v'"),
    ],
)
def test_errors_point_at_the_character(text, position, word):
    with pytest.raises(PlacementError) as caught:
        parse(text)
    error = caught.value
    assert error.position == position
    assert word in error.found
    assert error.instead
    *_, caret = error.given.split("\n")
    assert caret.index("^") == 4 + position


def test_the_caret_of_a_long_text_stays_in_sight():
    text = " + ".join(["attn.q@0:4"] * 40) + " + !nonsense"
    with pytest.raises(PlacementError) as caught:
        parse(text)
    shown, caret = caught.value.given.strip("\n").split("\n")
    assert len(shown) < 110
    assert shown[caret.index("^") :].startswith("!nonsense")


@given(st.text(alphabet='qvkal@:+-,.!0123456789/" topfirst', max_size=30))
def test_every_text_parses_or_says_where_not(text):
    position, canonical = outcome(text)
    if canonical is None:
        assert position is not None
        assert 0 <= position <= len(text)
    else:
        assert outcome(canonical) == (None, canonical)


def outcome(text):
    """(None, canonical text), or (position of the error, None)."""
    try:
        return None, parse(text).text
    except PlacementError as error:
        return error.position, None


@given(st.integers(1, 200), st.integers(1, 200))
def test_nths_share_the_layers_out(layers, n):
    bottom, middle, top = (Part(where=where, n=n).of(layers) for where in ("bottom", "middle", "top"))
    if n > layers:
        assert bottom is middle is top is None
        return
    assert bottom
    assert middle
    assert top
    assert bottom[0] == 0
    assert top[-1] == layers - 1
    for part in (bottom, middle, top):
        assert abs(len(part) - layers / n) <= 1
    if n == 2:
        assert bottom + top == tuple(range(layers))
    if n == 3:
        assert bottom + middle + top == tuple(range(layers))


def test_top_is_the_end_nearest_the_output():
    assert Part(where="top", n=4).of(8) == (6, 7)
    assert Part(where="bottom", n=4).of(8) == (0, 1)
    assert Part(where="middle", n=2).of(8) == (2, 3, 4, 5)
    assert Ends(where="last", n=9).of(8) is None
    # Halves are rounded up.
    assert (Part(where="bottom", n=2).of(7), Part(where="top", n=2).of(7)) == ((0, 1, 2, 3), (4, 5, 6))


@given(st.sets(st.integers(0, 60), min_size=1))
def test_numbers_hold_exactly_their_layers(layers):
    written = numbers(layers)
    assert set(written.of(61) or ()) == layers
    assert parse(f"q@{written.text}").terms[0].layers == written
