"""PEFT and transformers' own Trainer, without this library: what a plan's config trains to in a process of its own.

Run as a script with folders: in each ``base`` (a model) and ``job.json`` (fields of the LoraConfig, rows, and settings
of the Trainer). Written are ``gradients.safetensors`` by parameter, before the first step, ``logits.safetensors`` after
the last, and ``result.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def collate(rows):
    width = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels, mask = torch.full((len(rows), width), -100), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row["ids"])
        ids[index, :size], mask[index, :size] = torch.tensor(row["ids"]), 1
        labels[index, :size] = torch.where(torch.tensor(row["counted"]), torch.tensor(row["ids"]), -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(job["seed"])
    model = get_peft_model(model, LoraConfig(**job["config"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    batch = collate(job["rows"])
    output = model(**batch)
    output.loss.backward()
    save_file({name: p.grad.clone() for name, p in trained.items()}, folder / "gradients.safetensors")
    model.zero_grad()
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=job["steps"],
        per_device_train_batch_size=len(job["rows"]),
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        weight_decay=0.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    optimizer = None
    if job["loraplus"]:
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=job["lr"], loraplus_lr_ratio=job["loraplus"], weight_decay=0.0
        )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=job["rows"],
        data_collator=collate,
        optimizers=(optimizer, None),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with torch.no_grad():
        save_file({"logits": model(**batch).logits.contiguous()}, folder / "logits.safetensors")
    foreign = [name for name in sys.modules if name.startswith("loratlas")]
    (folder / "result.json").write_text(
        json.dumps({"loss": float(output.loss), "losses": losses, "foreign": foreign})
    )


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
