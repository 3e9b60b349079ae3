"""Adapters that move while two processes train: all decide alike, and gradients go on being averaged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integrations.small_trainer import SMOOTH, Rows, placed, trainer

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ("random", "gradient", "energy")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder in which two processes have left what they trained."""
    out = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.integrations.small_trainer", str(out), *POLICIES]
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=1200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return out


@pytest.mark.parametrize("name", POLICIES)
def test_processes_stay_equal_to_the_bit_through_several_moves(both, name):
    one, two = (json.loads((both / f"{name}-{rank}.json").read_text()) for rank in range(2))
    assert one == two
    assert len({move["step"] for move in one["moves"]}) >= (1 if name == "gradient" else 3)
    for kind in ("", "-moments"):
        ours, theirs = (load_file(both / f"{name}{kind}-{rank}.safetensors") for rank in range(2))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_two_processes_are_one_with_their_rows_together(both, tmp_path):
    """Gradients of parameters that were replaced are averaged like all others."""
    own = trainer(tmp_path, rows=Rows(8), max_steps=20, per_device_train_batch_size=8, **SMOOTH)
    placement = placed(own, policy="random")
    own.train()
    theirs = json.loads((both / "random-0.json").read_text())
    assert [(m.step, m.path, m.after) for m in placement.moves] == [
        (m["step"], m["path"], m["after"]) for m in theirs["moves"]
    ]
    # Weights are not compared: a direction to grow by is found up to its sign, and nearly equal ones in any order.
    for ours, kept in zip(placement.decisions, theirs["decisions"], strict=True):
        assert ours.loss_before == pytest.approx(kept["loss_before"], abs=5e-3)
