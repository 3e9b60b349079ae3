"""What the README shows is what happens: its Python runs as written, its commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loratlas.cli import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# A console block shows a command after "$ " and what it printed.
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
QUICK = {"map", "plan"}


def shown() -> list[tuple[str, str]]:
    """Command → what the README says it prints."""
    listed = []
    for block in CONSOLE:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            listed.append((command.strip(), printed))
    return listed


@pytest.mark.parametrize("example", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_are_short(example: str):
    lines = [
        line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 10


@pytest.mark.parametrize("example", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run_as_written(example: str, tmp_path: Path):
    done = subprocess.run(
        # Trainer's data loader remarks that this machine has no accelerator.
        [sys.executable, "-W", "error::UserWarning", "-W", "ignore:'pin_memory' argument", "-c", example],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"^# prints: (.*)$", example, re.MULTILINE)
    assert said is not None
    assert done.stdout.strip().splitlines()[-1] == said.group(1)


def test_every_command_is_shown():
    names = {shlex.split(command)[1] for command, _ in shown() if command.startswith("loratlas ")}
    assert names >= {"map", "plan", "train", "eval", "study", "report", "export"}


@pytest.mark.parametrize(("command", "printed"), shown(), ids=[command[:40] for command, _ in shown()])
def test_commands_are_real(command: str, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    """Quick commands print what the README shows, if it shows that; all have every option that it uses."""
    words = shlex.split(command)
    if words[0] != "loratlas":
        pytest.fail(f"the README shows {command!r}: only loratlas commands can be checked")
    monkeypatch.setenv("COLUMNS", "80")
    if words[1] in QUICK and printed.strip():
        assert run(words[1:]) == 0
        assert _squeezed(capsys.readouterr().out) == _squeezed(printed)
        return
    assert run([words[1], "--help"]) == 0
    help_text = capsys.readouterr().out
    for word in words[2:]:
        if word.startswith("--"):
            assert word in help_text, f"{words[1]} has no {word}"


def _squeezed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines() if line.strip()]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"


def test_the_suffix_trap_is_as_described(shared):
    """The numbers of the README's first table, from PEFT itself on a copy without weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(shared("models/dialogpt-medium-config"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        adapted = get_peft_model(
            model, LoraConfig(r=16, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
        )
    trainable, _ = adapted.get_nb_trainable_parameters()
    assert trainable == 4_325_376
    assert "4,325,376" in README
