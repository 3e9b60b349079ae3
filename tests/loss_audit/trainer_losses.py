"""The tools whose numbers the audit explains, run for real on small models."""

from __future__ import annotations

from typing import Any

import numpy as np

from loratlas.data.examples import Encoded

PAD = 0
IGNORED = -100


def dataset(data: Encoded, *, labels: str = "answer") -> list[dict[str, list[int]]]:
    """Rows as a trainer takes them: ``answer``: prompts masked; ``all``: labels are the input."""
    rows = []
    for example in data.examples:
        ids = example.input_ids.tolist()
        told = np.where(example.labelled, example.input_ids, IGNORED).tolist()
        rows.append({"input_ids": ids, "labels": ids if labels == "all" else told})
    return rows


def collate(side: str = "right", *, pad: int = PAD, mask_padding: bool = True) -> Any:
    """A collator that fills batches; without a mask on labels the filling is counted."""
    import torch

    def run(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(values: list[int], by: int) -> list[int]:
            filler = [by] * (longest - len(values))
            return values + filler if side == "right" else filler + values

        return {
            "input_ids": torch.tensor([filled(row["input_ids"], pad) for row in rows]),
            "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([filled(row["labels"], IGNORED if mask_padding else pad) for row in rows]),
        }

    return run


def trainer(
    model: Any,
    rows: list[dict[str, Any]],
    folder: Any,
    *,
    batch_size: int,
    collator: Any = None,
    **arguments: Any,
) -> Any:
    """transformers' own Trainer over the rows, quiet."""
    from transformers import Trainer, TrainingArguments

    options = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=batch_size,
        per_device_train_batch_size=batch_size,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="no",
        **arguments,
    )
    return Trainer(
        model=model, args=options, train_dataset=rows, eval_dataset=rows, data_collator=collator or collate()
    )


def eval_loss(model: Any, rows: list[dict[str, Any]], folder: Any, **arguments: Any) -> float:
    """What `Trainer.evaluate` reports as eval_loss."""
    return float(trainer(model, rows, folder, **arguments).evaluate()["eval_loss"])
