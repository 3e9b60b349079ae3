"""The tokenizer of a base, where it has one."""

from __future__ import annotations

from typing import Any

from loratlas.models.gguf_base import readable


def base_tokenizer(source: Any) -> Any:
    """The tokenizer that a base comes with; None where it comes without one that can be read.

    Args:
        source: a folder, a Hub id or a GGUF file.

    Raises:
        ModelError: a GGUF file that is not there, or broken.

    Who cannot do without one calls `loratlas.data.encode.load_tokenizer`, which says what is wrong.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(readable(source)), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
