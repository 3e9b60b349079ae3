"""The scripts that train the small bases: a killed run that is gone on with ends where an unbroken one does."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
