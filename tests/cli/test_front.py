"""The front of the command line: help, speed of its start, completion, pipes, versions, failures of all kinds."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import DATA, MODEL, SCANNED_STUDY, environment, finish, spawn
from tests.tasks.bases import base

import loratlas
from loratlas.cli import progress, run, translate
from loratlas.cli.progress import Progress
from loratlas.demo import base_path
from loratlas.errors import Interrupted, LoratlasError
from loratlas.files import jsonable

COMMANDS = ("map", "plan", "train", "eval", "audit-log", "study", "report", "demo", "export")
SHARED_OPTIONS = {
    "--json": COMMANDS,
    "--out": ("train", "eval", "study", "report", "demo", "export"),
    "--placement": ("plan", "train"),
    "--budget": ("plan", "train"),
    "--loss": ("train", "eval"),
    "--batch-size": ("plan", "train", "eval", "audit-log"),
    "--smoothing": ("eval", "audit-log"),
    "--split": ("train", "eval", "audit-log"),
    "--map": ("train", "eval", "audit-log"),
    "--max-length": ("plan", "train", "eval", "audit-log"),
    "--dtype": ("plan", "train", "eval", "audit-log"),
    "--quantize": ("train", "eval"),
    "--compile": ("train",),
    "--workers": ("study", "demo"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_fits(cli, command: str):
    told = cli(command, "--help")
    assert told.code == 0
    assert f"Example: loratlas {command}" in " ".join(told.out.split())
    assert max(len(line) for line in told.out.splitlines()) <= 80


@pytest.mark.parametrize(("option", "commands"), SHARED_OPTIONS.items())
def test_options_have_one_name(cli, option: str, commands: tuple[str, ...]):
    having = {command for command in COMMANDS if f"{option} " in cli(command, "--help").out}
    assert having == set(commands)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["map", "--no-such"]])
def test_starts_without_the_heavy_libraries(words: list[str]):
    """Help and usage errors import nothing that takes a second."""
    code = (
        "import sys; from loratlas.cli import run; run(sys.argv[1:]);"
        "print(sorted({'torch', 'transformers', 'peft', 'plotly', 'optuna', 'datasets', 'pandas', 'scipy'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_version(cli):
    told = cli("--version")
    assert (told.code, told.out.strip()) == (0, f"loratlas {loratlas.__version__}")


@pytest.mark.parametrize(
    ("words", "count", "expected"),
    [
        ("loratlas pl", 1, "plan"),
        ("loratlas train --sch", 2, "--schedule"),
        ("loratlas train --loss a", 3, "answer"),
    ],
)
def test_completion(words: str, count: int, expected: str):
    told = subprocess.run(
        [sys.executable, "-c", "from loratlas.cli import main; main()"],
        env={
            **environment(),
            "_LORATLAS_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(count),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in told.stdout.split()


def test_a_pipe_gets_no_colours(tmp_path: Path):
    told = finish(spawn("map", "demo:llama-mini", cwd=tmp_path))
    assert told.code == 0
    assert "\x1b" not in told.out + told.err
    assert max(len(line) for line in told.out.splitlines()) <= 80


def test_a_reader_may_leave(tmp_path: Path):
    """`loratlas map … --json | head -c 1`: quiet, without a complaint."""
    process = spawn("map", "demo:llama-mini", "--json", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    told = finish(process)
    assert (told.code, told.err) == (0, "")


def test_debug_shows_where(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", "from loratlas.cli import main; main()", "map", "./nowhere", "--json"],
        env={**environment(), "LORATLAS_DEBUG": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "model"


@pytest.mark.parametrize(
    ("problem", "code", "exit_code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "storage", 3),
        (OSError(errno.EFBIG, "File too large"), "storage", 3),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "output", 2),
        (MemoryError(), "run", 3),
        (RuntimeError("mat1 and mat2\nsecond line"), "run", 3),
        (ValueError(), "run", 3),
    ],
)
def test_any_failure_is_a_sentence(problem: Exception, code: str, exit_code: int):
    error = translate(problem, ["train", "m"])
    assert (error.code, error.exit_code) == (code, exit_code)
    assert all((error.given, error.found, error.instead))
    assert "\n" not in error.found


def test_own_errors_pass_unchanged():
    error = Interrupted(given="a", found="b", instead="c")
    assert translate(error, []) is error


def test_json_has_no_nan():
    value = jsonable({"a": float("nan"), "b": (1, float("inf")), "c": {3, 1}, "d": Path("x"), 5: True})
    assert value == {"a": None, "b": [1, None], "c": [1, 3], "d": "x", "5": True}
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_progress_in_a_pipe_is_plain_lines(capsys: pytest.CaptureFixture[str]):
    with Progress("training", total=2, unit="steps") as bar:
        bar.to(1, "loss 2.0000")
        bar.to(2, "loss 1.0000")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "training: 2/2 steps, loss 1.0000"


def test_terminal_without_unicode(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", "from loratlas.cli import main; main()", "map", "demo:llama-mini"],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"attn.q" in done.stdout


def test_every_error_class_has_an_exit_code():
    def below(kind: type[LoratlasError]) -> list[type[LoratlasError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    assert {kind.exit_code for kind in below(LoratlasError)} <= {2, 3, 130}


def test_run_takes_words_from_python():
    assert run(["--version"]) == 0
    assert os.environ["HF_HUB_VERBOSITY"]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "demo:llama-mini", "demo:facts-300", "--placement", "atention:8", "--steps", "9", "--out", "run"),
        ("train", "demo:llama-mini", "demo:facts-300", "--placement", "q:8", "--budget", "params=1", "--steps", "9",
         "--resume", "--out", "run"),
        ("train", "demo:llama-mini", "demo:facts-300", "--placement", "auto", "--steps", "2", "--out", "run"),
        ("train", "demo:llama-mini", "demo:facts-300", "--placement", "q:8", "--steps", "9", "--eval", "none.jsonl",
         "--out", "run"),
        ("scan", "demo:llama-mini", "none.jsonl", "--resume", "--out", "scan"),
        ("eval", "demo:llama-mini", "demo:facts-300", "--samples", "2", "--rouge", "--task", "classification"),
        ("study", "wrong.yaml", "--out", "s"),
        ("study", "scanned.yaml", "--out", "s"),
    ],
    ids=lambda words: " ".join(words[:1] + words[3:6]),
)  # fmt: skip
def test_what_is_refused_is_refused_before_anything_is_announced(cli, words, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(
        "name: small\nmodel: demo:llama-mini\ndata: {train: 'demo:facts-300'}\n"
        "arms: {full: 'all:1', other: 'atention:1'}\nlearning_rates: [0.003]\nsteps: 3\ndemonstration: true\n"
    )
    wrong = (tmp_path / "wrong.yaml").read_text()
    (tmp_path / "scanned.yaml").write_text(wrong.replace("'all:1'", "'all:1', scanned: auto"))
    outcome = cli(*words)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("Error ("), outcome.err
    assert not (tmp_path / "s").exists()


def test_nothing_typed_shows_what_there_is(cli):
    shown = cli()
    assert (shown.code, shown.err) == (0, "")
    assert "audit-log" in shown.out
    assert shown.out == cli("--help").out


@pytest.mark.parametrize(
    ("words", "collects"), [(["map", "demo:llama-mini"], False), (["show", "none"], True)]
)
def test_the_collector_looks_through_imports_no_more_than_it_must(words: list[str], collects: bool):
    """Not while `map` and `plan` import, and of no command at its end: together a third of what `map` takes."""
    code = (
        "import atexit, gc\n"
        "from loratlas.cli import main\n"
        "atexit.register(lambda: print('at the end', gc.isenabled(), gc.get_freeze_count() > 1000))\n"
        f"main({words!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"at the end {collects} True"


# Whatever takes long says so where no terminal shows bars.

FEW = ("--max-length", "48", "--limit", "64", "--dtype", "float32")


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
    (tmp_path / "small.yaml").write_text(SCANNED_STUDY)
    done = cli(*words)
    lines = [line for line in done.err.splitlines() if "at work for" in line]
    assert [line for line in lines if line.startswith(said)], done.err
