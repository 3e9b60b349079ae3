"""A transformers Trainer over a tiny model with adapters, and, run as a script, one process of several."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.tiny import VOCABULARY
from tests.training.small import adapted
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import loratlas
from loratlas.dynamic import gradient_watch

SMOOTH = {"learning_rate": 1.0, "adam_epsilon": 1.0, "max_grad_norm": 0.5}
"""Steps in proportion to gradients, so that rounding stays what it is instead of turning the steps of small numbers."""


class Rows(Dataset):
    """Rows in which a token follows from the one before, so that there is something to learn."""

    def __init__(self, n=64):
        drawn = torch.Generator().manual_seed(0)
        columns = [torch.randint(3, VOCABULARY, (n,), generator=drawn)]
        for _ in range(11):
            columns.append(columns[-1] % 7 + 3)
        self.tokens = torch.stack(columns, 1)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def arguments(out, **changes):
    base = {
        "max_steps": 12, "learning_rate": 2e-2, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "disable_tqdm": True, "per_device_train_batch_size": 4, "seed": 1, "logging_steps": 1,
        "lr_scheduler_type": "cosine",
    }  # fmt: skip
    return TrainingArguments(output_dir=str(out), **{**base, **changes})


def trainer(out, *, model=None, rows=None, callbacks=(), optimizers=(None, None), **changes):
    return Trainer(
        model=adapted() if model is None else model, args=arguments(out, **changes),
        train_dataset=rows or Rows(), eval_dataset=Rows(8), callbacks=list(callbacks), optimizers=optimizers,
    )  # fmt: skip


def placed(own, **changes):
    """A placement that moves at steps 4, 6 (and no later, by default), installed."""
    wanted = {"policy": "random", "head": 4, "decide": "every=2", "on_decision": lambda _: None, **changes}
    return loratlas.DynamicPlacement(**wanted).install(own)


def resumable(out: Path) -> str:
    """The folder of a checkpoint after 5 of 12 steps."""
    own = trainer(out, save_strategy="steps", save_steps=5)
    placed(own)
    own.train()
    return str(out / "checkpoint-5")


def main(out: Path, policy: str) -> None:
    """One process of several: train with moves, write what came out. All rows make a step, whatever their order."""
    gradient_watch.SHARE = 1.0  # a tiny model's gradients would be sketched in a step of twelve
    own = trainer(
        out / "trainer", rows=Rows(8), ddp_backend="gloo", max_steps=20, gradient_accumulation_steps=2,
        per_device_train_batch_size=2, **SMOOTH,
    )  # fmt: skip
    placement = placed(own, policy=policy)
    own.train()
    rank = own.args.process_index
    named = {name: p.detach().clone() for name, p in own.model.named_parameters() if p.requires_grad}
    save_file(named, out / f"{policy}-{rank}.safetensors")
    state = own.optimizer.optimizer.state
    moments = {
        name: state[p]["exp_avg"].clone() for name, p in own.model.named_parameters() if p.requires_grad
    }
    save_file(moments, out / f"{policy}-moments-{rank}.safetensors")
    moves = [move.to_json() for move in placement.moves]
    decisions = [decision.to_json() for decision in placement.decisions]
    (out / f"{policy}-{rank}.json").write_text(json.dumps({"moves": moves, "decisions": decisions}))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        main(Path(sys.argv[1]), name)
