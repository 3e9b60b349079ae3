"""A tiny base as a folder, with its tokenizer, and a few rows: commands run on it in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.serving.byte_tokenizer import tiny_tokenizer
from tests.tiny import tiny_model

TOKENS = 300


def save_tiny_base(folder: Path) -> Path:
    """A llama of three layers with random weights, and a byte-level tokenizer."""
    tiny_model("llama", vocab_size=TOKENS).save_pretrained(folder)
    tiny_tokenizer(TOKENS).save_pretrained(folder)
    return folder


def tiny_study(base: Path, rows: Path | str, **changes: Any) -> dict[str, Any]:
    """A study of two arms on such a base, as small as one can be; with other keys where they are given."""
    return {
        "name": "tiny",
        "model": str(base),
        "data": {"train": str(rows), "eval": str(rows)},
        "arms": {"one": "q@0:1", "two": "v@0:1"},
        "reference": "one",
        "match": "none",
        "learning_rates": [1e-3],
        "tuning": {"seeds": 1, "rows": 4, "extensions": 0},
        "evaluation": {"seeds": 2, "rows": 4},
        "steps": 1,
        "batch_size": 2,
        "max_length": 48,
        "demonstration": True,
        **changes,
    }


def save_few_rows(path: Path, count: int = 4) -> Path:
    """Prompts with completions, as JSON lines."""
    rows = [{"prompt": f"question {i}", "completion": f" answer {i}"} for i in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path
