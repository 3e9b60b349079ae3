"""The scripts that train the small bases: a killed run that is gone on with ends where an unbroken one does."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TOOL = Path(__file__).parents[1] / "tools" / "pretrain"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sums, written out: enough text for a few steps, and for a vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        f"The sum of item{n % 977}x and {n * 7 % 1013} is called total{n % 89}y in book {n}."
        for n in range(9000)
    ]
    for name, part in (("train-0", lines[:8000]), ("heldout", lines[8000:])):
        with gzip.open(folder / f"{name}.txt.gz", "wt", encoding="utf-8") as file:
            for start in range(0, len(part), 40):
                file.write("\n".join(part[start : start + 40]) + "\n<|doc|>\n")
    return folder


def run(base, corpus, out, steps, *more):
    command = [sys.executable, str(TOOL), base, "--corpus", str(corpus), "--out", str(out)]
    command += ["--steps", str(steps), "--hidden", "32", "--layers", "1", "--checkpoint-every", "2", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("base", ["gpt2-mini", "bert-mini", "t5-mini"])
def test_a_base_trains_resumes_and_tells_about_itself(base, corpus, tmp_path):
    run(base, corpus, tmp_path / "whole", 4)
    (tmp_path / "cut").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        # Training a vocabulary settles equal counts in no fixed order; a base that is gone on with keeps its own.
        shutil.copy(tmp_path / "whole" / name, tmp_path / "cut")
    run(base, corpus, tmp_path / "cut", 4, "--stop-after", "2")
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run(base, corpus, tmp_path / "cut", 4)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all((whole[name] == cut[name]).all() for name in whole)
    record = json.loads((tmp_path / "whole" / "pretraining.json").read_text())
    assert record["tokens"] == 4 * 6144
    assert f"{record['held_out_loss']:.3f}" in (tmp_path / "whole" / "README.md").read_text()


def part(name):
    """A module of the scripts, which are no package."""
    spec = importlib.util.spec_from_file_location(name, TOOL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_missing_spans_and_whole_texts_are_asked_for_from_the_same_input():
    objective, sentinels = part("objective"), 1000
    text = np.random.default_rng(0).integers(5, 900, (3, 64))
    spans, whole = (
        objective.spans(text, {"pad": 0, "eos": 1}, sentinels, np.random.default_rng(1), whole=asked)
        for asked in (False, True)
    )
    assert (spans["input_ids"] == whole["input_ids"]).all()
    assert (whole["labels"][:, :-1] == text).all()
    assert (whole["labels"][:, -1] == 1).all()
    for read, said, row in zip(spans["input_ids"], spans["labels"], text, strict=True):
        missing = {}
        for token in said[:-1]:
            missing.setdefault(int(token), []) if token >= sentinels else missing[max(missing)].append(token)
        filled = [word for token in read[:-1] for word in (missing[token] if token >= sentinels else [token])]
        assert filled == row.tolist()


def test_a_token_of_the_decoder_begins_by_finding_itself_in_the_encoder():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 256, "d_kv": 64, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    ids = torch.randperm(60)[None] + 3

    def found():
        with torch.no_grad():
            result = model(input_ids=ids, decoder_input_ids=ids, output_attentions=True)
        return (result.cross_attentions[0].mean(1).argmax(-1) == torch.arange(60)).float().mean()

    model.set_attn_implementation("eager")
    assert found() < 0.1
    part("neighbours").find_itself(dict(model.named_parameters()), model.config)
    assert found() > 0.3
