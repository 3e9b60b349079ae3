"""Every command that README and guide show is typed, and works.

Its words are those of the page. Models of the Hub are the small ones of ``bases/``, and a command that would take
minutes gets fewer steps and rows; both tables are below. What no test can run is listed with its reason.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.serving.byte_tokenizer import tiny_tokenizer
from tests.tiny import tiny_model

from loratlas.cli import run
from loratlas.serving.gguf_files.write_gguf_model import write_gguf_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
MODELS = {
    "MODEL": "demo:llama-mini",
    "gpt2": "bases/gpt2-mini",
    "gpt2-medium": "bases/gpt2-mini",
    "google-bert/bert-base-uncased": "bases/bert-mini",
}
"""What stands for a model that would have to be downloaded."""

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""A file that pages have beside them; here a small one of this name."""

SMALL = {
    "train": "--batch-size 2 --max-length 48 --limit 16",
    "eval": "--max-length 48 --limit 8",
    "scan": "--trial-steps 4 --rows 8 --max-length 48 --limit 24",
    "study": "--workers 1 --set learning_rates=[0.003] --set tuning.seeds=1 --set tuning.rows=2 "
    "--set tuning.extensions=0 --set evaluation.seeds=2 --set evaluation.rows=3 --set steps=2 --set batch_size=2 "
    "--set max_length=48 --set demonstration=true",
}
"""Added to a command so that it takes seconds."""

FOUND = {"check", "lint", "audit-log"}
"""Commands whose exit code 1 says that they found something, which is no failure."""

NOT_RUN = {
    ("README.md", "make test"): "runs these tests",
    ("README.md", "make demo"): "sets up an environment and runs `loratlas demo`, which tests/cli does",
    ("bases.md", "python tools/pretrain"): "takes a corpus; tests/test_pretrain.py runs it on a small one",
}
"""Commands that no test types: their page, how they begin, and why."""

NO_COMMAND = {
    "python": "run, page by page, by test_guide.py and test_readme.py",
    "yaml": "read by test_guide.py; the hook's command is typed here",
    "json": "read by test_guide.py",
    "html": "one element of a page; tests/report reads pages",
    "": "what a command printed, a grammar or a template",
}
"""Blocks that are no commands."""


def commands(block: str) -> list[str]:
    """The commands of a block, without their output."""
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    if any(line.startswith("$ ") for line in lines):
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.startswith(("loratlas ", "make ", "python ", "export "))]


def shown() -> list[tuple[Path, str, str]]:
    """(page, language, block) of every block."""
    return [(page, *block) for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]


