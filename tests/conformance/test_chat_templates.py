"""Every template, answer, shape and tokenizer: the counted text is the answer and its stop, or the row is refused.

Templates are those that TRL ships and those of `chat_families`. A cell is right where

* the ids are those of the whole conversation, as the tokenizer's own `apply_chat_template` gives them;
* what is counted, decoded, is each answer as the row has it (white space aside) and behind it only what the template
  writes there to end the turn: tokens, or nothing but a line break;
* where the template marks answers itself, the marks are those that transformers and TRL make of it, token by token.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.chat_families import FAMILIES

from loratlas.data.encode import encode
from loratlas.data.rows import Row, Rows, Turn
from loratlas.errors import DataError

ANSWERS = (
    "A",
    "a",
    "s",
    "assistant",
    "user",
    "final",
    "",
    "<think>",
    "<think>\nwell\n</think>\n\nYes.",
    "😀 👩‍🚀",
    "שלום, עולם",
    'Two.\n\nParagraphs, "quoted".',
    " A space on either side ",
    "Assistant: A",
)
LONG = " ".join(f"word{n}" for n in range(2000))
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "What."}},
            "required": ["at"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
TOKENS = re.compile(r"<[^<>\s'\"{}]{2,60}>|\[/?[A-Za-z_]{3,30}\]")
STOP = re.compile(r"\s*(?:(?:<[^<>\s]+>|\[[^\[\]\s]+\])\s*)*")


def shapes(answer: str) -> dict[str, Row]:
    def turn(role: str, content: str, **extras: Any) -> Turn:
        return Turn(role=role, content=content, extras=extras or None)

    asked, said = turn("user", "Which one, a or s?"), turn("assistant", answer)
    many = (asked, said, turn("user", "final"), turn("assistant", "Then."), turn("user", answer or "x"), said)
    called = (asked, turn("assistant", "", tool_calls=[CALL]), turn("tool", "blue", name="look"), said)
    return {
        "one turn": Row(turns=(asked, said), source_row=0),
        "many turns": Row(turns=many, source_row=0),
        "system": Row(turns=(turn("system", "Be an assistant."), asked, said), source_row=0),
        "tools": Row(turns=called, tools=(TOOL,), source_row=0),
    }


@cache
def trained(kind: str) -> str:
    """A tokenizer of a kind, trained on a few sentences, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = [
        f"{answer} Which one, a or s? Be an assistant. Then user final {n}"
        for n, answer in enumerate(ANSWERS * 9)
    ]
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet, fallback = pre_tokenizers.ByteLevel.alphabet(), []
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=200))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(cleanup=False)
        characters = sorted({c for text in texts for c in text if not c.isspace()} | set(string.printable))
        trainer = trainers.WordPieceTrainer(
            vocab_size=900, special_tokens=["<unk>"], initial_alphabet=characters, show_progress=False
        )
        # Every character also in the middle of a word, so that no text of a template is unknown.
        backend.train_from_iterator([*texts, *(f"x{c}" for c in characters)], trainer)
        return backend.to_str()
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        steps = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        backend.decoder = decoders.Sequence(steps)
        alphabet, fallback = [], [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", *fallback], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend.to_str()


def tokenizer_of(template: str, kind: str, *, tokens: bool) -> Any:
    """A tokenizer with a template; with its tokens, or with their names as text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(trained(kind))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    if tokens:
        names = sorted({*TOKENS.findall(template), "<|user|>", "<|assistant|>", "<|system|>"})
        tokenizer.add_special_tokens({"additional_special_tokens": [n for n in names if "think" not in n]})
    tokenizer.chat_template = template
    return tokenizer


def judged(row: Row, tokenizer: Any, marked: bool) -> str:
    """``right``, ``marked alike``, ``refused``, ``no answer``, or what is wrong with a cell."""
    rows = Rows(rows=(row,), form="messages", source="here")
    try:
        (example,) = encode(rows, tokenizer, max_length=10**6).examples
    except DataError as error:
        if "zero answer tokens" in error.found:
            return "no answer"
        return "refused" if "row 1" in error.given and error.instead else f"refused without its row: {error}"
    ids, labelled = example.input_ids, example.labelled
    messages = _messages(row, tokenizer)
    tools = list(row.tools) or None
    asked = tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=marked, tokenize=True
    )
    if asked["input_ids"] != ids.tolist():
        return "other ids"
    if marked:
        marks = _marks_by_characters(messages, tools, tokenizer)
        if marks is None:
            marks = np.asarray(asked["assistant_masks"], dtype=bool)
        marks[0] = False
        return "marked alike" if (marks == labelled).all() else "other marks"
    answers = [turn for turn in row.turns if turn.role == "assistant"]
    runs = np.flatnonzero(np.diff(np.concatenate([[0], labelled.view(np.int8), [0]]))).reshape(-1, 2)
    if len(answers) > len(runs) and not answers[-1].content:
        answers.pop()  # nothing is said, and nothing stops it at the end of the text
    if len(answers) > len(runs):
        answers = [turn for turn in answers if turn.content or turn.extras]
    if len(runs) != len(answers):
        return f"{len(runs)} runs"
    for (first, last), turn in zip(runs, answers, strict=True):
        said = "".join(tokenizer.decode(ids[first:last]).split())
        if turn.extras:
            if '"sky"' not in said and "sky" not in said:
                return f"a call as {said!r}"
            continue
        words = "".join(turn.content.split())
        if not said.startswith(words) or not STOP.fullmatch(said[len(words) :]):
            return f"{turn.content!r} as {said!r}"
    return "right"


def _marks_by_characters(messages: Any, tools: Any, tokenizer: Any) -> np.ndarray | None:
    """Marks by the characters of generation blocks, for a tokenizer that drops white space; None for others.

    transformers asks which token the first character of a block belongs to, and marks nothing where that is white
    space without a token.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    if tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n"):
        return None
    (text,), (blocks,) = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [any(first <= a and b <= last for first, last in blocks) for a, b in encoded["offset_mapping"]]
    return np.asarray(inside, dtype=bool)


def _messages(row: Row, tokenizer: Any) -> list[dict[str, Any]]:
    """The messages as the template takes them: with contents as texts, or in parts."""
    messages = [turn.message() for turn in row.turns]
    try:
        written = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # templates raise what they like
        written = ""
    if "Which one" in written:
        return messages
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def trl_templates() -> dict[str, str]:
    trl = pytest.importorskip("trl")
    result = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8") for path in result}


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("bytes", True),
        ("metaspace", True),
        ("wordpiece", True),
        pytest.param("bytes", False, marks=pytest.mark.slow),
    ],
    ids=["bytes", "metaspace", "wordpiece", "names of tokens as text"],
)
@pytest.mark.parametrize("source", ["families", "trl"])
def test_the_counted_text_is_the_answer_and_its_stop_or_the_row_is_refused(source, kind, tokens, capsys):
    templates = FAMILIES if source == "families" else trl_templates()
    counts: Counter[str] = Counter()
    wrong = []
    for name, template in templates.items():
        tokenizer = tokenizer_of(template, kind, tokens=tokens)
        marked = "generation" in template and re.search(r"\{%-?\s*generation\b", template) is not None
        cells = [(shape, row) for answer in ANSWERS for shape, row in shapes(answer).items()]
        for shape, row in [*cells, ("one turn", shapes(LONG)["one turn"])]:
            verdict = judged(row, tokenizer, marked)
            counts[verdict if verdict in _GOOD else "wrong"] += 1
            if verdict not in _GOOD:
                wrong.append(f"{name}, {shape}, {row.turns[-1].content[:20]!r}: {verdict}")
    with capsys.disabled():
        print(
            f"\n{source}, {kind}, {'tokens' if tokens else 'names'}: {len(templates)} templates, {dict(counts)}"
        )
    assert not wrong, "\n".join(wrong[:20])
    assert counts["right"] + counts["marked alike"] > counts["refused"]


_GOOD = ("right", "marked alike", "refused", "no answer")
