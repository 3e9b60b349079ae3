"""Tokenizers made here, without a file."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import CHATML, byte_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    """Bytes, an end token, no pad token, no template."""
    return byte_tokenizer(eos_token="<|end|>")


@pytest.fixture
def chat_tokenizer() -> Any:
    """Bytes and the tokens of ChatML; the test chooses the template."""
    tokenizer = byte_tokenizer(
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "</a>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer
