"""Rows of text → what a model reads and what it has to say: next token, masked token, missing spans.

Every draw comes from a generator of the step, so that a run that is gone on with sees what it would have seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MASKED = 0.30
"""Share of tokens that masked LM hides: 80 % as [MASK], 10 % as another token, 10 % as they are."""

NOISE = 0.25
"""Share of tokens that span corruption takes out."""

SPAN = 3
"""Mean length of a span."""

IGNORED = -100


def rows(
    stream: NDArray[np.uint16], step: int, *, tokens: int, length: int, frame: tuple[int, ...] = ()
) -> NDArray[np.int64]:
    """The rows of a step: the stream, cut in order.

    Args:
        stream: ids.
        step: from 0.
        tokens: of the text read by a step, the same for every step.
        length: of a row, frame included.
        frame: ids put before and after (``[CLS]``, ``[SEP]``), or none.

    Returns:
        [tokens // length, length].
    """
    inner = length - len(frame)
    count = tokens // length
    start = step * tokens
    result = np.asarray(stream[start : start + count * inner], dtype=np.int64).reshape(count, inner)
    if not frame:
        return result
    before, after = (np.full((count, 1), token, dtype=np.int64) for token in frame)
    return np.concatenate([before, result, after], axis=1)


def causal(text: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Every token from those before it."""
    labels = np.full_like(text, IGNORED)
    labels[:, :-1] = text[:, 1:]
    return {"input_ids": text, "labels": labels}


def masked(
    text: NDArray[np.int64], special: dict[str, int], vocabulary: int, generator: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    """Hidden tokens from all others (Devlin et al. 2019, arXiv:1810.04805), without next-sentence prediction."""
    free = ~np.isin(text, [special["cls"], special["eos"], special["pad"]])
    chosen = free & (generator.random(text.shape) < MASKED)
    how = generator.random(text.shape)
    other = generator.integers(len(special) + 1, vocabulary, text.shape)
    seen = np.where(chosen & (how < 0.8), special["mask"], text)
    seen = np.where(chosen & (how >= 0.9), other, seen)
    return {"input_ids": seen, "labels": np.where(chosen, text, IGNORED)}


def spans(
    text: NDArray[np.int64],
    special: dict[str, int],
    sentinels: int,
    generator: np.random.Generator,
    *,
    whole: bool = False,
) -> dict[str, NDArray[np.int64]]:
    """Missing spans from what is left (Raffel et al. 2020, arXiv:1910.10683).

    ``a b c d e f`` with ``b c`` and ``f`` taken out is read as ``a <0> d e <1> </s>`` and answered by
    ``<0> b c <1> f </s>``. Every row loses equally many tokens in equally many spans, so that no row is padded.

    With ``whole`` the answer is ``a b c d e f </s>``, as in the denoising that they compare with (their section 3.3.1):
    three tokens of four stand in the input, so that a decoder which does not read its encoder soon pays for it.

    Args:
        text: [n, length].
        special: ``pad`` begins the decoder's input, ``eos`` ends both sides.
        sentinels: id of ``<extra_id_0>``; those that follow have the next ids.
        generator: of the step.
        whole: answer with the whole text.
    """
    length = text.shape[1]
    taken = round(length * NOISE)
    pieces = max(1, round(taken / SPAN))
    inputs, labels = [], []
    for row in text:
        gone = _lengths(taken, pieces, generator)
        kept = _lengths(length - taken, pieces, generator)
        read: list[int] = []
        said: list[int] = []
        position = 0
        for number, (keep, drop) in enumerate(zip(kept, gone, strict=True)):
            read += [*row[position : position + keep], sentinels + number]
            said += [sentinels + number, *row[position + keep : position + keep + drop]]
            position += keep + drop
        inputs.append([*read, special["eos"]])
        labels.append([*(row if whole else said), special["eos"]])
    answers = np.asarray(labels, dtype=np.int64)
    begin = np.full((len(answers), 1), special["pad"], dtype=np.int64)
    return {
        "input_ids": np.asarray(inputs, dtype=np.int64),
        "decoder_input_ids": np.concatenate([begin, answers[:, :-1]], axis=1),
        "labels": answers,
    }


def _lengths(total: int, pieces: int, generator: np.random.Generator) -> list[int]:
    """A total cut into pieces of at least 1, all ways equally likely."""
    cuts = np.sort(generator.choice(total - 1, pieces - 1, replace=False) + 1)
    return np.diff(np.concatenate([[0], cuts, [total]])).tolist()


def loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """(sum of −log p over the labelled tokens, their number); logits are made for labelled tokens alone.

    Args:
        model: GPT2LMHeadModel, BertForMaskedLM or T5ForConditionalGeneration.
        batch: input_ids, labels and, for T5, decoder_input_ids.
    """
    from loratlas.evaluation.cross_entropy import nll

    labels = batch["labels"].flatten()
    here = (labels != IGNORED).nonzero()[:, 0]
    if model.config.model_type == "t5":
        read = model.encoder(input_ids=batch["input_ids"])[0]
        states = model.decoder(
            input_ids=batch["decoder_input_ids"], encoder_hidden_states=read, use_cache=False
        )[0]
        logits = model.lm_head(states.flatten(0, 1)[here] * model.config.d_model**-0.5)
    elif model.config.model_type == "bert":
        logits = model.cls(model.bert(input_ids=batch["input_ids"])[0].flatten(0, 1)[here])
    else:
        states = model.transformer(input_ids=batch["input_ids"], use_cache=False)[0]
        logits = model.lm_head(states.flatten(0, 1)[here])
    return nll(logits, labels[here]).sum(), len(here)
