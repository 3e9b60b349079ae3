"""Which class of a base a row's label is: by name without case, by number, and never by a guess."""

from __future__ import annotations

import json

import pytest
from transformers import BertConfig

from loratlas.models.labels import knows, label_index, own_labels


def classifier(*names: str) -> BertConfig:
    config = BertConfig(id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)})
    config.architectures = ["BertForSequenceClassification"]
    return config


def test_names_that_only_count_are_numbers():
    for names in (("LABEL_0", "LABEL_1"), ("label_0", "label_1"), ("Class 0", "Class 1"), ("0", "1")):
        assert own_labels(classifier(*names)) == ("0", "1")
    assert own_labels(classifier("POSITIVE", "NEGATIVE")) == ("POSITIVE", "NEGATIVE")
    assert own_labels(classifier("LABEL_1", "LABEL_0")) == ("LABEL_1", "LABEL_0")
    assert own_labels(BertConfig()) == ()


@pytest.mark.parametrize(
    ("label", "labels", "index"),
    [
        ("negative", ("POSITIVE", "NEGATIVE"), 1),
        (" Yes", ("no", "yes"), 1),
        ("yes", ("Yes", "yes"), 1),
        ("YES", ("Yes", "yes"), None),
        (1, ("no", "yes"), 1),
        (2, ("no", "yes"), None),
        (1, ("1", "0"), 0),
        (2, ("5", "7", "9"), None),
        (1, ("1 star", "2 stars", "3 stars"), None),
        (1, ("LABEL_1", "LABEL_0"), None),
        (1, ("level 0", "level 1"), 1),
        (1, ("no", "top 40"), 1),
        ("0" * 5000 + "1", ("no", "yes"), None),
        ("positive", ("0", "1"), None),
    ],
)
def test_a_label_is_one_class_or_none(label, labels, index):
    assert label_index(label, labels) == index


def test_classes_are_known_where_every_label_is_one_of_them():
    assert knows(("NEGATIVE", "POSITIVE"), ["positive", "negative"])
    assert knows(("NEGATIVE", "POSITIVE"), ["positive"])
    assert not knows(("NEGATIVE", "POSITIVE"), ["positive", "neutral"])
    assert not knows(("0", "1"), ["positive", "negative"])
    assert not knows((), ["positive"])
    assert not knows(("yes", "no"), ["Yes", "yes"])  # two labels of the rows, one class of the base


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("POSITIVE", "NEGATIVE"), True),
        (("LABEL_0", "LABEL_1"), False),
        (("spam", "ham"), False),
    ],
)
def test_a_head_for_other_labels_is_no_trained_head(names, kept, tmp_path):
    import torch
    from tests.data.chat_templates import byte_tokenizer
    from transformers import BertForSequenceClassification

    from loratlas.data.load_rows import load_rows
    from loratlas.models.heads import new_head
    from loratlas.models.load import load_model
    from loratlas.sources import open_task

    config = classifier(*names)
    for name, value in (("hidden_size", 16), ("num_hidden_layers", 1), ("num_attention_heads", 2)):
        setattr(config, name, value)
    config.intermediate_size, config.vocab_size = 16, 300
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": "a", "label": label}) + "\n" for label in ("negative", "positive"))
    )
    task, read = open_task(str(tmp_path / "base"), load_rows(str(rows)), byte_tokenizer(pad_token="[PAD]"))
    assert task.labels == (names if kept else ("negative", "positive"))
    assert new_head(load_model(tmp_path / "base", config=read)) is not kept
