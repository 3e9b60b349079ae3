"""Corpus → documents → tokenizer → one long row of token ids, kept beside the checkpoints."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bases import VOCABULARY

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEPARATOR = "<|doc|>"
SAMPLE = 5_000_000
"""Characters that a tokenizer is trained on."""

SENTINELS = 100


def documents(path: Path) -> Iterator[str]:
    """The documents of a gzipped text file, which a line ``<|doc|>`` separates."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        held: list[str] = []
        for line in lines:
            if line.rstrip("\n") == SEPARATOR:
                yield "".join(held).strip()
                held = []
            else:
                held.append(line)
        yield "".join(held).strip()


def sample(files: list[Path], characters: int = SAMPLE) -> Iterator[str]:
    """The first documents, until so many characters are reached."""
    left = characters
    for path in files:
        for document in documents(path):
            yield document
            left -= len(document)
            if left < 0:
                return


def tokenizer(kind: str, files: list[Path], folder: Path) -> Any:
    """The base's tokenizer: read from its folder where it is there, else trained and written.

    Args:
        kind: ``bpe``, ``wordpiece`` or ``unigram``.
        files: of the training text.
        folder: of the base.

    Returns:
        A fast tokenizer of transformers.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        made = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}[kind](files)
        made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def special(tokens: Any) -> dict[str, int]:
    """Ids by role; a BERT-like tokenizer ends a text with ``[SEP]``."""
    by_name = {
        "pad": tokens.pad_token_id,
        "eos": tokens.eos_token_id if tokens.eos_token_id is not None else tokens.sep_token_id,
        "cls": tokens.cls_token_id,
        "mask": tokens.mask_token_id,
    }
    return {role: number for role, number in by_name.items() if number is not None}


def ids(tokens: Any, files: list[Path], cache: Path, *, limit: int) -> NDArray[np.uint16]:
    """The text as ids, documents ended by the end-of-text token; at most ``limit`` of them.

    Args:
        tokens: the tokenizer.
        files: in order.
        cache: a ``.npy`` file, read where it exists.
        limit: tokens.
    """
    if cache.exists():
        return np.load(cache, mmap_mode="r")
    parts: list[NDArray[np.uint16]] = []
    end, count, batch = special(tokens)["eos"], 0, []
    for path in files:
        for document in documents(path):
            batch.append(document)
            if len(batch) < 64:
                continue
            parts.append(_encode(tokens, batch, end))
            count, batch = count + len(parts[-1]), []
            if count >= limit:
                break
        if count >= limit:
            break
    if batch:
        parts.append(_encode(tokens, batch, end))
    result = np.concatenate(parts)[:limit]
    np.save(cache, result)
    return result


def _encode(tokens: Any, batch: list[str], end: int) -> NDArray[np.uint16]:
    encoded = tokens(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return np.asarray([token for row in encoded for token in (*row, end)], dtype=np.uint16)


def _bpe(files: list[Path]) -> Any:
    from transformers import AutoTokenizer

    from loratlas.demo import base_path

    del files
    loaded = AutoTokenizer.from_pretrained(base_path(), trust_remote_code=False)
    loaded.model_max_length = 256
    return loaded


def _wordpiece(files: list[Path]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=names, limit_alphabet=300, show_progress=False
    )
    built.train_from_iterator(sample(files), trainer)
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", names.index("[CLS]")), ("[SEP]", names.index("[SEP]"))],
    )
    built.decoder = decoders.WordPiece()
    return BertTokenizerFast(tokenizer_object=built, do_lower_case=True, model_max_length=256)


def _unigram(files: list[Path]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    sentinels = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    built = Tokenizer(models.Unigram())
    built.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=["\n", "\t"],
        show_progress=False,
    )
    built.train_from_iterator(sample(files), trainer)
    built.add_special_tokens(sentinels)
    built.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    built.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        model_max_length=512,
    )
