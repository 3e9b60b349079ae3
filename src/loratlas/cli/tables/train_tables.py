"""What `train` prints: the run in a few rows, and how to load its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratlas import formats
from loratlas.adapters.export.loading_recipe import base_arguments
from loratlas.cli import output
from loratlas.cli.judging import headline, sample_scores, show_samples
from loratlas.models.gguf_header import is_gguf
from loratlas.sources import model_source


def show_run(numbers: Mapping[str, Any], *, verbose: bool = False) -> None:
    """Print a run: what it changed first, then what it cost.

    Args:
        numbers: as ``--json`` has them.
        verbose: also say how steps were computed.
    """
    if verbose and numbers["packing"] != "packed" and numbers["task"]["name"] == "causal":
        output.note(f"Padded instead of packed: {numbers['packing_reason']}")
    if verbose or numbers["compiled"]:
        output.note(f"torch.compile: {numbers['compile_reason']}")
    drawn = output.table("run", ("", "right"))
    before = numbers["loss_before"]
    for name, value in headline(numbers["eval"]) if numbers["eval"] else ():
        if name == "loss" and before is not None:
            start = "of the adapter it started from" if numbers["from"] else "of the base"
            drawn.add_row(f"evaluation loss {start}", f"{before:.4f}")
            drawn.add_row("evaluation loss now", value)
            drawn.add_row("difference", formats.signed(float(value) - before))
        else:
            drawn.add_row(f"evaluation {name}", value)
    drawn.add_row("steps", formats.count(numbers["steps"]))
    drawn.add_row("learning rate", f"{numbers['settings']['lr']:g}")
    if rates := numbers["rates"]:
        others = " ".join(f"{trial['rate']:g}" for trial in rates["tried"] if trial["outcome"] != "chosen")
        drawn.add_row(f"steps at other rates ({others})", formats.count(rates["set_aside"]))
    drawn.add_row("training loss, last steps", f"{numbers['train_nll']:.4f}")
    if numbers["samples"]:
        for name, value in sample_scores(numbers["samples"]):
            drawn.add_row(name, value)
    if lost := numbers["forgetting"]:
        drawn.add_row(
            f"forgetting on {lost['source']}",
            f"{lost['base_nll']:.4f} → {lost['nll']:.4f} ({lost['difference']:+.4f})",
        )
    if numbers["trainable"]:
        drawn.add_row("trainable parameters", formats.count(numbers["trainable"]))
    if numbers["decisions"]:
        drawn.add_row("sites whose rank moved", formats.count(len({m["path"] for m in numbers["moves"]})))
    if numbers["head"]:
        drawn.add_row("and the head", formats.count(numbers["head"]))
    drawn.add_row("tokens per second", formats.count(numbers["tokens_per_second"]))
    drawn.add_row("counted tokens per second", formats.count(numbers["labelled_tokens_per_second"]))
    output.show(drawn)
    if numbers["samples"]:
        show_samples(numbers["samples"])
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
        labels = {int(index): label for index, label in task["id2label"].items()}
        more = f", id2label={labels}, pad_token_id={numbers['pad_id']}"
    embedded = model.startswith("demo:")
    if embedded:
        base = f'base_path("{model}")'
    elif is_gguf(model):
        base = base_arguments(model)
    else:
        base = f'"{model_source(model)}"'  # no other library knows real:
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        *(["from loratlas.demo import base_path"] if embedded else []),
        # In the dtype of the training, so that the loss is the one that was reported.
        f'base = {auto}.from_pretrained({base}, dtype="{numbers["settings"]["dtype"]}"{more})',
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]
