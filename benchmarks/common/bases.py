"""The three bases and the rows that measurements run on.

`llama-mini` is the embedded base with its trained weights. The other two have the shapes of GPT-2 small and of
DialoGPT-medium and random weights, which cost as much to compute with. Base dropout is 0 throughout.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.examples import Encoded, EncodeReport, Example

ROOT = Path(__file__).resolve().parents[2]

MINI, SMALL, MEDIUM = "llama-mini", "gpt2-small", "dialogpt-medium"

SHAPES = {
    SMALL: {"n_embd": 768, "n_layer": 12, "n_head": 12},
    MEDIUM: {"n_embd": 1024, "n_layer": 24, "n_head": 16},
}
"""Of GPT-2's family; vocabulary 50,257 and 1,024 positions in both."""

LABELLED = 0.54
"""Share of Alpaca's tokens that the loss counts; made-up rows count as many."""


def shared(path: str) -> Path:
    """A file of the folder with real rows: ``LORATLAS_SHARED``, or ``shared`` beside the checkout.

    Raises:
        SystemExit: it is not there.
    """
    result = Path(os.environ.get("LORATLAS_SHARED", ROOT.parent / "shared")) / path
    if not result.exists():
        raise SystemExit(
            f"{path} is missing: point LORATLAS_SHARED to the folder that holds it, "
            "or put it into a folder named shared beside the checkout"
        )
    return result


def base(name: str, dtype: str) -> Any:
    """A frozen base in eval mode.

    Args:
        name: `MINI`, `SMALL` or `MEDIUM`.
        dtype: pinned on every side, for transformers 5 would take that of the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    from loratlas.demo import base_path
    from loratlas.modeling import zero_dropout
    from loratlas.models.load import load_model

    if name == MINI:
        return load_model(base_path(), dtype=dtype)
    config = GPT2Config(**SHAPES[name], use_cache=False)
    zero_dropout(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.requires_grad_(False)
    return model.eval()


def adapted(name: str, dtype: str, *, placement: str = "all:8", dropout: float = 0.0, seed: int = 0) -> Any:
    """A base with adapters of PEFT on it, the same numbers for the same seed on every side."""
    from loratlas.placement.plan import place

    model = base(name, dtype)
    return place(model.config, placement).attach(model, seed=seed, dropout=dropout)


def vocabulary(name: str) -> int:
    """Tokens that the base knows."""
    return 8192 if name == MINI else 50257


def made_up(name: str, *, rows: int, length: int, seed: int = 0) -> Encoded:
    """Rows of random tokens, all of one length, the last `LABELLED` of each counted."""
    random = np.random.default_rng(seed)
    counted = np.arange(length) >= length - round(LABELLED * length)
    examples = tuple(
        Example(
            input_ids=random.integers(2, vocabulary(name), length, dtype=np.int32),
            labelled=counted.copy(),
            row=row,
        )
        for row in range(rows)
    )
    return as_encoded(examples, "made up")


def as_encoded(examples: tuple[Example, ...], source: str) -> Encoded:
    """Examples as the loop takes them."""
    return Encoded(
        examples=examples,
        report=EncodeReport.of(examples),
        digest=f"{source}:{len(examples)}",
        template="none",
        pad_id=0,
        source=source,
    )


def tokenizer_of(name: str) -> Any:
    """The tokenizer that goes with a base."""
    from loratlas.data.encode import load_tokenizer
    from loratlas.demo import base_path

    return load_tokenizer(base_path() if name == MINI else shared("tokenizers/gpt2"))


def alpaca(name: str, *, rows: int, split: str = "train", max_length: int = 512) -> Encoded:
    """The first rows of Alpaca, tokenised for a base."""
    from loratlas.data.encode import encode
    from loratlas.data.load_rows import load_rows

    read = load_rows(str(shared(f"data/alpaca_{split}.jsonl.gz")), limit=rows)
    return encode(read, tokenizer_of(name), max_length=max_length)
