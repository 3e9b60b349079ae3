"""Nothing is made on the wrong device: every entry walked on a device that is registered for the walk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ENTRIES = (
    "train_packed",
    "train_padded_in_pieces",
    "train_with_dropout",
    "train_from_kept_states",
    "train_while_a_policy_moves_ranks",
    "fleets",
    "evaluate",
    "evaluate_an_adapter_as_other_definitions_do",
    "evaluate_a_classifier",
    "generate_answers",
    "prove_packed_batches",
    "scan_every_signal",
    "scan_by_trials",
    "moments_are_taken_up",
    "predict",
    "read_and_place_a_model_that_is_there",
    "merge_for_export",
)
"""What runs on a live model: reading and placing, training and all that it calls, fleets, evaluation, scans, the dry
run, merging. A study's workers call these."""


@pytest.fixture(scope="module")
def wrong() -> dict[str, str | None]:
    """Entry → what went wrong. A process of its own, for a device cannot be taken back."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.training.other_device"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("entry", ENTRIES)
def test_everything_is_made_where_the_model_is(wrong, entry):
    assert wrong[entry] is None


def test_the_walk_sees_what_it_is_for(wrong):
    assert "DeviceMismatch" in (wrong["a_cpu_tensor_in_the_wrong_place"] or "")
