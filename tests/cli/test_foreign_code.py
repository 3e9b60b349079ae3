"""Nothing in a model's or an adapter's folder runs, whatever it asks for and whatever stands on standard input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from shell import environment
from tests.serving.tiny_base import save_few_rows, save_tiny_base, tiny_study

FEW = ("--max-length", "48")
STEP = ("--steps", "1", "--batch-size", "2", *FEW)
NAMES = ("own", "json", "yaml", "torch", "peft", "transformers", "datasets", "loratlas", "sitecustomize")
"""Files of Python in the hostile folders: what configs name, and what a process would import by that name."""


class Shout:
    """What a pickle runs when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo a pickle >> '{self.marker}'",)


def arm(folder: Path, marker: Path) -> None:
    """Code and pickles beside a model or an adapter, and configs that ask for them."""
    code = (
        f"import pathlib\npathlib.Path({str(marker)!r}).write_text(__file__)\n"
        "from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    for name in NAMES:
        (folder / f"{name}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    for name in ("training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Shout(marker)))
    kinds = ("Config", "Model", "ModelForCausalLM", "Processor", "FeatureExtractor", "ImageProcessor")
    asks: dict[str, Any] = {
        "auto_map": {**{f"Auto{kind}": "own.Own" for kind in kinds}, "AutoTokenizer": ["own.Own", "own.Own"]},
        "trust_remote_code": True,
    }
    change(folder / "generation_config.json", **asks, custom_generate=str(folder))
    for name in ("processor_config.json", "preprocessor_config.json"):
        change(folder / name, **asks)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            change(folder / name, **asks)
    if (folder / "adapter_config.json").is_file():
        change(
            folder / "adapter_config.json",
            auto_mapping={"base_model_class": "Own", "parent_library": "own"},
        )
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]))


def change(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | fields))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, which is hostile itself, with hostile bases, a hostile adapter and rows."""
    folder = tmp_path_factory.mktemp("hostile")
    marker = folder / "marker"
    save_few_rows(folder / "rows.jsonl", 8)
    good = save_tiny_base(folder / "good")
    [[code, said, _]] = loratlas(
        folder, ("train", "good", "rows.jsonl", "--placement", "q:2", *STEP, "--out", "run")
    )
    assert code == 0, said
    adapter = folder / "adapter"
    shutil.copytree(folder / "run" / "adapter", adapter)
    (adapter / "loratlas.json").unlink()  # as of another tool: no digest refuses it before it is read
    arm(adapter, marker)
    for name in ("base", "tokenizer", "type", "kernels", "pickle"):
        shutil.copytree(good, folder / name)
        arm(folder / name, marker)
    change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="Own")
    change(folder / "type" / "config.json", model_type="own", architectures=["Own"])
    change(
        folder / "kernels" / "config.json", _attn_implementation="own/kernel", _experts_implementation="own"
    )
    (folder / "pickle" / "model.safetensors").unlink()
    (folder / "pickle" / "pytorch_model.bin").write_bytes(pickle.dumps(Shout(marker)))
    (folder / "study.yaml").write_text(yaml.safe_dump(tiny_study(Path("base"), "rows.jsonl")))
    (folder / "call.yaml").write_text(f"!!python/object/apply:os.system ['echo yaml >> {marker}']\n")
    state = {"log_history": [{"eval_loss": 5.5, "step": 1, "epoch": 1.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    arm(folder, marker)
    return folder


ALL = """
import contextlib, io, json, pathlib, sys
from loratlas.cli import run
marker, found = pathlib.Path("marker"), []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(words)
    found.append([code, said.getvalue(), marker.read_text() if marker.exists() else None])
    marker.unlink(missing_ok=True)
json.dump(found, sys.stdout)
"""


def loratlas(folder: Path, *commands: tuple[str, ...]) -> list[list[Any]]:
    """Commands in one process, with the answer yes on standard input: exit code, what was said, what ran.

    As the console script starts it, without the working folder among those that modules are imported from.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALL, json.dumps(commands)],
        cwd=folder,
        env=environment() | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        input="y\n" * 1000,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[y/N]" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


ROWS, ADAPTER = "rows.jsonl", "adapter"
COMMANDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("map", "base")),
    (0, ("map", "kernels")),
    (2, ("map", "type")),
    (0, ("plan", "base", "--placement", "q:2")),
    (0, ("scan", "base", ROWS, "--budget", "like=q:1", "--by", "spectrum", *FEW)),
    (
        0,
        (
            "train",
            "base",
            ROWS,
            "--placement",
            "q:2",
            *STEP,
            "--eval",
            ROWS,
            "--samples",
            "1",
            "--out",
            "other",
        ),
    ),
    (0, ("train", "base", ROWS, "--from", ADAPTER, *STEP, "--out", "further")),
    (0, ("train", "kernels", ROWS, "--placement", "q:2", *STEP, "--out", "with-kernels")),
    (0, ("eval", "base", ROWS, "--adapter", ADAPTER, *FEW)),
    (2, ("eval", "tokenizer", ROWS)),
    (2, ("eval", "pickle", ROWS, *FEW)),
    (0, ("export", ADAPTER, "--base", "base", "--for", "merged", "--out", "merged")),
    (0, ("export", ADAPTER, "--base", "kernels", "--for", "peft", "--out", "as-peft")),
    (0, ("lint", ADAPTER, "base")),
    (2, ("lint", "call.yaml", "base")),
    (2, ("study", "call.yaml")),
    (0, ("study", "study.yaml", "--out", "study", "--workers", "2")),
    (2, ("audit-log", "training_args.bin", ROWS, "--model", "base")),
    (1, ("audit-log", "trainer_state.json", ROWS, "--model", "base", *FEW)),
    (0, ("show", ADAPTER, "--base", "base")),
    (0, ("shrink", ADAPTER, "--base", "base", "--budget", "like=q:1", "--out", "smaller")),
)


@pytest.fixture(scope="module")
def outcomes(hostile: Path) -> list[list[Any]]:
    """What became of each command, in their order."""
    return loratlas(hostile, *(words for _, words in COMMANDS))


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[" ".join(words[:2]) for _, words in COMMANDS])
def test_code_in_a_folder_never_runs(outcomes: list[list[Any]], number: int):
    code, said, ran = outcomes[number]
    assert ran is None
    assert "trust_remote_code" not in said, "no option of that name is here to be set"
    assert "weights_only" not in said
    assert code == COMMANDS[number][0], said[-2000:]
