"""Tokens and marks: nothing merges across a boundary, nothing is cut silently."""

from __future__ import annotations

import numpy as np
import pytest
from chat_templates import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, GPT2Config

from loratlas.data.encode import _shortened, encode, load_tokenizer, opening_ids, pad_id
from loratlas.data.load_rows import load_rows
from loratlas.data.model_limits import check_fits
from loratlas.data.rows import Row, Rows, Turn
from loratlas.errors import DataError, ModelError

END = 256  # the byte tokenizer's first special token


def rows_of(*pairs: tuple[str, str], form: str = "prompt") -> Rows:
    rows = tuple(
        Row(
            turns=(Turn(role="user", content=asked), Turn(role="assistant", content=answer)), source_row=place
        )
        for place, (asked, answer) in enumerate(pairs)
    )
    return Rows(rows=rows, form=form, source="here")


def texts(*contents: str) -> Rows:
    rows = tuple(Row(turns=(Turn(role="text", content=c),), source_row=n) for n, c in enumerate(contents))
    return Rows(rows=rows, form="text", source="here")


def test_answers_and_their_end_are_labelled_and_nothing_else(tokenizer):
    (example,) = encode(rows_of(("ab", "xyz")), tokenizer, max_length=64).examples
    assert tokenizer.decode(example.input_ids) == "ab\n\nAnswer:\nxyz<|end|>"
    assert tokenizer.decode(example.input_ids[example.labelled]) == "xyz<|end|>"
    assert example.input_ids.dtype == np.int32
    assert example.input_ids[-1] == END


def test_loss_all_labels_everything_but_the_first_token(tokenizer):
    (example,) = encode(rows_of(("ab", "xyz")), tokenizer, max_length=64, loss="all").examples
    assert example.labelled.tolist() == [False] + [True] * (len(example) - 1)


def test_text_is_labelled_from_its_second_token(tokenizer):
    (example,) = encode(texts("abc"), tokenizer, max_length=64).examples
    assert example.labelled.tolist() == [False, True, True, True]


def test_the_report_adds_up_and_the_digest_follows_the_tokens(tokenizer):
    data = rows_of(("a", "b"), ("c" * 50, "d"), ("e", "f" * 99), ("g", ""), ("h", "i"))
    encoded = encode(data, tokenizer, max_length=32)
    report = encoded.report
    assert (report.rows, report.kept, report.cut, report.dropped, report.empty) == (5, 3, 1, 1, 1)
    assert [example.row for example in encoded.examples] == [0, 1, 4]
    assert report.tokens == sum(len(example) for example in encoded.examples)
    assert report.answer_tokens == 6  # three letters, each with its end
    for words in ("3 of 5 rows", "1 cut", "1 dropped", "1 left out"):
        assert words in report.sentence()
    assert encoded.digest == encode(data, tokenizer, max_length=32).digest
    assert encoded.digest != encode(data, tokenizer, max_length=33).digest
    assert encoded.digest != encode(data, tokenizer, max_length=32, loss="all").digest


def test_prompts_are_cut_from_their_left_and_answers_never(tokenizer):
    (example,) = encode(rows_of(("0123456789", "xyz")), tokenizer, max_length=20).examples
    assert len(example) == 20
    assert tokenizer.decode(example.input_ids[example.labelled]) == "xyz<|end|>"
    assert tokenizer.decode(example.input_ids).endswith("89\n\nAnswer:\nxyz<|end|>")


def test_an_answer_keeps_one_token_before_it_or_the_row_is_dropped(tokenizer):
    data = rows_of(("ab", "xyz"))
    (example,) = encode(data, tokenizer, max_length=5).examples
    assert tokenizer.decode(example.input_ids) == "\nxyz<|end|>"
    with pytest.raises(DataError, match=r"all rows too long.*larger --max-length"):
        encode(data, tokenizer, max_length=4)


def test_a_conversation_loses_whole_early_exchanges(tokenizer):
    turns = [Turn(role="user", content="q1"), Turn(role="assistant", content="first answer")]
    turns += [Turn(role="user", content="q2"), Turn(role="assistant", content="second")]
    row = Row(turns=tuple(turns), source_row=0)
    data = Rows(rows=(row,), form="messages", source="here")
    (whole,) = encode(data, tokenizer, max_length=99).examples
    kept = tokenizer.decode(encode(data, tokenizer, max_length=len(whole) - 3).examples[0].input_ids)
    assert kept.startswith("\nAnswer:\nfirst answer<|end|>q2")
    short = encode(data, tokenizer, max_length=30).examples[0]
    assert tokenizer.decode(short.input_ids) == "q2\n\nAnswer:\nsecond<|end|>"
    assert tokenizer.decode(short.input_ids[short.labelled]) == "second<|end|>"


def test_long_text_keeps_its_beginning(tokenizer):
    encoded = encode(texts("abcdefgh"), tokenizer, max_length=4)
    assert tokenizer.decode(encoded.examples[0].input_ids) == "abcd"
    assert encoded.report.cut == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.data())
