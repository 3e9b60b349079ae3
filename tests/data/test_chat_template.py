"""Which characters are answers: what the row says and what ends it, in every template."""

from __future__ import annotations

import pytest
from chat_templates import BRACKETS, CHATML, HEADERS, LOST, MARKED, NEXT_ROLE, THINKING, TWO_ENDS, UNSTOPPED

from loratlas.data.chat.chat_template import PLAIN_TEMPLATE, Rendered, render, template_name
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
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
CALLING = (
    "{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<call>"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def answers(rendered: Rendered) -> list[str]:
    return [rendered.text[answer.start : answer.stop] for answer in rendered.answers]


def test_the_plain_template_is_the_one_that_is_stated(tokenizer):
    one = row(("system", "S"), ("user", "U"), ("assistant", "A"))
    rendered = render(one, tokenizer)
    assert rendered.text == PLAIN_TEMPLATE.format(system="S", user="U", assistant="A", eos="<|end|>")
    assert answers(rendered) == ["A<|end|>"]
    assert rendered.counted() == "A"
    assert rendered.text_without_stops() == "S\n\nU\n\nAnswer:\nA"
    assert PLAIN_TEMPLATE[:8] in template_name(tokenizer, "alpaca")


def test_plain_conversations_label_every_assistant_turn(tokenizer):
    assert answers(render(TWO, tokenizer)) == ["Blue.<|end|>", "Black.<|end|>"]


QUOTED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | tojson }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        QUOTED + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        QUOTED,
        "{% for m in messages %}{{ {'role': m.role, 'content': m.content} | tojson }}<|im_end|>\n{% endfor %}",
    ],
    ids=["asks for it", "asks for nothing", "messages as JSON"],
)
def test_an_answer_between_quotes_that_nobody_asks_with_is_refused(chat_tokenizer, template):
    """The closing quote would be counted and the opening one not."""
    chat_tokenizer.chat_template = template
    with pytest.raises(DataError, match=r'between " and "') as caught:
        render(TWO, chat_tokenizer)
    assert "row 5" in caught.value.given


def test_a_quote_that_the_request_opens_is_closed_by_the_answer(chat_tokenizer):
    chat_tokenizer.chat_template = (
        QUOTED + "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '\"' }}{% endif %}"
    )
    assert answers(render(TWO, chat_tokenizer)) == ['Blue."<|im_end|>', 'Black."<|im_end|>']


def test_raw_text_is_all_answer_even_with_a_chat_template(tokenizer, chat_tokenizer):
    text = row(("text", "Once upon"))
    assert answers(render(text, tokenizer)) == ["Once upon<|end|>"]
    assert answers(render(text, chat_tokenizer)) == ["Once upon<|im_end|>"]


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
        (
            THINKING,
            ["Blue.<|im_end|>", "Black.<|im_end|>"],
        ),  # the empty thought is the template's, not the row's
        (HEADERS, ["Blue.<|im_end|>", "Black.<|im_end|>"]),
        (UNSTOPPED, ["Blue.\n", "Black.\n"]),
        (TWO_ENDS, ["Blue.</a><|im_end|>", "Black.</a><|im_end|>"]),
        (NEXT_ROLE, ["Blue.<|im_start|>", "Black."]),
    ],
    ids=["prefixes", "marked", "thinking", "headers", "unstopped", "two ends", "next role"],
)
def test_chat_templates_label_the_answer_and_its_end(chat_tokenizer, template, expected):
    chat_tokenizer.chat_template = template
    rendered = render(TWO, chat_tokenizer)
    assert answers(rendered) == expected
    messages = [turn.message() for turn in TWO.turns]
    assert rendered.text == chat_tokenizer.apply_chat_template(messages, tokenize=False)
    # What stands before an answer begins with what the tokenizer would ask with.
    asked = chat_tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert rendered.text[: rendered.answers[0].start].startswith(asked)


@pytest.mark.parametrize(
    "answer", ["A", "a", "s", "final", "lane", "assistant", "Assistant: A", "<think>", "x" * 9999]
)
@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING, HEADERS, UNSTOPPED, TWO_ENDS])
def test_letters_of_the_template_are_no_answers(chat_tokenizer, template, answer):
    chat_tokenizer.chat_template = template
    echo = row(("user", answer), ("assistant", answer), ("user", "assistant"), ("assistant", answer))
    rendered = render(echo, chat_tokenizer)
    assert [rendered.text[a.start : a.end].removesuffix("<|im_end|>") for a in rendered.answers] == [
        answer
    ] * 2


