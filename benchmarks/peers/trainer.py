"""PEFT's layers under transformers' `Trainer`.

Rows come tokenised, so that every side counts the same tokens. What is timed is `Trainer.train` alone: building the
trainer is not held against it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common.timing import timed
from benchmarks.peers.outcome import Outcome, Schedule, Tape
from loratlas.data.examples import Encoded, Example

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a peer is set up.

    Args:
        name: in the result.
        dtype: of the frozen base; adapters are float32, as PEFT makes them.
        autocast: ``bf16=True``, products in bfloat16 whatever the weights.
        compiled: ``torch_compile=True``.
        sampling: ``train_sampling_strategy``. "sequential" over rows laid out in this project's order gives both
            sides the same batches; "group_by_length" is the peer's own way to save padding.
        accumulate: micro-batches per step; rows per micro-batch fall accordingly.
    """

    name: str
    dtype: str
    autocast: bool = False
    compiled: bool = False
    sampling: str = "sequential"
    accumulate: int = 1


SHIPPED = Recipe(name="as shipped", dtype="float32")

BEST = tuple(
    Recipe(
        name=f"bf16 {'autocast' if autocast else 'weights'}{', compiled' if compiled else ''}, by length",
        dtype="bfloat16",
        autocast=autocast,
        compiled=compiled,
        sampling="group_by_length",
    )
    for autocast in (False, True)
    for compiled in (False, True)
)
"""Candidates for its best; the fastest is taken."""


def batch_of(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows side by side, filled to the longest."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, by: int) -> torch.Tensor:
        return torch.tensor([row[name] + [by] * (longest - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    return {
        "input_ids": filled("input_ids", pad_id),
        "labels": filled("labels", IGNORED),
        "attention_mask": mask,
    }


def row_of(example: Example) -> dict[str, list[int]]:
    """An example as transformers takes it: labels unshifted, -100 where the loss counts nothing."""
    return {
        "input_ids": example.input_ids.tolist(),
        "labels": [
            int(token) if counted else IGNORED
            for token, counted in zip(example.input_ids, example.labelled, strict=True)
        ],
    }


def train(model: Any, data: Encoded, order: Sequence[int], schedule: Schedule, recipe: Recipe) -> Outcome:
    """Train on the rows in an order, once each.

    Args:
        model: a `PeftModel` over a base in ``recipe.dtype``.
        data: encoded rows.
        order: of the rows; a sampler that makes its own order only takes the set.
        schedule: shared by all sides.
        recipe: the peer's own settings.
    """
    from transformers import Trainer, TrainingArguments

    rows = [row_of(data.examples[int(index)]) for index in order]
    tape = Tape()

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        made = batch_of(batch, data.pad_id)
        tape.count(
            labelled=int((made["labels"][:, 1:] != IGNORED).sum()),
            tokens=int(made["attention_mask"].sum()),
            places=made["input_ids"].numel(),
        )
        return made

    with tempfile.TemporaryDirectory() as folder, settled():
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=schedule.batch // recipe.accumulate,
            gradient_accumulation_steps=recipe.accumulate,
            torch_compile=recipe.compiled,
            train_sampling_strategy=recipe.sampling,
            remove_unused_columns=False,
            label_names=["labels"],
            **common(schedule, autocast=recipe.autocast),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            callbacks=[watcher(tape)],
        )
        return run(trainer, tape)


def common(schedule: Schedule, *, autocast: bool) -> dict[str, Any]:
    """Arguments of `TrainingArguments` and of `SFTConfig` that do not differ between the peers."""
    return {
        "learning_rate": schedule.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": schedule.clip,
        "optim": "adamw_torch_fused",
        "bf16": autocast,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": schedule.seed,
        "use_cpu": not torch.cuda.is_available(),
    }


def watcher(tape: Tape) -> Any:
    """A callback that stamps the end of every step."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
            tape.clock.lap()

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            tape.step()

    return Watcher()


def run(trainer: Any, tape: Tape) -> Outcome:
    """Train, timed."""
    whole, _ = timed(trainer.train)
    trainer.accelerator.free_memory()
    return tape.outcome(whole)


@contextmanager
def settled() -> Iterator[None]:
    """Keep what a peer leaves in the process from the next: its switches for compilation, compiled code, remarks."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    before = dict(os.environ)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name not in before]:
            del os.environ[name]
        torch.compiler.reset()
