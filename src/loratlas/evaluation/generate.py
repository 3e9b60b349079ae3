"""What the model says: greedy answers to prompts, beside the answers that were wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratlas.evaluation.precision import evaluating

if TYPE_CHECKING:
    from loratlas.data.rows import Rows


def samples(
    model: Any, tokenizer: Any, rows: Rows, *, limit: int, max_new_tokens: int = 128
) -> dict[str, Any]:
    """Answer the first rows greedily, and count the answers that are exactly the wanted ones.

    A row's prompt is everything before its last answer, tokenised as for training. White space at both ends does not
    count. A row without a prompt (raw text, an answer alone) is left out.

    Args:
        model: a causal language model, bare or as a `PeftModel`.
        tokenizer: its own.
        rows: `loratlas.data.rows.Rows`.
        limit: rows to answer at most.
        max_new_tokens: longest answer, in tokens; also what the model's context leaves.

    Returns:
        ``{"rows", "exact", "exact_match", "samples": [{"row", "prompt", "answer", "wanted", "exact"}]}``;
        ``exact_match`` is a share, None where no row was answered.
    """
    import torch
    from transformers import GenerationConfig

    from loratlas.data.encode import opening_ids, pad_id
    from loratlas.data.template import render

    plain = not tokenizer.chat_template
    opening = opening_ids(tokenizer) if plain else []
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    context = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    device = inner.get_input_embeddings().weight.device
    answered: list[dict[str, Any]] = []
    for row in rows.rows:
        if len(answered) >= limit:
            break
        pieces = render(row, tokenizer)
        ends = [place for place, (_, labelled) in enumerate(pieces) if labelled]
        if not ends or ends[-1] == 0:
            continue
        before = pieces[: ends[-1]]
        ids = opening + [
            i for text, _ in before for i in tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
        room = max_new_tokens if context is None else min(max_new_tokens, context - len(ids))
        if room < 1:
            continue
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=room,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad_id(tokenizer),
        )
        prompt = torch.tensor([ids], device=device)
        with evaluating(model):
            out = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
            )
        answer = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
        label = tokenizer(pieces[ends[-1]][0], add_special_tokens=False)["input_ids"]
        wanted = tokenizer.decode(label, skip_special_tokens=True).strip()
        answered.append(
            {
                "row": row.source_row,
                "prompt": "".join(text for text, _ in before),
                "answer": answer,
                "wanted": wanted,
                "exact": answer == wanted,
            }
        )
    exact = sum(sample["exact"] for sample in answered)
    return {
        "rows": len(answered),
        "exact": exact,
        "exact_match": exact / len(answered) if answered else None,
        "samples": answered,
    }