def test_a_conversation_that_opens_with_the_assistant(chat_tokenizer):
    opening = row(("assistant", "Hello."), ("user", "Hi."), ("assistant", "Well?"))
    assert answers(render(opening, chat_tokenizer)) == ["Hello.<|im_end|>", "Well?<|im_end|>"]


def test_the_last_turn_may_be_the_users(chat_tokenizer):
    assert answers(render(row(("user", "a"), ("assistant", "b"), ("user", "c")), chat_tokenizer)) == [
        "b<|im_end|>"
    ]


def test_a_trimming_template_with_its_own_begin_token(chat_tokenizer):
    chat_tokenizer.chat_template = BRACKETS
    rendered = render(row(("user", " a "), ("assistant", "b \n")), chat_tokenizer)
    assert rendered.text == "<s>[Q] a [/Q] b<|im_end|>"
    assert answers(rendered) == [" b<|im_end|>"]  # the space, too, is the model's to write


def test_a_refused_system_turn_is_a_sentence_with_the_row_and_the_line(chat_tokenizer):
    chat_tokenizer.chat_template = BRACKETS
    with pytest.raises(
        DataError, match=r"row 5.*System role not supported; line 1 of the template: .*no system turn"
    ):
        render(TWO, chat_tokenizer)


def test_what_a_template_raises_is_shown_without_what_a_terminal_obeys(chat_tokenizer):
    chat_tokenizer.chat_template = "\n{{ raise_exception('\x1b[31mred') }}"
    with pytest.raises(DataError) as caught:
        render(TWO, chat_tokenizer)
    assert "\x1b" not in str(caught.value)
    assert r"\x1b[31mred; line 2 of the template" in caught.value.found


def test_a_template_that_rewrites_answers_is_refused_with_its_line(chat_tokenizer):
    chat_tokenizer.chat_template = LOST
    with pytest.raises(
        DataError, match=r"message 3 cannot be found exactly.*line 1 of the template.*generation"
    ):
        render(TWO, chat_tokenizer)


def test_marks_that_leave_out_words_of_an_answer_are_refused(chat_tokenizer):
    chat_tokenizer.chat_template = MARKED.replace(
        "m.content }}<|im_end|>{% endg", "m.content[1:] }}<|im_end|>{% endg"
    )
    with pytest.raises(DataError, match="message 3 is written as another text"):
        render(TWO, chat_tokenizer)


