"""A message keeps what it carries: handed to the template, obeyed, or refused with its row; nothing is dropped."""

from __future__ import annotations

import json

import pytest

from loratlas.data.load_rows import load_rows
from loratlas.data.rows import Turn
from loratlas.errors import DataError

CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"day": 2, "exact": 1.5, "note": None}},
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def turns(*messages: dict, **columns: object) -> tuple[Turn, ...]:
    return load_rows([{"messages": list(messages), **columns}]).rows[0].turns


def test_calls_thoughts_and_names_stay_with_their_message():
    user, assistant, tool, last = turns(
        {"role": "user", "content": "Rain?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I ask."},
        {"role": "tool", "content": "no", "tool_call_id": "1", "name": "weather"},
        {"role": "assistant", "content": "No.", "thinking": "It said no."},
    )
    assert user.message() == {"role": "user", "content": "Rain?", "name": "Ann"}
    assert assistant.content == ""
    assert assistant.message() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
        "reasoning_content": "I ask.",
    }
    assert tool.extras == {"tool_call_id": "1", "name": "weather"}
    assert last.message()["thinking"] == "It said no."
    assert all(turn.counted for turn in (user, assistant, tool, last))


def test_a_tool_s_name_that_the_template_leaves_out_is_counted():
    """Many templates know the order of calls and answers and write no name; how many rows that is, is said once."""
    from tests.serving.byte_tokenizer import tiny_tokenizer

    from loratlas.data.encode import encode

    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "tool", "content": "b", "name": "weather"},
        {"role": "assistant", "content": "ab"},
    ]
    rows = load_rows([{"messages": chat}, {"messages": [chat[0], chat[1]]}])
    tokenizer = tiny_tokenizer(300)
    without = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    for template, unnamed in (
        (without, 1),
        (without.replace("{{ m.role }}", "{{ m.role }}{{ m.name or '' }}"), 0),
        (None, 1),
    ):
        tokenizer.chat_template = template
        report = encode(rows, tokenizer, max_length=200).report
        assert report.unnamed == unnamed
        assert ("1 with a tool's name that the template does not write" in report.sentence()) == bool(unnamed)


def test_a_user_s_name_is_refused_where_nothing_writes_it():
    from tests.serving.byte_tokenizer import tiny_tokenizer

    from loratlas.data.encode import encode

    chat = [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]
    tokenizer = tiny_tokenizer(300)
    for template in (None, "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"):
        tokenizer.chat_template = template
        with pytest.raises(DataError, match="message 1 of row 1, with name"):
            encode(load_rows([{"messages": chat}]), tokenizer, max_length=200)


def test_a_null_says_nothing():
    turn = turns({"role": "user", "content": "a", "name": None, "tool_calls": None, "mood": None})[0]
    assert turn == Turn(role="user", content="a")


def test_numbers_of_a_call_are_numbers_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": 1.10}, {"role": "assistant", "content": "", "tool_calls": '
        '[{"function": {"name": "f", "arguments": {"x": 1.10, "n": 10000000000000000000001}}}]}]}\n'
    )
    user, assistant = load_rows(path).rows[0].turns
    assert user.content == "1.10"
    arguments = assistant.message()["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"x": 1.1, "n": 10000000000000000000001}
    assert [type(value) for value in arguments.values()] == [float, int]


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 0.0}, False),
        ({"weight": None}, True),
        ({"train": False}, False),
        ({"train": True}, True),
        ({"training": False}, False),
        ({"loss": False}, False),
        ({"weight": 0, "train": False}, False),
    ],
    ids=str,
)
def test_weights_are_obeyed(said, counted):
    turn = turns({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **said})[1]
    assert turn == Turn(role="assistant", content="b", counted=counted)


@pytest.mark.parametrize(
    ("role", "said", "found"),
    [
        ("assistant", {"weight": 0.5}, "message 2 of 'messages' has the weight 0.5 on row 1"),
        ("assistant", {"weight": "often"}, "has the weight often"),
        ("assistant", {"train": [1]}, "has the train"),
        ("assistant", {"weight": 1, "train": False}, "is to be counted and not, by weight and train"),
        ("user", {"train": True}, "of the role user, asks to be counted"),
        ("tool", {"weight": 1}, "of the role tool, asks to be counted"),
    ],
)
def test_weights_that_cannot_be_obeyed_are_refused(role, said, found):
    with pytest.raises(DataError, match=found):
        turns({"role": "user", "content": "a"}, {"role": role, "content": "b", **said})


def test_a_content_in_parts_is_its_text_and_stays_in_parts_for_the_template():
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}, "!"]
    turn = turns({"role": "user", "content": parts})[0]
    assert turn.content == "two parts!"
    assert turn.message() == {"role": "user", "content": parts}
    with pytest.raises(DataError, match="message 1 of 'messages' has a part of type 'image' on row 1"):
        turns({"role": "user", "content": [{"type": "image", "url": "x"}]})


