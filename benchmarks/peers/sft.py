"""PEFT's layers under TRL's `SFTTrainer` with packing.

TRL packs with best-fit decreasing, lays the packs of a batch end to end and starts positions anew in each row, from
which transformers makes the mask. Its settings that differ from `Trainer`'s defaults are undone where they cost time:
recomputation, logging.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.outcome import Outcome, Schedule, Tape
from benchmarks.peers.trainer import IGNORED, common, row_of, run, settled, watcher
from loratlas.data.examples import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How TRL is set up.

    Args:
        name: in the result.
        dtype: of the frozen base.
        autocast: ``bf16=True``.
        compiled: ``torch_compile=True``.
        pack: tokens of a pack (``max_length``); None for as many as an average step of ``schedule.batch`` rows has.
        accumulate: a step's packs one after the other instead of end to end, which keeps masks small.
    """

    name: str
    dtype: str = "bfloat16"
    autocast: bool = False
    compiled: bool = False
    pack: int | None = None
    accumulate: bool = False


BEST = tuple(
    Packing(
        name=f"packing, {'512 a time' if pack else 'one pack a step'}, "
        f"bf16 {'autocast' if autocast else 'weights'}{', compiled' if compiled else ''}",
        autocast=autocast,
        compiled=compiled,
        pack=pack,
        accumulate=pack is not None,
    )
    for pack in (None, 512)
    for autocast in (False, True)
    for compiled in (False, True)
)
"""Candidates for its best; the fastest is taken."""


def train(
    model: Any, tokenizer: Any, data: Encoded, order: Sequence[int], schedule: Schedule, packing: Packing
) -> Outcome:
    """Train on the rows once each; about as many steps as the other sides take.

    Args:
        model: a `PeftModel` over a base in ``packing.dtype``.
        tokenizer: of the base; TRL wants one although the rows are tokenised.
        data: encoded rows, none longer than a pack.
        order: of the rows, before packing.
        schedule: shared by all sides.
        packing: the peer's own settings.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chosen = [data.examples[int(index)] for index in order]
    rows = [row_of(example) for example in chosen]
    per_step = sum(len(e) for e in chosen) * schedule.batch / len(chosen)
    pack = packing.pack or max(round(per_step), max(len(e) for e in chosen))
    packs = max(1, round(per_step / pack))
    tape = Tape()
    with tempfile.TemporaryDirectory() as folder, settled():
        arguments = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            packing=True,
            packing_strategy="bfd",
            max_length=pack,
            per_device_train_batch_size=1 if packing.accumulate else packs,
            gradient_accumulation_steps=packs if packing.accumulate else 1,
            torch_compile=packing.compiled,
            **common(schedule, autocast=packing.autocast),
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[watcher(tape)],
        )
        inner = trainer.data_collator

        def collate(batch: list[dict[str, Any]]) -> Any:
            made = inner(batch)
            places = made["input_ids"].numel()
            # The first place of an example is never predicted; TRL marks it like that itself.
            tape.count(labelled=int((made["labels"][:, 1:] != IGNORED).sum()), tokens=places, places=places)
            return made

        trainer.data_collator = collate
        return run(trainer, tape)