def test_an_empty_answer_counts_its_end(chat_tokenizer):
    rendered = render(row(("assistant", ""), ("user", "a"), ("assistant", "b")), chat_tokenizer)
    assert answers(rendered) == ["<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_turn_of_no_weight_is_written_and_not_counted(chat_tokenizer, template):
    chat_tokenizer.chat_template = template
    light = Row(
        turns=(*TWO.turns[:2], Turn(role="assistant", content="Blue.", counted=False), *TWO.turns[3:]),
        source_row=0,
    )
    rendered = render(light, chat_tokenizer)
    assert answers(rendered) == ["Black.<|im_end|>"]
    assert rendered.text == render(TWO, chat_tokenizer).text


def calling(**extras: object) -> Row:
    turns = (
        Turn(role="user", content="Weather?"),
        Turn(role="assistant", content="", extras={"tool_calls": [CALL], **extras}),
        Turn(role="tool", content="4", extras={"name": "look"}),
        Turn(role="assistant", content="4 degrees"),
    )
    return Row(turns=turns, source_row=0, tools=({"name": "look"},))


def test_calls_are_counted_as_the_template_writes_them(chat_tokenizer):
    chat_tokenizer.chat_template = CALLING
    rendered = render(calling(), chat_tokenizer)
    assert answers(rendered) == ['<call>look {"at": "sky"}</call><|im_end|>', "4 degrees<|im_end|>"]
    assert rendered.text.startswith('<|im_start|>tools [{"name": "look"}]<|im_end|>')


def test_what_a_template_does_not_write_is_refused(chat_tokenizer, tokenizer):
    with pytest.raises(DataError, match=r"with tools.*does not write them"):
        render(calling(), chat_tokenizer)
    chat_tokenizer.chat_template = CALLING.replace("m.tool_calls or []", "[]")
    with pytest.raises(DataError, match=r"message 2 of row 1, with tool_calls.*does not write it"):
        render(calling(), chat_tokenizer)
    with pytest.raises(DataError, match=r"row 1, with tools.*plain template"):
        render(calling(), tokenizer)
    named = Row(turns=(Turn(role="user", content="a", extras={"name": "Ann"}), *TWO.turns[2:3]), source_row=0)
    with pytest.raises(DataError, match=r"message 1 of row 1, with name"):
        render(named, chat_tokenizer)
    image = [{"type": "text", "text": "a"}, {"type": "image", "image": "x.png"}]
    shown = Row(
        turns=(Turn(role="user", content="a", extras={"content": image}), *TWO.turns[2:3]), source_row=0
    )
    with pytest.raises(DataError, match=r"content part of type 'image'"):
        render(shown, chat_tokenizer)


def test_a_thought_is_counted_with_its_tags_or_refused(chat_tokenizer):
    thought = Turn(role="assistant", content="4", extras={"reasoning_content": "two and two"})
    one = Row(turns=(Turn(role="user", content="2+2"), thought), source_row=0)
    with pytest.raises(DataError, match="with reasoning_content"):
        render(one, chat_tokenizer)
    chat_tokenizer.chat_template = REASONING
    assert answers(render(one, chat_tokenizer)) == ["<think>two and two</think>4<|im_end|>"]


def test_an_answer_that_brings_its_own_thought_is_read_as_written(chat_tokenizer):
    chat_tokenizer.chat_template = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")
    content = "<think>\ntwo and two\n</think>\n\nFour."
    assert answers(render(row(("user", "2+2"), ("assistant", content)), chat_tokenizer)) == [
        content + "<|im_end|>"
    ]


def test_content_in_parts_goes_to_templates_that_take_parts_and_as_text_to_others(chat_tokenizer):
    parts = [{"type": "text", "text": "Blue."}]
    one = Row(
        turns=(TWO.turns[1], Turn(role="assistant", content="Blue.", extras={"content": parts})), source_row=0
    )
    assert answers(render(one, chat_tokenizer)) == ["Blue.<|im_end|>"]
    chat_tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}"
    )
    assert answers(render(one, chat_tokenizer)) == ["Blue.<|im_end|>"]
    assert answers(render(TWO, chat_tokenizer)) == ["Blue.<|im_end|>", "Black.<|im_end|>"]


def test_the_models_own_stop_ends_an_answer(chat_tokenizer, tmp_path):
    from loratlas.data.encode import load_tokenizer

    chat_tokenizer.chat_template = TWO_ENDS
    chat_tokenizer.save_pretrained(tmp_path)
    assert answers(render(TWO, load_tokenizer(tmp_path)))[0] == "Blue.</a><|im_end|>"
    first = chat_tokenizer.convert_tokens_to_ids("</a>")
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{first}]}}', encoding="utf-8")
    assert answers(render(TWO, load_tokenizer(tmp_path)))[0] == "Blue.</a>"


def test_a_call_behind_words_ends_where_the_call_ends(chat_tokenizer):
    chat_tokenizer.chat_template = CALLING
    said = Turn(role="assistant", content="Let me see.", extras={"tool_calls": [CALL]})
    one = Row(turns=(Turn(role="user", content="Weather?"), said), source_row=0)
    rendered = render(one, chat_tokenizer)
    assert answers(rendered) == ['Let me see.<call>look {"at": "sky"}</call><|im_end|>']
    assert rendered.counted() == 'Let me see.<call>look {"at": "sky"}</call>'


def test_white_space_may_differ_and_words_may_not(chat_tokenizer):
    chat_tokenizer.chat_template = CHATML.replace("m.content", "m.content.replace('  ', ' ')")
    assert answers(render(row(("user", "a"), ("assistant", "b  c")), chat_tokenizer)) == ["b c<|im_end|>"]
    chat_tokenizer.chat_template = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    with pytest.raises(DataError, match="message 2 is written as another text than the row has"):
        render(row(("user", "a"), ("assistant", "<think>b</think>c")), chat_tokenizer)
