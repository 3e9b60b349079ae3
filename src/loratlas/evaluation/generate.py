"""What a model writes: greedy answers to prompts, with the wanted answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loratlas.evaluation.eval_precision import evaluating
from loratlas.modeling import device_of, unwrap

if TYPE_CHECKING:
    from loratlas.data.rows import Row, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A prompt as text and tokens, and the answer that is wanted, as the tokenizer would give it back."""

    row: int
    prompt: str
    ids: list[int]
    wanted: str
    stop: int | None = None
    """The special token that ends the answer, where one does."""


def samples(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    *,
    limit: int,
    max_new_tokens: int = 128,
    rouge: bool = False,
    compare: bool = False,
) -> dict[str, Any]:
    """Answer the first rows greedily, and score the answers against the wanted ones.

    A row's prompt is everything before its last answer, tokenised as for training; an encoder-decoder reads it as its
    source. White space at both ends does not count. A row without a prompt (raw text, an answer alone) is left out.

    Args:
        model: a causal language model or an encoder-decoder, bare or as a `PeftModel`.
        tokenizer: its own.
        rows: `loratlas.data.rows.Rows`.
        limit: rows to answer at most.
        max_new_tokens: longest answer, in tokens; also what the model's context leaves.
        rouge: measure ROUGE-L as well.
        compare: of a `PeftModel`, also generate with its adapter switched off.

    Returns:
        ``{"rows", "exact", "exact_match", "rouge_l", "samples": [{"row", "prompt", "answer", "wanted", "exact"}]}``;
        ``exact_match`` is a share and ``rouge_l`` a mean, both None where no row was answered; ``rouge_l`` is there,
        and in every sample, if it was asked for. With ``compare`` every sample has ``base``, the answer without the
        adapter.

    Raises:
        SettingsError: ``rouge`` without the package ``rouge-score``.
    """
    from loratlas.evaluation.rouge import rouge_l

    similarity = rouge_l() if rouge else None
    questions = list(_answerable(model, tokenizer, rows, limit=limit, max_new_tokens=max_new_tokens))
    answers = _generate(model, tokenizer, questions)
    # Read once more with the adapter off, after all the others: switching it is a pass over all modules.
    base = None
    if compare and isinstance(getattr(model, "peft_config", None), dict):
        with model.disable_adapter():
            base = _generate(model, tokenizer, questions)
    answered: list[dict[str, Any]] = []
    for index, ((asked, _), answer) in enumerate(zip(questions, answers, strict=True)):
        sample = {"row": asked.row, "prompt": asked.prompt, "answer": answer, "wanted": asked.wanted}
        sample["exact"] = answer == asked.wanted
        if similarity:
            sample["rouge_l"] = similarity(asked.wanted, answer)
        if base is not None:
            sample["base"] = base[index]
        answered.append(sample)
    exact, n = sum(sample["exact"] for sample in answered), len(answered)
    summary: dict[str, Any] = {"rows": n, "exact": exact, "exact_match": exact / n if n else None}
    if similarity:
        summary["rouge_l"] = sum(sample["rouge_l"] for sample in answered) / n if n else None
    return {**summary, "samples": answered}


def _answerable(
    model: Any, tokenizer: Any, rows: Rows, *, limit: int, max_new_tokens: int
) -> Iterator[tuple[_Question, int]]:
    """The first questions that fit the model's context, with the tokens that an answer may have."""
    config = unwrap(model).config
    paired = bool(config.is_encoder_decoder)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    left = limit
    for asked in _targets(rows, tokenizer) if paired else _answers(rows, tokenizer):
        if not left:
            return
        used = 1 if paired else len(asked.ids)  # of the positions of the answer
        room = max_new_tokens if context is None else min(max_new_tokens, context - used)
        if room < 1 or (paired and context is not None and len(asked.ids) > context):
            continue
        left -= 1
        yield asked, room


def _generate(model: Any, tokenizer: Any, questions: Sequence[tuple[_Question, int]]) -> list[str]:
    import torch

    inner = unwrap(model)
    device = device_of(inner)
    answers = []
    with evaluating(model):
        for asked, room in questions:
            prompt = torch.tensor([asked.ids], device=device)
            out = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=_greedy(inner, tokenizer, room, asked.stop),
            )
            new = out[0, 0 if inner.config.is_encoder_decoder else len(asked.ids) :]
            answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


def _greedy(inner: Any, tokenizer: Any, room: int, stop: int | None) -> Any:
    from transformers import GenerationConfig

    from loratlas.data.encode import pad_id

    wanted = {"do_sample": False, "max_new_tokens": room, "use_cache": True}
    if inner.config.is_encoder_decoder:
        # How a target begins is the model's own matter.
        config = copy.deepcopy(inner.generation_config)
        config.update(**wanted, num_beams=1, max_length=None)
        return config
    own = getattr(inner.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, stop, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(**wanted, eos_token_id=sorted(ends) or None, pad_token_id=pad_id(tokenizer))


def _answers(rows: Rows, tokenizer: Any) -> Iterator[_Question]:
    """What a causal language model is asked: the tokens before the last answer, as they are in training."""
    from loratlas.data.chat.chat_template import render
    from loratlas.data.encode import opening_ids
    from loratlas.data.token_marks import tokenise

    opening = opening_ids(tokenizer) if not tokenizer.chat_template else []
    special = set(tokenizer.all_special_ids)
    for row in rows.rows:
        rendered = render(row, tokenizer)
        if not rendered.answers or not rendered.answers[-1].start:
            continue
        last = rendered.answers[-1]
        ((ids, marks),) = tokenise([replace(rendered, answers=(last,))], tokenizer)
        counted = ids[marks].tolist()
        if not len(counted) or marks[0]:
            continue
        yield _Question(
            row=row.source_row,
            prompt=rendered.text[: last.start],
            ids=opening + ids[: int(marks.argmax())].tolist(),
            wanted=_read(tokenizer, counted),
            stop=next((token for token in counted[-1:] if token in special), None),
        )


def _targets(rows: Rows, tokenizer: Any) -> Iterator[_Question]:
    """What an encoder-decoder is asked."""
    from loratlas.data.task_examples import source_text, target_text

    def question(row: Row) -> _Question:
        source = source_text(row)
        label = tokenizer(text_target=target_text(row))["input_ids"]
        return _Question(
            row=row.source_row,
            prompt=source,
            ids=tokenizer(source)["input_ids"],
            wanted=_read(tokenizer, label),
        )

    yield from (question(row) for row in rows.rows if source_text(row).strip() and target_text(row).strip())


def _read(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