def reason(page: Path, command: str) -> str | None:
    """Why a command is not typed; None where it is."""
    return next(
        (why for (name, start), why in NOT_RUN.items() if page.name == name and command.startswith(start)),
        None,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages take for granted: rows, a run, another tool's output."""
    at = tmp_path_factory.mktemp("guide")
    rows = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("rows.jsonl", "other-rows.jsonl", "held-out.jsonl", "test.jsonl"):
        (at / name).write_text(lines.replace("+", " + ") if name == "other-rows.jsonl" else lines)
    reviews = [{"text": f"film {n}", "label": ("bad", "good")[n % 2]} for n in range(6)]
    (at / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    study, *_ = [text for page, language, text in shown() if page.name == "studies.md" and language == "yaml"]
    (at / "where.yaml").write_text(study.replace(".jsonl.gz", ".jsonl"))
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["c_attn", "c_proj"]}
    (at / "adapter_config.json").write_text(json.dumps(config))
    (at / "bases").symlink_to(ROOT / "bases")
    few = ("--batch-size", "2", "--max-length", "48", "--lr", "0.01", "--steps", "2")
    for model, out in (("demo:llama-mini", "run"), (str(ROOT / "bases/gpt2-mini"), "out")):
        words = ["train", model, str(at / "rows.jsonl"), "--placement", "all:8", *few, "--out", str(at / out)]
        assert run(words) == 0
    write_gguf_model(tiny_model("llama", vocab_size=300), tiny_tokenizer(300), at / GGUF, dtype="float32")
    log = {"log_history": [{"eval_loss": 3.82972, "step": 10, "epoch": 1.0}], "global_step": 10}
    (at / "out" / "trainer_state.json").write_text(json.dumps(log))
    return at


@pytest.fixture
def at(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with all of that."""
    copy = tmp_path / "work"
    shutil.copytree(trained, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "80")
    return copy


def command_value(words: list[str], option: str) -> str:
    """What stands behind an option; "" where it is not given."""
    return words[words.index(option) + 1] if option in words else ""


def smaller(page: Path, words: list[str]) -> list[str]:
    """The words of a command, with models that are here, and short."""
    words = [MODELS.get(word, word) for word in words]
    if page.name == "tasks.md":  # the rows of this page have labels
        words = [word.replace("test.jsonl", "reviews.jsonl") for word in words]
    if words[0] == "train" and "--steps" in words:
        # A run that decides something in its first steps has to have some.
        decides = "auto" in words or "," in command_value(words, "--lr")
        words[words.index("--steps") + 1] = "60" if decides else "2"
    return [*words, *shlex.split(SMALL.get(words[0], ""))]


def type_command(page: Path, command: str, folder: Path) -> None:
    words = smaller(page, shlex.split(command)[1:])
    if words[0] == "train":  # of a page's several runs each has this folder to itself
        shutil.rmtree(folder / words[words.index("--out") + 1], ignore_errors=True)
    code = run(words)
    assert code == 0 or (code == 1 and words[0] in FOUND), f"{command} ended with {code}"


TYPED = {page: [c for p, _, block in shown() if p == page for c in commands(block)] for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if TYPED[page]], ids=lambda page: page.stem)
def test_commands_of_a_page_work_when_typed(page: Path, at: Path):
    script = []
    for command in TYPED[page]:
        if reason(page, command) is not None:
            continue
        if "$" in command:  # the shell's business
            script.append(command)
        else:
            type_command(page, command, at)
    if script:
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-e", "-c", "\n".join(script)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_hook_s_command_works(at: Path):
    import yaml

    for page, language, block in shown():
        if language == "yaml" and "hooks:" in block:
            (hook,) = yaml.safe_load(block)[0]["hooks"]
            command = f"{hook['entry']} {at / 'run' / 'adapter' / 'adapter_config.json'}"
            type_command(page, command, at)
            return
    pytest.fail("no hook is shown")


def test_the_error_of_the_placement_page_is_what_is_said(at: Path, capsys: pytest.CaptureFixture[str]):
    (block,) = [text for page, _, text in shown() if page.name == "placement.md" and "^ (character" in text]
    assert run(["plan", "bases/gpt2-mini", "--placement", "c_proj:8"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for line in block.replace("gpt2:", "bases/gpt2-mini:").splitlines():
        assert " ".join(line.split()) in said


def test_every_block_is_accounted_for(capsys: pytest.CaptureFixture[str]):
    """Prints how many blocks run, and how many are only read and why."""
    counted: Counter[str] = Counter()
    for page, language, block in shown():
        typed = commands(block)
        if language in ("bash", "console") or typed:
            assert typed, f"{page.name}: a block of commands without one: {block}"
            reasons = {why for command in typed if (why := reason(page, command))}
            counted["; ".join(sorted(reasons)) or "typed"] += 1
        else:
            assert language in NO_COMMAND, f"{page.name}: a block of {language}"
            counted[NO_COMMAND[language]] += 1
    assert all(any(why in words for words in counted) for why in NOT_RUN.values()), "one is no longer shown"
    assert counted["typed"] + counted[NO_COMMAND["python"]] >= 30
    with capsys.disabled():
        print(f"\n{sum(counted.values())} blocks of README and guide:")
        for words, count in counted.most_common():
            print(f"  {count:>3} {words}")
