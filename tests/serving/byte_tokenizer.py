"""A byte-level tokenizer of a given size, for tiny bases."""

from __future__ import annotations

from typing import Any


def tiny_tokenizer(size: int) -> Any:
    """Tokens are bytes and one merge, filled up with words that no text has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["a", "b", *(c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in "ab")][
        : size - 4
    ]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *letters, "ab"])}
    for index in range(len(vocabulary), size):
        vocabulary[f"no-word-{index}"] = index
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
