"""What `train` prints: the run in a few rows, and how to load its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratlas import formats
from loratlas.cli import output
from loratlas.cli.judging import headline, sample_scores


def show_run(numbers: Mapping[str, Any]) -> None:
    """Print a run."""
    if numbers["packing"] != "packed" and numbers["task"]["name"] == "causal":
        output.note(f"Padded instead of packed: {numbers['packing_reason']}")
    reason = numbers["compile_reason"]
    output.note(f"torch.compile: {reason}")
    drawn = output.table("run", ("", "right"))
    drawn.add_row("steps", formats.count(numbers["steps"]))
    drawn.add_row("loss on the last steps", f"{numbers['train_nll']:.4f}")
    for name, value in headline(numbers["eval"]) if numbers["eval"] else ():
        drawn.add_row(f"evaluation {name}", value)
    if numbers["samples"]:
        for name, value in sample_scores(numbers["samples"]):
            drawn.add_row(name, value)
    if numbers["trainable"]:
        drawn.add_row("trainable parameters", formats.count(numbers["trainable"]))
    if numbers["head"]:
        drawn.add_row("and the head, trained whole", formats.count(numbers["head"]))
    drawn.add_row("tokens per second", formats.count(numbers["tokens_per_second"]))
    drawn.add_row("counted tokens per second", formats.count(numbers["labelled_tokens_per_second"]))
    output.show(drawn)
    output.say(f"Adapter: {numbers['adapter']}. Load it with:")
    for line in _loading(numbers):
        output.say(f"  {line}")


_AUTO = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}


def _loading(numbers: Mapping[str, Any]) -> list[str]:
    """How to load the adapter, in Python."""
    model, adapter, task = numbers["model"], numbers["adapter"], numbers["task"]
    auto, more = _AUTO[task["name"]], ""
    if "id2label" in task:
        labels = {int(place): label for place, label in task["id2label"].items()}
        more = f", id2label={labels}, pad_token_id={numbers['pad_id']}"
    base, embedded = f'"{model}"', model.startswith("demo:")
    if embedded:
        base = f'base_path("{model}")'
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        *(["from loratlas.demo import base_path"] if embedded else []),
        f"base = {auto}.from_pretrained({base}{more})",
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]
