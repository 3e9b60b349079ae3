"""Tokens and marks: nothing merges across a boundary, nothing is cut silently."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from chat_templates import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, GPT2Config

from loratlas.data.encode import _shortened, encode, load_tokenizer, opening_ids, pad_id
from loratlas.data.load_rows import load_rows
from loratlas.data.model_limits import fitted
from loratlas.data.rows import Row, Rows, Turn
from loratlas.demo import base_path
from loratlas.errors import DataError, ModelError

END = 256  # the byte tokenizer's first special token


def rows_of(*pairs: tuple[str, str], form: str = "prompt") -> Rows:
    rows = tuple(
        Row(
            turns=(Turn(role="user", content=asked), Turn(role="assistant", content=answer)), source_row=index
        )
        for index, (asked, answer) in enumerate(pairs)
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
    with pytest.raises(DataError, match=r"all rows too long.*larger max_length"):
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
    ("options", "words"), [({"max_length": 1}, "max_length=1"), ({"loss": "none"}, "loss='none'")]
)
def test_senseless_options_are_refused(tokenizer, options, words):
    with pytest.raises(DataError, match=words):
        encode(rows_of(("a", "b")), tokenizer, **{"max_length": 8, **options})


def test_a_longest_length_that_is_no_number_is_a_sentence(tmp_path):
    folder = shutil.copytree(base_path(), tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": "long"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="model_max_length 'long'"):
        load_tokenizer(folder)


def test_a_missing_tokenizer_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_examples_beyond_the_models_positions_are_refused(tokenizer):
    encoded = encode(rows_of(("ab", "xyz" * 40)), tokenizer, max_length=256)
    fitted(encoded, GPT2Config(n_positions=256))
    fitted(encoded, BloomConfig())  # its attention knows distances, not positions
    with pytest.raises(DataError) as caught:
        fitted(encoded, GPT2Config(n_positions=64))
    assert "64 positions" in caught.value.found
    assert "at most 64" in caught.value.instead


def test_a_token_beyond_the_embedding_is_a_sentence_with_both_sizes(chat_tokenizer):
    encoded = encode(rows_of(("ab", "xyz")), chat_tokenizer, max_length=64)
    with pytest.raises(DataError) as caught:
        fitted(encoded, GPT2Config(vocab_size=256))
    assert f"row 1: token 258 of a tokenizer of {len(chat_tokenizer)} tokens" in caught.value.given
    assert caught.value.found == "an embedding of 256 tokens"
    assert "resize_token_embeddings" in caught.value.instead


def test_a_pad_token_beyond_the_embedding_is_not_looked_up(tokenizer):
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    encoded = encode(rows_of(("ab", "xyz")), tokenizer, max_length=64)
    assert encoded.pad_id == 257
    assert fitted(encoded, GPT2Config(vocab_size=257)).pad_id == 0
    assert fitted(encoded, GPT2Config(vocab_size=258)).pad_id == 257


def test_half_a_surrogate_pair_is_a_sentence_with_its_row(tokenizer):
    with pytest.raises(DataError, match=r"row 1\. Found: half of a surrogate pair \('\\ud83d'\)"):
        encode(rows_of(("bad \ud83d half", "x")), tokenizer, max_length=64)


def test_a_begin_token_of_the_template_stays_when_rows_are_cut(chat_tokenizer):
    from chat_templates import BRACKETS, CHATML

    chat_tokenizer.chat_template = BRACKETS
    (example,) = encode(rows_of(("word " * 50, "The end.")), chat_tokenizer, max_length=30).examples
    assert chat_tokenizer.decode(example.input_ids).startswith("<s>")
    assert len(example) == 30
    chat_tokenizer.chat_template = CHATML  # its first token begins every turn, and is no begin token
    (example,) = encode(rows_of(("word " * 50, "The end.")), chat_tokenizer, max_length=40).examples
    assert example.input_ids[0] != chat_tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_answers_that_nothing_stops_and_those_with_other_white_space_are_reported(chat_tokenizer):
    from chat_templates import CHATML, NEXT_ROLE

    chat_tokenizer.chat_template = NEXT_ROLE
    assert encode(rows_of(("a", "b")), chat_tokenizer, max_length=64).report.unstopped == 1
    chat_tokenizer.chat_template = CHATML.replace("m.content", "m.content.replace('  ', ' ')")
    report = encode(rows_of(("a", "b  c")), chat_tokenizer, max_length=64).report
    assert (report.unstopped, report.respaced) == (0, 1)
    assert "whose white space the template changes" in report.sentence()


def test_a_token_that_joins_letters_of_the_template_and_of_the_answer_is_refused():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {symbol: n for n, symbol in enumerate([*map(chr, range(33, 127)), "Ċ", "Ġ"])}
    backend = Tokenizer(models.BPE(vocab=letters | {":)": 200}, merges=[(":", ")")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    joined = PreTrainedTokenizerFast(tokenizer_object=backend)
    joined.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"row 1\. Found: one token for ':' of the template and letters of the answer"
    ):
        encode(rows_of(("a", ")")), joined, max_length=64)
    (example,) = encode(rows_of(("a", "b")), joined, max_length=64).examples
    assert joined.decode(example.input_ids[example.labelled]) == "b"


def test_ids_are_those_of_the_whole_conversation_with_words_marked_at_their_front():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(33, 127)]
    backend = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate([*letters, "▁", "\n"])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    marked = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    marked.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    (example,) = encode(rows_of(("Name a fruit.", "Apple.")), marked, max_length=99).examples
    messages = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Apple."}]
    assert example.input_ids.tolist() == marked.apply_chat_template(messages, return_dict=False)
    asked = marked.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert example.input_ids[: int(example.labelled.argmax())].tolist() == asked
    assert marked.convert_ids_to_tokens(example.input_ids[example.labelled].tolist()) == [*"Apple.", "</s>"]


def test_a_folder_with_a_config_alone_has_no_tokenizer(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="spells nothing"):
        load_tokenizer(tmp_path)
