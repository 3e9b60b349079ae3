"""Rows of preferences: texts and conversations, with a prompt of its own or inside the answers."""

from __future__ import annotations

import json

import pytest
from tests.data.chat_templates import CHATML, byte_tokenizer

from loratlas.data.encode import load_tokenizer
from loratlas.data.preferences import encode_pairs, preference_rows
from loratlas.errors import DataError
from loratlas.sources import model_source

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def pairs(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"{i} plus {i} is", "chosen": f" {2 * i}", "rejected": f" {3 * i + 1}"}
        for i in range(2, count + 2)
    ]


@pytest.fixture(scope="module")
def encoded():
    tokenizer = load_tokenizer(model_source("demo:llama-mini"))
    return encode_pairs(*preference_rows(pairs(8)), tokenizer, max_length=48), tokenizer


def asked(text, *, system=None):
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": text}]


def said(text):
    return [{"role": "assistant", "content": text}]


def conversations(kind, rows):
    """The same pairs as TRL's conversational forms: prompt of its own, inside the answers, or a text next to them."""
    made = []
    for row in rows:
        prompt = asked(row["prompt"])
        inside = {side: prompt + said(row[side]) for side in ("chosen", "rejected")}
        answers = {side: said(row[side]) for side in ("chosen", "rejected")}
        made.append(
            {
                "explicit": {"prompt": prompt, **answers},
                "implicit": inside,
                "implicit, and a text": {"prompt": row["prompt"], **inside},
                "text prompt": {"prompt": row["prompt"], **answers},
            }[kind]
        )
    return made


@pytest.mark.parametrize("kind", ["explicit", "implicit", "implicit, and a text", "text prompt"])
@pytest.mark.parametrize("stored", [False, True], ids=["list", "file"])
def test_conversations_are_the_pairs_that_texts_are(encoded, kind, stored, tmp_path):
    whole, tokenizer = encoded
    source = conversations(kind, pairs(8))
    if stored:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in source))
        source = str(tmp_path / "pairs.jsonl")
    found = encode_pairs(*preference_rows(source), tokenizer, max_length=48)
    assert found.digest == whole.digest


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_prompts_and_answers_are_those_that_trl_makes(kind):
    """TRL's own preparation of its conversational forms, under a chat template, of several turns."""
    from trl.data_utils import apply_chat_template, maybe_extract_prompt

    tokenizer = byte_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    prompt = [*asked("2 plus 2 is", system="Count."), *said("4"), *asked("and 3 plus 3?")]
    answers = {"chosen": said("6"), "rejected": said("7")}
    row = {"prompt": prompt, **answers} if kind == "explicit" else {s: prompt + a for s, a in answers.items()}
    theirs = apply_chat_template(maybe_extract_prompt(row), tokenizer)
    sides = preference_rows([row])
    (pair,) = encode_pairs(*sides, tokenizer, max_length=256).examples
    for name, ids, marks in (
        ("chosen", pair.input_ids[: pair.source], pair.labelled[: pair.source]),
        ("rejected", pair.input_ids[pair.source :], pair.labelled[pair.source :]),
    ):
        at = int(marks.argmax())
        assert tokenizer.decode(ids[:at]) == theirs["prompt"], name
        # TRL counts the line break behind the end of a turn as well, which nobody generates.
        assert tokenizer.decode(ids[at:][marks[at:]]) == theirs[name].rstrip("\n"), name


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"chosen": asked("1") + said("2"), "rejected": asked("3") + said("4")},
            r"differ before their last turn",
        ),
        (
            {"chosen": asked("1") + said("2") + asked("3"), "rejected": asked("1") + said("2") + asked("4")},
            "then user",
        ),
        (
            {"prompt": asked("1"), "chosen": asked("1") + said("2"), "rejected": asked("1") + said("3")},
            "once more",
        ),
        ({"chosen": asked("1") + said("2"), "rejected": "3"}, "no list of messages"),
        ({"chosen": [], "rejected": []}, "no list of messages"),
        ({"chosen": "2", "rejected": "3"}, "no column 'prompt'"),
    ],
)
def test_conversations_that_are_no_pair_are_a_sentence(encoded, row, found):
    _, tokenizer = encoded
    with pytest.raises(DataError, match=found):
        encode_pairs(*preference_rows([row]), tokenizer, max_length=64)
