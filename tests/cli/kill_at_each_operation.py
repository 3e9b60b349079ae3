"""Run a command again and again, each time killed before its next file operation, and then once more unharmed.

    python kill_at_each_operation.py FOLDER [--then WORD] [--at N,N,…] [--most N] -- WORD…

``{out}`` in a word stands for the output of each trial. Printed is one JSON object: how many operations there were, and
of every trial the exit codes, what the repeated command printed, and the files that it left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

KILLED = 9
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
READS = ("SELECT", "PRAGMA")


def kill_before(number: int, folder: str, counted: Path) -> None:
    """End this process before file operation ``number`` below a folder; the operations go to a file, for 0."""
    seen = 0

    def operation(name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os._exit(KILLED)
        if not number:
            os.write(log, f"{name}\n".encode())

    log = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        names = [str(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        below = any(mark in name for name in names for mark in marks)
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or "w" in str(arguments[1])
            below = below and bool(writes)
        elif event in ("os.remove", "os.rmdir") and any(a != -1 for a in arguments if isinstance(a, int)):
            below = True  # names inside a tree that is being removed are relative to it
        if below:
            operation(event)

    # What will be the folder lies beside it until it is whole.
    marks = (folder, str(Path(folder).with_name(f".{Path(folder).name}.")))
    sys.addaudithook(audit)
    _watch_libraries(operation, folder)


def _watch_libraries(operation: Any, folder: str) -> None:
    """What Arrow, safetensors, tokenizers and SQLite write in compiled code is no event of Python's."""
    import sqlite3
    from sqlite3 import dbapi2

    import safetensors.torch
    from pyarrow import parquet
    from transformers import PreTrainedTokenizerBase

    def watched(name: str, right: Any, *, after: bool = False) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            operation(name)
            done = right(*given, **more)
            if after:
                operation(f"{name} done")
            return done

        return call

    connect = dbapi2.connect

    def traced(database: Any, *given: Any, **more: Any) -> Any:
        connection = connect(database, *given, **more)
        if folder in str(database):
            connection.set_trace_callback(
                lambda statement: (
                    None
                    if statement.lstrip().upper().startswith(READS)
                    else operation(f"sqlite: {statement.split()[0]}")
                )
            )
        return connection

    sqlite3.connect = dbapi2.connect = traced
    for name in ("__init__", "close"):
        right = getattr(parquet.ParquetWriter, name)
        setattr(parquet.ParquetWriter, name, watched(f"ParquetWriter.{name}", right))
    save = PreTrainedTokenizerBase.save_pretrained
    PreTrainedTokenizerBase.save_pretrained = watched("tokenizer", save, after=True)
    save_file = safetensors.torch.save_file
    counting = watched("save_file", save_file, after=True)
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items() if hasattr(module, "__dict__") else ()):
            if value is save_file:
                setattr(module, name, counting)


def attempt(words: list[str], said: Path, *, kill: int | None, folder: str, counted: Path) -> int:
    """The command in a fork of this process; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(os.open(f"{said}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        from loratlas.cli import run
        from loratlas.evaluation import token_scorer

        assert token_scorer.measure.__kwdefaults__ is not None
        token_scorer.measure.__kwdefaults__["chunk"] = 2  # several row groups of few rows
        if kill is not None:
            kill_before(kill, folder, counted)
        code = run(words)
        sys.stdout.flush()
    finally:
        os._exit(code)


def left_in(out: Path) -> dict[str, str]:
    """Every file of an output, hidden ones included, with the digest of its bytes; drafts beside it too."""
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    beside = [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.")]
    digests = {
        str(path.relative_to(out)): hashlib.sha256(
            path.read_bytes().replace(out.name.encode(), b"{out}")
        ).hexdigest()
        for path in files
        if path.is_file()
    }
    return digests | {f"../{path.name}": "a draft" for path in beside}


def chosen(operations: int, most: int) -> list[int]:
    """Numbers of operations, at most so many, the first and the last among them."""
    if operations <= most:
        return list(range(1, operations + 1))
    return sorted({1 + round(i * (operations - 1) / (most - 1)) for i in range(most)})


def main() -> None:
    """Every trial of the command."""
    from loratlas.cli import run

    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument(
        "--then", action="append", default=[], help="a word that the repeated command has more"
    )
    parser.add_argument("--most", type=int, default=10**9, help="kills at most, evenly spread")
    parser.add_argument("words", nargs="+")
    given = parser.parse_args()
    base = given.base
    counted = base / "operations"
    # Once here, so that a fork has everything imported.
    with redirect_stdout(StringIO()):
        run([word.replace("{out}", str(base / "first")) for word in given.words])

    def trial(number: int | None) -> dict[str, Any]:
        out = base / ("whole" if number is None else f"killed{number:04d}")
        filled = [word.replace("{out}", str(out)) for word in given.words]
        said = base / "said"
        codes = [attempt(filled, said, kill=number or 0, folder=str(out), counted=counted)]
        if number is not None:
            (base / "second").unlink(missing_ok=True)
            again = [*filled, *given.then]
            codes.append(attempt(again, said, kill=None, folder=str(out), counted=base / "second"))
        text = said.read_text()
        error = Path(f"{said}.err").read_text()[-600:] if codes[-1] else ""
        by_name = {"at": number, "codes": codes, "said": text, "kept": left_in(out), "error": error}
        if number is not None:
            shutil.rmtree(out, ignore_errors=True)
        return by_name

    whole = trial(None)
    operations = counted.read_text().splitlines()
    trials = [trial(number) for number in chosen(len(operations), given.most)]
    print(json.dumps({"operations": operations, "whole": whole, "trials": trials}))


if __name__ == "__main__":
    main()
