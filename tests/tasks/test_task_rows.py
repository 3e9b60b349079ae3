"""From rows to the task they are for, and to its examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tasks.conftest import pairs, sentences, tokenizer, write
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    T5Config,
)

from loratlas.data.batches.batching import collate
from loratlas.data.batches.packing import forward
from loratlas.data.load_rows import load_rows
from loratlas.data.task_examples import encode_for, label_set
from loratlas.errors import DataError, ModelError
from loratlas.models.task import Task, for_task, recognise
from loratlas.study.execution.run_records import load_encoded, save_encoded

CLASSES = Task(name="classification", labels=("bad", "good"))
TARGETS = Task(name="seq2seq")


@pytest.mark.parametrize(
    ("config", "form", "asked", "task"),
    [
        (LlamaConfig(), "alpaca", None, "causal"),
        (LlamaConfig(), "label", None, "classification"),
        (LlamaConfig(), "label", "causal", "causal"),
        (BertConfig(), "label", None, "classification"),
        (T5Config(), "prompt", None, "seq2seq"),
        (T5Config(), "label", "seq2seq", "seq2seq"),
        (T5Config(), "label", "classification", "classification"),
    ],
)
def test_the_task_follows_from_rows_and_architecture(config, form, asked, task):
    assert recognise(config, form, asked=asked) == task


@pytest.mark.parametrize(
    ("config", "form", "asked", "words"),
    [
        (T5Config(), "label", None, "two tasks fit"),
        (T5Config(), "text", None, "no target to write"),
        (T5Config(), "prompt", "causal", "no class for it"),
        (BertConfig(), "label", "causal", "no class for it"),
        (T5Config(), "text", "seq2seq", "no target to write"),
        (BertConfig(), "prompt", None, "nothing that an encoder"),
        (BertConfig(), "text", None, "nothing that an encoder"),
        (BertConfig(), "prompt", "classification", "no field 'label'"),
        (LlamaConfig(), "prompt", "seq2seq", "no class for it"),
    ],
)
def test_what_does_not_fit_is_said(config, form, asked, words):
    with pytest.raises((DataError, ModelError), match=words):
        recognise(config, form, asked=asked)


def rows(tmp_path, records):
    return load_rows(str(write(tmp_path / "rows.jsonl", records)))


def test_labels_are_numbers_in_order_or_words_in_order(tmp_path):
    numbers = [{"text": "w5", "label": label} for label in (10, 2, 3, 2)]
    assert label_set(rows(tmp_path, numbers)) == ("2", "3", "10")
    assert label_set(rows(tmp_path, sentences(4))) == ("bad", "good")
    with pytest.raises(DataError, match="the same label, 'bad', on all 1 rows"):
        label_set(rows(tmp_path, sentences(1)))
    with pytest.raises(DataError, match="no labels"):
        label_set(rows(tmp_path, pairs(3)))


def test_a_label_that_the_model_does_not_know_is_named_with_its_row(tmp_path):
    strange = [*sentences(2), {"text": "w5", "label": "so-so"}]
    with pytest.raises(
        DataError, match=r"row 3\. Found: the label 'so-so', which .* Instead: one of bad, good"
    ):
        encode_for(CLASSES, rows(tmp_path, strange), tokenizer("bert"), config=BertConfig(), max_length=9)


def test_texts_are_written_as_the_tokenizer_writes_them(tmp_path):
    given = [{"text": "w5 w6", "label": "good"}, {"text": "w7 " * 9, "label": "bad"}]
    encoded = encode_for(CLASSES, rows(tmp_path, given), tokenizer("bert"), config=BertConfig(), max_length=6)
    assert [e.input_ids.tolist() for e in encoded.examples] == [[1, 5, 6, 2], [1, 7, 7, 7, 7, 2]]
    assert [e.label for e in encoded.examples] == [1, 0]
    assert (encoded.report.cut, encoded.report.answer_tokens, encoded.report.kept) == (1, 2, 2)
    # Neither cutting stays with the tokenizer, nor filling.
    assert len(tokenizer("bert")("w5 " * 20)["input_ids"]) == 22


def test_pairs_keep_which_text_a_token_belongs_to(tmp_path):
    given = [
        {"text": "w5", "text_pair": "w6 w7", "label": "good"},
        {"text": "w5 w6 w7", "text_pair": "w8", "label": "bad"},
    ]
    made = tokenizer("bert")
    encoded = encode_for(CLASSES, rows(tmp_path, given), made, config=BertConfig(), max_length=9)
    assert encoded.examples[0].input_ids.tolist() == [1, 5, 2, 6, 7, 2]
    assert encoded.examples[0].types.tolist() == [0, 0, 0, 1, 1, 1]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=101, **sizes)).eval()
    batch = collate(encoded.examples, packed=False, pad_id=encoded.pad_id)
    texts = [[row[name] for row in given] for name in ("text", "text_pair")]
    whole = made(*texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(forward(model, batch), model(**whole).logits)
    save_encoded(tmp_path / "kept.npz", encoded)
    again = load_encoded(tmp_path / "kept.npz")
    assert (again.task, again.digest) == (encoded.task, encoded.digest)
    for one, other in zip(encoded.examples, again.examples, strict=True):
        assert one.label == other.label
        assert np.array_equal(one.types, other.types)


def test_sources_and_targets_are_cut_and_dropped_apart(tmp_path):
    given = [
        {"prompt": "w5 w6", "completion": "w7"},
        {"prompt": "w5 " * 9, "completion": "w7"},
        {"prompt": "w5", "completion": "w7 " * 9},
        {"prompt": "w5", "completion": " "},
    ]
    encoded = encode_for(TARGETS, rows(tmp_path, given), tokenizer("t5"), config=T5Config(), max_length=5)
    assert [e.input_ids.tolist() for e in encoded.examples] == [[5, 6, 2, 7, 2], [5, 5, 5, 5, 2, 7, 2]]
    assert [e.source for e in encoded.examples] == [3, 5]
    report = encoded.report
    assert (report.kept, report.cut, report.dropped, report.empty, report.answer_tokens) == (2, 1, 1, 1, 4)
    save_encoded(tmp_path / "kept.npz", encoded)
    again = load_encoded(tmp_path / "kept.npz")
    assert [e.source for e in again.examples] == [3, 5]
    assert again.task == TARGETS
    with pytest.raises(DataError, match="only the target is predicted"):
        encode_for(
            TARGETS, rows(tmp_path, given), tokenizer("t5"), config=T5Config(), max_length=5, loss="all"
        )


def test_what_splits_a_row_is_in_the_digest(tmp_path):
    def digest(task, kind, config, records):
        return encode_for(task, rows(tmp_path, records), tokenizer(kind), config=config, max_length=9).digest

    one = {"text": "w5 w6", "label": "good"}
    both = digest(CLASSES, "bert", BertConfig(), [one])
    assert both != digest(CLASSES, "bert", BertConfig(), [{**one, "label": "bad"}])
    target = {"prompt": "w5 w6", "completion": "w7"}
    ends = encode_for(TARGETS, rows(tmp_path, [target]), tokenizer("gpt2"), config=T5Config(), max_length=9)
    assert ends.examples[0].input_ids.tolist() == [5, 6, 7, 2]  # this tokenizer ends no text by itself
    assert digest(TARGETS, "gpt2", T5Config(), [target]) != digest(
        TARGETS, "gpt2", T5Config(), [{"prompt": "w5", "completion": "w6 w7"}]
    )


def test_positions_begin_behind_the_padding_of_roberta(tmp_path):
    config = RobertaConfig(max_position_embeddings=10, vocab_size=101)  # pad 1: positions 2 to 9
    long = [{"text": "w5 " * 7, "label": "good"}]
    with pytest.raises(DataError, match="a model of 8 positions"):
        encode_for(CLASSES, rows(tmp_path, long), tokenizer("bert"), config=config, max_length=20)


def test_an_end_token_inside_a_text_is_said_where_it_decides(tmp_path):
    config = for_task(T5Config(vocab_size=101, eos_token_id=2), CLASSES)
    given = [{"text": "w5", "label": "good"}, {"text": "w5 [SEP] w6", "label": "bad"}]
    with pytest.raises(DataError, match=r"row 2.*2 end tokens after tokenisation, 1 in row 1"):
        encode_for(CLASSES, rows(tmp_path, given), tokenizer("t5"), config=config, max_length=9)


def test_a_decoder_without_anything_to_fill_rows_with_is_no_classifier():
    with pytest.raises(ModelError, match="neither a pad token nor an end token"):
        for_task(GPT2Config(), CLASSES)
    config = for_task(GPT2Config(), CLASSES, pad_id=7)
    assert (config.pad_token_id, config.num_labels) == (7, 2)
    assert GPT2Config().pad_token_id is None


def test_calls_are_no_target_and_a_target_of_no_weight_is_none(tmp_path):
    from transformers import T5Config

    from loratlas.data.rows import Row, Rows, Turn

    def encoded(answer):
        rows = (Row(turns=(Turn(role="user", content="w5"), answer), source_row=0),)
        made = Rows(rows=rows, form="messages", source="here")
        return encode_for(Task(name="seq2seq"), made, tokenizer("t5"), config=T5Config(), max_length=9)

    assert encoded(Turn(role="assistant", content="w6")).report.kept == 1
    with pytest.raises(DataError, match=r"message 2 of row 1, with tool_calls"):
        encoded(Turn(role="assistant", content="w6", extras={"tool_calls": [{"name": "look"}]}))
    with pytest.raises(DataError, match="1 rows without a text or a target"):
        encoded(Turn(role="assistant", content="w6", counted=False))
