"""Which characters are answers: exactly what a model must produce, in every template."""

from __future__ import annotations

import pytest
from chat_templates import BRACKETS, CHATML, LOST, MARKED, THINKING, UNSTOPPED

from loratlas.data.chat_template import PLAIN_TEMPLATE, render, template_name
from loratlas.data.rows import Row, Turn
from loratlas.errors import DataError


def row(*turns: tuple[str, str]) -> Row:
    return Row(turns=tuple(Turn(role=role, content=content) for role, content in turns), source_row=4)


TWO = row(
    ("system", "Be brief."),
    ("user", "Sky?"),
    ("assistant", "Blue."),
    ("user", "Night?"),
    ("assistant", "Black."),
)


def answers(pieces: list[tuple[str, bool]]) -> list[str]:
    return [text for text, labelled in pieces if labelled]


def test_the_plain_template_is_the_one_that_is_stated(tokenizer):
    one = row(("system", "S"), ("user", "U"), ("assistant", "A"))
    pieces = render(one, tokenizer)
    assert pieces == [("S\n\nU\n\nAnswer:\n", False), ("A<|end|>", True)]
    stated = PLAIN_TEMPLATE.format(system="S", user="U", assistant="A", eos="<|end|>")
    assert "".join(text for text, _ in pieces) == stated
    assert PLAIN_TEMPLATE[:8] in template_name(tokenizer, "alpaca")


def test_plain_conversations_label_every_assistant_turn(tokenizer):
    assert answers(render(TWO, tokenizer)) == ["Blue.<|end|>", "Black.<|end|>"]


def test_raw_text_is_all_answer_even_with_a_chat_template(tokenizer, chat_tokenizer):
    text = row(("text", "Once upon"))
    assert render(text, tokenizer) == [("Once upon<|end|>", True)]
    assert render(text, chat_tokenizer) == [("Once upon<|im_end|>", True)]


def test_a_tokenizer_without_eos_ends_with_its_separator_or_nothing():
    from chat_templates import byte_tokenizer

    one = row(("user", "U"), ("assistant", "A"))
    assert answers(render(one, byte_tokenizer(sep_token="[SEP]"))) == ["A[SEP]"]
    assert answers(render(one, byte_tokenizer())) == ["A"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["Blue.<|im_end|>", "Black.<|im_end|>"]),
        (MARKED, ["Blue.<|im_end|>", "Black.<|im_end|>"]),
        (THINKING, ["Blue.<|im_end|>", "<think>\n\n</think>\n\nBlack.<|im_end|>"]),
        (UNSTOPPED, ["Blue.\n", "Black.\n"]),
    ],
    ids=["prefixes", "marked", "thinking", "unstopped"],
)
def test_chat_templates_label_the_answer_and_its_end(chat_tokenizer, template, expected):
    chat_tokenizer.chat_template = template
    pieces = render(TWO, chat_tokenizer)
    assert answers(pieces) == expected
    messages = [{"role": turn.role, "content": turn.content} for turn in TWO.turns]
    whole = chat_tokenizer.apply_chat_template(messages, tokenize=False)
    assert "".join(text for text, _ in pieces) == whole
    # What stands before an answer is what the tokenizer would ask with.
    asked = chat_tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert pieces[0] == (asked, False)


def test_marked_and_found_answers_agree_on_text_that_repeats_itself(chat_tokenizer):
    echo = row(("user", "a"), ("assistant", "a"), ("user", "assistant"), ("assistant", "assistant\na"))
    found = render(echo, chat_tokenizer)
    chat_tokenizer.chat_template = MARKED
    assert render(echo, chat_tokenizer) == found
    assert answers(found) == ["a<|im_end|>", "assistant\na<|im_end|>"]


def test_a_conversation_that_opens_with_the_assistant(chat_tokenizer):
    opening = row(("assistant", "Hello."), ("user", "Hi."), ("assistant", "Well?"))
    assert answers(render(opening, chat_tokenizer)) == ["Hello.<|im_end|>", "Well?<|im_end|>"]


def test_the_last_turn_may_be_the_users(chat_tokenizer):
    assert answers(render(row(("user", "a"), ("assistant", "b"), ("user", "c")), chat_tokenizer)) == [
        "b<|im_end|>"
    ]


def test_a_trimming_template_with_its_own_begin_token(chat_tokenizer):
    chat_tokenizer.chat_template = BRACKETS
    pieces = render(row(("user", " a "), ("assistant", "b \n")), chat_tokenizer)
    assert pieces == [("<s>[Q] a [/Q]", False), (" b<|im_end|>", True)]


def test_a_refused_system_turn_is_a_sentence_with_the_row(chat_tokenizer):
    chat_tokenizer.chat_template = BRACKETS
    with pytest.raises(DataError, match=r"row 5.*System role not supported.*no system turn"):
        render(TWO, chat_tokenizer)


def test_a_template_that_rewrites_answers_is_refused(chat_tokenizer):
    chat_tokenizer.chat_template = LOST
    with pytest.raises(DataError, match=r"message 3 cannot be found.*generation"):
        render(TWO, chat_tokenizer)


def test_an_empty_opening_answer_cannot_be_found(chat_tokenizer):
    with pytest.raises(DataError, match="message 1 cannot be found"):
        render(row(("assistant", ""), ("user", "a"), ("assistant", "b")), chat_tokenizer)
