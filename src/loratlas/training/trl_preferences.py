"""Preferences trained by TRL's `DPOTrainer`, with the rows, the order, the rates and the adapters of a run here.

TRL computes the loss and takes the steps. Rows come tokenised, in the order that the run's seed draws, and the learning
rate of every step is the one that `loratlas.training.optimizer.rate` names: two arms of a study differ in nothing else
than their adapters.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any

from loratlas.data.batches.batching import training_order
from loratlas.data.encode import pad_id
from loratlas.data.examples import Encoded
from loratlas.data.preferences import split_pairs
from loratlas.errors import SettingsError
from loratlas.modeling import device_of, modes_kept, patched_forwards, unwrap
from loratlas.training.master_weights import learns_faster
from loratlas.training.optimizer import rate
from loratlas.training.run_events import CurvePoint, FitResult, StepEvent
from loratlas.training.settings import Settings


def check_trl() -> None:
    """Refuse where TRL is not installed.

    Raises:
        SettingsError: it is not.
    """
    if importlib.util.find_spec("trl") is None:
        raise SettingsError(
            given="trainer: dpo", found="TRL is not installed", instead='pip install "loratlas[trl]"'
        )


def fit_preferences(
    model: Any,
    pairs: Encoded,
    tokenizer: Any,
    settings: Settings,
    *,
    beta: float,
    on_step: Callable[[StepEvent], None],
) -> FitResult:
    """Train a model's adapters on pairs.

    Args:
        model: a `PeftModel` whose adapter is zero: TRL keeps a copy of it as the reference, which is then the base.
        pairs: of `loratlas.data.preferences.encode_pairs`.
        tokenizer: of the base, whose padding token fills short rows.
        settings: of the run.
        beta: of DPO.
        on_step: called after every step; what it raises ends the run.

    Raises:
        SettingsError: TRL is not installed.
    """
    check_trl()
    begun = time.perf_counter()
    import torch

    steps = settings.steps_for(len(pairs))
    order = training_order(
        len(pairs), steps=steps, batch_size=settings.batch_size, seed=settings.seed, subset=settings.subset
    ).flatten()
    record = _Record(steps=steps, tokens=_tokens(pairs, order), on_step=on_step)
    base = unwrap(model)
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        tempfile.TemporaryDirectory(prefix="loratlas-") as folder,
        modes_kept(model),
        patched_forwards([(base, base.forward)]),  # TRL puts a forward of its own on the base
        torch.random.fork_rng(devices=cuda),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        trainer = _trainer(model, tokenizer, _rows(pairs, order), settings, record, beta=beta, folder=folder)
        record.begun = time.perf_counter()
        trainer.train()
    return record.result(settings, setup=record.begun - begun)


class _Record:
    """What the trainer logs, step by step, in this project's words."""

    def __init__(
        self, *, steps: int, tokens: tuple[list[int], list[int]], on_step: Callable[[StepEvent], None]
    ) -> None:
        self.steps, self.on_step, self.begun = steps, on_step, 0.0
        self.tokens, self.answers = (list(accumulate(each)) for each in tokens)
        self.curve: list[CurvePoint] = []
        self.diverged_at: int | None = None

    def step(self, step: int, logs: Mapping[str, Any]) -> bool:
        """Enter a step; whether the run has diverged."""
        seconds = time.perf_counter() - self.begun
        nll, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        rows = len(self.tokens) // self.steps
        seen, answers = self.tokens[step * rows - 1], self.answers[step * rows - 1]
        if not (math.isfinite(nll) and math.isfinite(norm)):
            self.diverged_at = self.diverged_at or step
            return True
        lr = float(logs.get("learning_rate", 0.0))
        self.curve.append(CurvePoint(step=step, nll=nll, lr=lr, tokens=seen, seconds=seconds))
        self.on_step(
            StepEvent(
                step=step, steps=self.steps, nll=nll, lr=lr, norm=norm, tokens=seen, labelled_tokens=answers,
                tokens_per_second=seen / seconds, seconds=seconds,
                seconds_left=seconds / step * (self.steps - step),
            )
        )  # fmt: skip
        return False

    def result(self, settings: Settings, *, setup: float) -> FitResult:
        """The end of the run."""
        done = self.curve[-1] if self.curve else None
        times = [0.0, *(point.seconds for point in self.curve)]
        paces = sorted(later - earlier for earlier, later in pairwise(times))
        last = [point.nll for point in self.curve[-max(1, self.steps // 10) :]]
        rows = len(self.tokens) // self.steps
        answers = self.answers[done.step * rows - 1] if done else 0
        seconds = done.seconds if done else math.nan
        tokens = done.tokens if done else 0
        return FitResult(
            steps=done.step if done else 0,
            tokens=tokens,
            labelled_tokens=answers,
            train_nll=sum(last) / len(last) if last else math.nan,
            tokens_per_second=tokens / seconds,
            labelled_tokens_per_second=answers / seconds,
            setup_seconds=setup,
            step_seconds=paces[len(paces) // 2] if paces else math.nan,
            packing="padded",
            packing_reason="TRL lays the two answers of a pair side by side",
            compile_reason="not in TRL's trainer",
            diverged=self.diverged_at is not None,
            diverged_at=self.diverged_at,
            lr=settings.peak_lr,
            curve=self.curve,
        )


def _trainer(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, list[int]]],
    settings: Settings,
    record: _Record,
    *,
    beta: float,
    folder: str,
) -> Any:
    """TRL's trainer on rows that are tokenised already."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
            return dataset

    class StepListener(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                control.should_training_stop = record.step(state.global_step, logs)

    parameters = [p for p in model.parameters() if p.requires_grad]
    raised = {id(p) for name, p in model.named_parameters() if learns_faster(name)}
    ratio = settings.loraplus or 1.0
    groups = [
        {"params": [p for p in parameters if (id(p) in raised) == faster], "lr": settings.peak_lr * scale}
        for faster, scale in ((False, 1.0), (True, ratio))
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(settings, min(step, record.steps - 1), record.steps) / settings.peak_lr
    )
    return TokenisedDPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=folder,
            beta=beta,
            max_steps=record.steps,
            per_device_train_batch_size=settings.micro_batch or settings.batch_size,
            gradient_accumulation_steps=settings.batch_size // (settings.micro_batch or settings.batch_size),
            max_grad_norm=settings.clip or 0.0,
            gradient_checkpointing=settings.checkpointing,
            train_sampling_strategy="sequential",
            logging_steps=1,
            logging_nan_inf_filter=False,
            max_length=None,
            bf16=False,
            fp16=False,
            use_cpu=device_of(model).type == "cpu",
            seed=settings.seed,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            disable_dropout=False,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForPreference(pad_token_id=pad_id(tokenizer)),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[StepListener()],
    )


def _rows(pairs: Encoded, order: Any) -> list[dict[str, list[int]]]:
    """The pairs in the order of the run, as TRL's collator takes them."""
    rows = []
    chosen, rejected = split_pairs(pairs)
    for index in order:
        first, second = chosen.examples[index], rejected.examples[index]
        begins = int(first.labelled.argmax())
        rows.append(
            {
                "prompt_ids": first.input_ids[:begins].tolist(),
                "chosen_ids": first.input_ids[begins:].tolist(),
                "rejected_ids": second.input_ids[begins:].tolist(),
            }
        )
    return rows


def _tokens(pairs: Encoded, order: Any) -> tuple[list[int], list[int]]:
    """Tokens of every pair of the run, and those of them that are answers."""
    examples = [pairs.examples[index] for index in order]
    return list(map(len, examples)), [int(example.labelled.sum()) for example in examples]