def test_tools_and_template_variables_stay_with_the_row():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for tools in (TOOLS, json.dumps(TOOLS)):
        row = load_rows([{"messages": chat, "tools": tools, "chat_template_kwargs": {"think": False}}]).rows[
            0
        ]
        assert row.tools == tuple(TOOLS)
        assert row.template_options == {"think": False}
    for nothing in (None, "", []):
        assert load_rows([{"messages": chat, "tools": nothing}]).rows[0].tools == ()
    for broken in ("[", "{}", 3, [1]):
        with pytest.raises(DataError, match="field 'tools' is no list of tools on row 1"):
            load_rows([{"messages": chat, "tools": broken}])
    with pytest.raises(DataError, match="field 'chat_template_kwargs' is no object on row 1"):
        load_rows([{"messages": chat, "chat_template_kwargs": [1]}])


def test_sharegpt_is_read():
    row = load_rows(
        [
            {
                "conversations": [
                    {"from": "human", "value": "Rain?"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"day": 2}}'},
                    {"from": "observation", "value": "no"},
                    {"from": "gpt", "value": "No.", "weight": 0},
                ],
                "system": "Be brief.",
                "tools": json.dumps(TOOLS),
            }
        ]
    ).rows[0]
    assert [(turn.role, turn.content) for turn in row.turns] == [
        ("system", "Be brief."),
        ("user", "Rain?"),
        ("assistant", ""),
        ("tool", "no"),
        ("assistant", "No."),
    ]
    called = {"type": "function", "function": {"name": "weather", "arguments": {"day": 2}}}
    assert row.turns[2].extras == {"tool_calls": [called]}
    assert not row.turns[4].counted
    assert row.tools == tuple(TOOLS)


def test_conversations_may_hold_messages_too():
    rows = load_rows(
        [{"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    )
    assert rows.form == "messages"
    assert [turn.content for turn in rows.rows[0].turns] == ["a", "b"]


def test_history_comes_before_the_question():
    row = load_rows(
        [{"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"], [1, True]]}]
    ).rows[0]
    assert [(turn.role, turn.content) for turn in row.turns] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "1"),
        ("assistant", "true"),
        ("user", "c"),
        ("assistant", "d"),
    ]
    for broken in ([["a"]], [["a", None]], "a", {"a": "b"}):
        with pytest.raises(DataError, match="of 'history' is no pair of texts on row 1"):
            load_rows([{"instruction": "c", "output": "d", "history": broken}])


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"role": "user"}, "message 1 of 'messages' has a missing field 'content' on row 1"),
        ({"role": "assistant", "content": None}, "missing field 'content'"),
        ({"content": "a"}, "missing field 'role'"),
        ({"from": "human"}, "missing field 'value'"),
        ({"from": "bot", "value": "a"}, "has the role 'bot'"),
        ({"role": "developer", "content": "a"}, "has the role 'developer'"),
        ({"role": ["user"], "content": "a"}, "has the role"),
        ({"role": "user", "content": {"text": "a"}}, "has a content that is no text"),
        ({"from": "function_call", "value": "call it"}, "is a function_call that is no call"),
    ],
    ids=str,
)
def test_messages_that_are_none_are_refused(message, found):
    with pytest.raises(DataError, match=found):
        turns(message)


def test_two_system_turns_are_refused():
    with pytest.raises(DataError, match="two system turns, one in 'system' and one in the messages on row 1"):
        turns({"role": "system", "content": "a"}, {"role": "user", "content": "b"}, system="c")


def test_keys_that_nothing_knows_are_remarked_once_with_their_count():
    chat = [{"role": "user", "content": "a", "mood": 1}, {"role": "assistant", "content": "b", "name": "c"}]
    rows = load_rows([{"messages": chat, "id": n} for n in range(3)] + [{"messages": chat}])
    assert rows.remarks == (
        "columns that form 'messages' does not read: id (3 rows)",
        "keys of messages that only a chat template can know: mood (4 messages)",
    )
    assert rows.rows[0].turns[0].message()["mood"] == 1


def test_messages_of_parquet_carry_no_nulls_that_arrow_put_there(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0, "tool_calls": [{"name": "f", "x": None}]},
    ]
    table = pa.Table.from_pylist([{"messages": chat}])
    parquet.write_table(table, tmp_path / "a.parquet")
    for source in (table, tmp_path / "a.parquet"):
        first, second = load_rows(source).rows[0].turns
        assert first == Turn(role="user", content="a")
        assert second == Turn(
            role="assistant", content="b", counted=False, extras={"tool_calls": [{"name": "f"}]}
        )
