"""The finished folder of a base: weights, configuration, tokenizer and a card that says how it came about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from train import HELD_OUT, TOKENS, WHOLE, warm_up

if TYPE_CHECKING:
    from train import Run

LICENCE = (
    "Licence: Apache-2.0, as the project; the text it was trained on is public domain, CC0 or CC BY 4.0 "
    "(attribution: OpenStax, Open English WordNet, Microsoft PowerShell documentation, tldr-pages, ELTeC)."
)

DATA = (
    "plain English (textbooks, world factbook, dictionary definitions, Python enhancement proposals, shell "
    "documentation, public-domain novels), in order, one pass"
)

OBJECTIVES = {
    "causal": "next token",
    "masked": "masked tokens, 30 % of them, without next-sentence prediction; heads of the first two layers begin by "
    "looking at neighbours (`tools/pretrain/neighbours.py`)",
    "spans": "missing spans, 25 % of the tokens in spans of 3 on average; before that, in the first quarter of the "
    "steps, all of the text from the same input, which teaches the decoder to read its encoder. Two heads of each "
    "stack begin by looking at neighbours, cross-attention by looking for the same token "
    "(`tools/pretrain/neighbours.py`)",
}


def write(run: Run) -> None:
    """Write ``model.safetensors``, ``config.json``, the tokenizer, ``pretraining.json`` and ``README.md``."""
    model, base = run.model, run.base
    model.eval()
    model.save_pretrained(run.out)
    count = sum(parameter.numel() for parameter in model.parameters())
    held = run.log["held"][-1][1]
    record = {
        "name": base.name,
        "parameters": count,
        "objective": base.objective,
        "steps": run.steps,
        "tokens": run.steps * TOKENS,
        "rows": list(base.lengths),
        "muon": base.muon,
        "adamw": base.adamw,
        "seed": run.seed,
        "held_out_loss": held,
        "held_out_tokens": HELD_OUT,
        "held_out_by_step": run.log["held"],
        "processor_seconds": round(run.log["seconds"]),
        "tokenizer": base.tokenizer,
    }
    (run.out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    (run.out / "README.md").write_text(card(run, count, held))


def card(run: Run, parameters: int, held: float) -> str:
    """The card, in Markdown."""
    base, tokens = run.base, run.steps * TOKENS
    tokenizers = {
        "bpe": "the tokenizer of llama-mini (byte-level BPE), so that losses per token can be laid side by side",
        "wordpiece": "an uncased WordPiece tokenizer trained on the same text",
        "unigram": "a Unigram tokenizer with 100 sentinels, trained on the same text",
    }
    *others, last = map(str, base.lengths)
    lengths = f"{', '.join(others)} and {last} in turn" if others else last
    if base.whole:
        lengths = f"{WHOLE}, and {lengths} after the first {round(base.whole * run.steps)}"
    optimiser = (
        f"Muon {base.muon:g} (scaled to AdamW's size of update) for the matrices of the blocks, AdamW "
        f"{base.adamw:g} for all else; {warm_up(run.steps)} steps of warm-up, level, straight down to 0 over the last "
        "40 %"
    )
    return f"""# {base.name}

A small trained base for measuring LoRA placement: {base.title}; {parameters:,} parameters, vocabulary
{run.model.config.vocab_size:,}, bfloat16 safetensors, {tokenizers[base.tokenizer]}.

| | |
|---|---|
| objective | {OBJECTIVES[base.objective]} |
| data | {DATA} |
| steps | {run.steps:,} of {TOKENS:,} tokens of text, rows of {lengths} |
| tokens | {tokens / 1e6:.1f} M |
| optimiser | {optimiser} |
| held-out loss | {held:.3f} nats per predicted token, on {HELD_OUT:,} tokens of held-out text |
| time | {run.log["seconds"] / 3600:.1f} processor hours, one thread |
| seed | {run.seed} |

To repeat it: `python tools/pretrain {base.name} --corpus CORPUS --out DIR --steps {run.steps} --seed {run.seed}`

What it is good for: correctness, speed, error rates, and placement findings *about a base of this size*. Nothing
measured on it says anything about large models.

{LICENCE}
"""
