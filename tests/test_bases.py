"""The trained bases that a clone carries: whole, what their cards say, and trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from loratlas.anatomy.read import read
from loratlas.placement.plan import place

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[1] / "bases").glob("*/config.json"))

TEXT = "The government of the country is a republic. It was one of the first to be made in the north of the world."


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


def opened(folder):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

    record = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    kinds = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "spans": AutoModelForSeq2SeqLM}
    model = kinds[record["objective"]].from_pretrained(folder, dtype=torch.float32)
    return record, model.eval(), AutoTokenizer.from_pretrained(folder)


def test_a_base_is_what_its_card_says(folder):
    record, model, tokenizer = opened(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert len(tokenizer) <= model.config.vocab_size
    assert (folder / "model.safetensors").stat().st_size < 20_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{record['parameters']:,} parameters" in card
    assert f"{record['held_out_loss']:.3f} nats" in card


def test_every_matrix_of_a_base_has_its_role(folder):
    anatomy = read(folder)
    assert not anatomy.unresolved
    attention, feedforward, whole = (
        place(anatomy, f"{part}:1").trainable for part in ("attention", "feedforward", "all")
    )
    assert attention + feedforward == whole


def test_a_base_has_learned_more_than_how_frequent_words_are(folder):
    """Shuffled words are as frequent as before, and harder to tell from one another."""
    record, model, tokenizer = opened(folder)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    ordered, mixed = (_surprise(record["objective"], model, tokenizer, seen) for seen in (ids, shuffled))
    assert ordered < math.log(model.config.vocab_size) - 2
    assert ordered < mixed - 0.5


def _surprise(objective, model, tokenizer, ids):
    """Mean −log p of each token: from those before it; or, hidden on its own, from all others."""
    with torch.no_grad():
        if objective == "causal":
            return float(model(input_ids=ids, labels=ids).loss)
        losses = []
        for place_ in range(ids.shape[1]):
            seen, labels = ids.clone(), torch.full_like(ids, -100)
            if objective == "masked":
                seen[0, place_] = tokenizer.mask_token_id
                labels[0, place_] = ids[0, place_]
            else:
                first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
                seen[0, place_] = first
                labels = torch.tensor([[first, int(ids[0, place_])]])
            logits = model(input_ids=seen, labels=labels).logits.flatten(0, 1)
            wanted = labels.flatten()
            wanted = torch.where(wanted == first, -100, wanted) if objective == "spans" else wanted
            losses.append(float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100)))
        return sum(losses) / len(losses)
