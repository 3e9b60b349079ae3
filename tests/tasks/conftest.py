"""Tiny bases with tokenizers of their own, and files of rows for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.bases import base

from loratlas.cli import run

WORDS = [f"w{index}" for index in range(4, 101)]


def tokenizer(model_type: str) -> Any:
    """One token a word, ids 4 to 100; special tokens as the type's own tokenizer puts them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
    vocabulary = special | {word: index for index, word in enumerate(WORDS, start=4)}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    templates = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "t5": ("$A [SEP]", "$A [SEP] $B:1 [SEP]:1"),
    }
    if model_type in templates:
        single, pair = templates[model_type]
        tokens = [(name, special[name]) for name in ("[CLS]", "[SEP]")]
        made.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    names = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    names |= {} if model_type == "gpt2" else {"pad_token": "[PAD]"}
    types = (
        ["input_ids", "token_type_ids", "attention_mask"]
        if model_type == "bert"
        else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=types, **names)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``bases("bert")``: the folder of a tiny base with its tokenizer."""
    folder = tmp_path_factory.mktemp("bases")

    def make(model_type: str) -> Path:
        out = base(folder, model_type)
        if not (out / "tokenizer.json").exists():
            tokenizer(model_type).save_pretrained(out)
        return out

    return make


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences(n: int) -> list[dict[str, Any]]:
    """Texts of 2 to 6 words with a label that their first word tells."""
    texts = [" ".join(WORDS[(7 * row + 3 * index) % 90] for index in range(2 + row % 5)) for row in range(n)]
    return [{"text": text, "label": ["bad", "good"][row % 2]} for row, text in enumerate(texts)]


def pairs(n: int) -> list[dict[str, Any]]:
    """Prompts of 2 to 6 words, to be answered by their last two."""
    texts = [sentence["text"] for sentence in sentences(n)]
    return [{"prompt": text, "completion": " ".join(text.split()[-2:])} for text in texts]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command here: exit code, standard output, standard error without line breaks."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, " ".join(said.err.split())

    return call
