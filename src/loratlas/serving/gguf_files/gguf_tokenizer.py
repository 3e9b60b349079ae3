"""A tokenizer as llama.cpp reads it, where its rules are among those that llama.cpp has.

llama.cpp cuts text by a rule with a name. Here that name is found by comparing the rule in ``tokenizer.json``, and a
rule without a name is refused: another rule would cut the same text into other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loratlas.errors import ModelError

_NORMAL, _CONTROL, _USER, _UNUSED, _BYTE, _UNKNOWN = 1, 3, 4, 5, 6, 2

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}


def write_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    """Write vocabulary, merges and special tokens.

    Args:
        writer: of the gguf package.
        tokenizer: a fast tokenizer of transformers.
        size: rows of the embedding; tokens that are missing become unused ones.

    Raises:
        ModelError: a tokenizer whose rules have no name in llama.cpp.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("a tokenizer without a tokenizer.json")
    table = json.loads(backend.to_str())
    model = table["model"]
    if model["type"] != "BPE":
        raise _unknown(f"a tokenizer of type {model['type']}")
    pieces = bool(model.get("byte_fallback"))
    tokens, kinds = _vocabulary(table, size, pieces)
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # Pieces are merged in the order of their scores, and were numbered in that order.
        writer.add_token_scores([-float(index) for index in range(size)])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_rule(table))
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for write, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None and index < size:
            write(int(index))
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(bool(first) and first[0] == tokenizer.bos_token_id)
    if pieces:
        writer.add_add_space_prefix(_adds_space(table))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _vocabulary(table: Mapping[str, Any], size: int, pieces: bool) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [_UNUSED] * size
    for text, index in table["model"]["vocab"].items():
        if index < size:
            tokens[index] = text
            byte = pieces and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
            kinds[index] = _BYTE if byte else _UNKNOWN if text == table["model"].get("unk_token") else _NORMAL
    for added in table["added_tokens"]:
        if added["id"] < size and kinds[added["id"]] != _UNKNOWN:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added["special"] else _USER
    return tokens, kinds


def _rule(table: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule that cuts text before it is merged."""
    steps = table["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps]) if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    byte_level = steps[-1] if kinds and kinds[-1] == "ByteLevel" else {}
    if byte_level.get("add_prefix_space") or table.get("normalizer") not in (None, {"type": "NFC"}):
        raise _unknown("a tokenizer that changes the text before it cuts it")
    if kinds == ["ByteLevel"] and byte_level.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        rule = steps[0]["pattern"].get("Regex", "")
        if rule in _SPLITS:
            return _SPLITS[rule]
    raise _unknown(f"a tokenizer that cuts text by {', '.join(map(str, kinds)) or 'nothing'}")


def _adds_space(table: Mapping[str, Any]) -> bool:
    normal = table.get("normalizer") or {}
    steps = normal.get("normalizers", [normal])
    return any(step.get("type") == "Prepend" for step in steps)


def _unknown(found: str) -> ModelError:
    return ModelError(
        given="the base's tokenizer",
        found=f"{found}, which has no name in llama.cpp here",
        instead="--for merged, and llama.cpp's own converter on that folder",
    )