def test_cutting_keeps_the_end_and_splits_no_answer(exchanges, data):
    labelled = np.concatenate([np.repeat([False, True], pair) for pair in exchanges])
    opening = data.draw(st.integers(0, 1))
    labelled = np.concatenate([np.zeros(opening, dtype=bool), labelled])
    limit = data.draw(st.integers(2, max(2, len(labelled) - 1)))
    if limit >= len(labelled):
        return
    kept = _shortened(labelled, limit, opening, keeps_head=False)
    last = exchanges[-1][1]
    if kept is None:
        assert last + 1 > limit  # the answer and one token before it do not fit
        return
    assert last + 1 <= limit
    assert len(kept) <= limit
    assert kept[-1] == len(labelled) - 1
    assert kept[:opening].tolist() == list(range(opening))
    body = kept[opening:]
    assert (np.diff(body) == 1).all()
    if labelled[body[0]]:  # an answer that is kept is kept from its first token on
        assert not labelled[body[0] - 1]
        assert opening == 1


def test_begin_tokens_follow_the_tokenizers_convention(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begin = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    begin.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin.bos_token_id)]
    )
    assert opening_ids(begin) == [begin.bos_token_id]
    assert opening_ids(tokenizer) == []
    long = encode(rows_of(("0123456789", "xyz")), begin, max_length=18).examples[0]
    assert long.input_ids[0] == begin.bos_token_id
    assert len(long) == 18
    assert begin.decode(long.input_ids[1:]).endswith("\n\nAnswer:\nxyz</s>")


def test_a_chat_template_writes_its_own_begin_token(chat_tokenizer):
    from chat_templates import BRACKETS

    chat_tokenizer.chat_template = BRACKETS
    (example,) = encode(rows_of(("a", "b")), chat_tokenizer, max_length=64).examples
    assert (example.input_ids == chat_tokenizer.bos_token_id).sum() == 1
    assert "chat template" in encode(rows_of(("a", "b")), chat_tokenizer, max_length=64).template


def test_no_pad_token_is_needed_and_none_is_added(tokenizer):
    before = len(tokenizer)
    assert tokenizer.pad_token_id is None
    assert encode(rows_of(("a", "b")), tokenizer, max_length=64).pad_id == END
    assert len(tokenizer) == before
    assert tokenizer.pad_token_id is None
    assert pad_id(byte_tokenizer(pad_token="<pad>", eos_token="</s>")) == 257  # after the end token
    assert pad_id(byte_tokenizer()) == 0


@pytest.mark.parametrize("source", ["gpt2", "bert-base-uncased", "t5"])
def test_real_tokenizers_agree_with_their_own_call(shared, source):
    tokenizer = load_tokenizer(shared(f"tokenizers/{source}"))
    data = rows_of(("Where does the sun set?", "In the west."), ("Why?", "Because."))
    encoded = encode(data, tokenizer, max_length=64)
    end = tokenizer.eos_token or tokenizer.sep_token
    for example, row in zip(encoded.examples, data.rows, strict=True):
        asked = tokenizer(row.turns[0].content + "\n\nAnswer:\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(row.turns[1].content + end, add_special_tokens=False)["input_ids"]
        assert example.input_ids.tolist() == [*opening_ids(tokenizer), *asked, *answer]
        assert example.input_ids[example.labelled].tolist() == answer


def test_real_answers_under_gpt2_are_as_long_as_their_card_says(shared):
    tokenizer = load_tokenizer(shared("tokenizers/gpt2"))
    rows = load_rows(str(shared("data/alpaca_eval.jsonl.gz")))
    report = encode(rows, tokenizer, max_length=1024).report
    assert report.kept == 2000 - report.empty
    assert 56 < report.answer_tokens / report.kept < 60  # the card: 58
    assert report.tokens / report.kept < 108  # the card's template is longer than ours


def test_no_answer_anywhere_is_an_error(tokenizer):
    with pytest.raises(DataError, match="zero answer tokens"):
        encode(rows_of(("a", ""), ("b", "  ")), tokenizer, max_length=64)
    row = Row(turns=(Turn(role="user", content="alone"),), source_row=0)
    alone = Rows(rows=(row,), form="messages", source="here")
    with pytest.raises(DataError, match="zero answer tokens"):
        encode(alone, tokenizer, max_length=64)
    assert encode(alone, tokenizer, max_length=64, loss="all").report.kept == 1


@pytest.mark.parametrize(
    ("options", "words"), [({"max_length": 1}, "max-length 1"), ({"loss": "none"}, "loss none")]
)
def test_senseless_options_are_refused(tokenizer, options, words):
    with pytest.raises(DataError, match=words):
        encode(rows_of(("a", "b")), tokenizer, **{"max_length": 8, **options})


def test_a_missing_tokenizer_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_examples_beyond_the_models_positions_are_refused(tokenizer):
    encoded = encode(rows_of(("ab", "xyz" * 40)), tokenizer, max_length=256)
    check_fits(encoded, GPT2Config(n_positions=256))
    check_fits(encoded, BloomConfig())  # its attention knows distances, not positions
    with pytest.raises(DataError) as caught:
        check_fits(encoded, GPT2Config(n_positions=64))
    assert "64 positions" in caught.value.found
    assert "at most 64" in caught.value.instead
