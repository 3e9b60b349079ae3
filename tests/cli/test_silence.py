"""Whatever takes long says so where no terminal shows bars: a line whenever nothing was printed for 30 s."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tasks.bases import base

from loratlas.cli import progress
from loratlas.demo import base_path

MODEL, DATA = "demo:llama-mini", "demo:facts-300"
FEW = ("--max-length", "48", "--limit", "64", "--dtype", "float32")
STUDY = """
name: small
model: base/llama
data: {train: "demo:facts-300", eval: "demo:facts-300", limit: 80}
arms: {full: "q@0:1", scanned: "scan"}
reference: full
learning_rates: [0.003]
tuning: {seeds: 1, rows: 8, extensions: 0}
evaluation: {seeds: 2, rows: 20}
steps: 40
batch_size: 2
max_length: 48
demonstration: true
"""


def test_half_a_minute_is_the_longest_silence():
    assert progress.SILENT == progress.SilenceBreaker.__init__.__kwdefaults__["every"] == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scan", MODEL, DATA, *FEW, "--among", "q@top/2", "--trial-steps", "8"), "trial training"),
        (("train", MODEL, DATA, *FEW, "--placement", "auto", "--steps", "20", "--batch-size", "2", "--lr", "0.01",
          "--out", "run"), "training"),
        (("study", "small.yaml", "--out", "s", "--workers", "1"), "scanning"),
    ],
    ids=["scan", "auto", "scan of a study"],
)  # fmt: skip
def test_no_command_is_silent_for_long(words, said, cli, tmp_path: Path, monkeypatch):
    """With the 30 s made 20 ms; the study's base has random weights, so that its scan ends soon, in no signal."""
    monkeypatch.setitem(progress.SilenceBreaker.__init__.__kwdefaults__, "every", 0.02)
    monkeypatch.chdir(tmp_path)
    base(tmp_path / "base", "llama", tokenizer=base_path())
    (tmp_path / "small.yaml").write_text(STUDY)
    done = cli(*words)
    lines = [line for line in done.err.splitlines() if "at work for" in line]
    assert [line for line in lines if line.startswith(said)], done.err
