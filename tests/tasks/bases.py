"""Tiny bases on disk, as they would be downloaded, and rows for what they are trained to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.adapters.architectures import config, model

from loratlas.data.examples import Encoded, EncodeReport, Example, digest_of
from loratlas.models.task import CLASSIFICATION, SEQ2SEQ, Task, for_task

CLASSIFIERS = (
    *("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"),
    *("bart", "t5"),
    *("gpt2", "gpt_neo", "llama", "qwen3"),
)
"""Types that a classifier is put on: encoders, encoder-decoders and decoders."""

TRANSLATORS = ("bart", "marian", "mbart", "mt5", "pegasus", "t5")

LABELS = Task(name=CLASSIFICATION, labels=("no", "perhaps", "yes"))
TARGETS = Task(name=SEQ2SEQ)


def base(folder: Path, model_type: str, *, tokenizer: Path | None = None) -> Path:
    """Save a tiny language model, of the class that its type is read as."""
    from loratlas.models.quiet import quiet

    out = folder / model_type
    if not out.is_dir():
        live = model(model_type)
        if tokenizer is not None:
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(tokenizer)
            live.resize_token_embeddings(len(loaded))
            loaded.save_pretrained(out)
        with quiet():
            live.save_pretrained(out)
    return out


def load(path: Path, task: Task, *, dtype: str = "float32") -> Any:
    """The base as the task has it."""
    from loratlas.models.load import load_model

    return load_model(path, dtype=dtype, config=for_task(path, task, pad_id=0))


def rows(model_type: str, task: Task, n: int = 12, *, seed: int = 0) -> Encoded:
    """``n`` random examples of unlike lengths; those of a classification end with the end token, once."""
    random = np.random.default_rng(seed)
    settings = config(model_type)

    def text(longest: int) -> np.ndarray:
        ids = random.integers(5, settings.vocab_size, int(random.integers(1, longest))).astype(np.int32)
        return np.append(ids, np.int32(settings.eos_token_id))

    examples = []
    for row in range(n):
        if task.name == CLASSIFICATION:
            ids = text(30)
            label = int(random.integers(len(task.labels)))
            examples.append(
                Example(input_ids=ids, labelled=np.zeros(len(ids), dtype=bool), row=row, label=label)
            )
        else:
            source, target = text(30), text(20)
            ids = np.concatenate([source, target])
            labelled = np.arange(len(ids)) >= len(source)
            examples.append(Example(input_ids=ids, labelled=labelled, row=row, source=len(source)))
    tokens, counted = sum(map(len, examples)), sum(example.counted for example in examples)
    return Encoded(
        examples=tuple(examples),
        report=EncodeReport(rows=n, kept=n, cut=0, dropped=0, empty=0, tokens=tokens, answer_tokens=counted),
        digest=digest_of(examples),
        template="",
        pad_id=0,
        source="random",
        task=task,
    )
