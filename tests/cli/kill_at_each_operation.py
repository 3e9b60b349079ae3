"""Run a command again and again, each time killed before its next file operation, and then once more unharmed.

    python kill_at_each_operation.py FOLDER WORD…

``{out}`` in a word stands for the folder of each trial. Printed is one JSON object: how many operations there were, and
of every trial the exit codes and the numbers that the repeated command gave.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

KILLED = 9
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def kill_before(number: int, folder: str, counted: Path) -> None:
    """End this process before file operation ``number`` below a folder; the operations go to a file, for 0."""
    from pyarrow import parquet

    seen = 0

    def operation(name: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os._exit(KILLED)
        if not number:
            os.write(log, f"{name}\n".encode())

    log = os.open(counted, os.O_WRONLY | os.O_CREAT)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        names = [str(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        below = any(folder in name for name in names)
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or "w" in str(arguments[1])
            below = below and bool(writes)
        elif event in ("os.remove", "os.rmdir") and any(a != -1 for a in arguments if isinstance(a, int)):
            below = True  # names inside a tree that is being removed are relative to it
        if below:
            operation(event)

    sys.addaudithook(audit)
    # What Arrow opens and closes in C++ is no event of Python's.
    for name in ("__init__", "close"):
        right = getattr(parquet.ParquetWriter, name)

        def watched(self: Any, *given: Any, _right: Any = right, _name: str = name, **more: Any) -> Any:
            operation(f"ParquetWriter.{_name}")
            return _right(self, *given, **more)

        setattr(parquet.ParquetWriter, name, watched)


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


def main() -> None:
    """Every trial of the command."""
    from loratlas.cli import run

    base, words = Path(sys.argv[1]), sys.argv[2:]
    counted = base / "operations"
    # Once here, so that a fork has everything imported.
    with redirect_stdout(StringIO()):
        run([word.replace("{out}", str(base / "first")) for word in words])

    def trial(number: int | None) -> dict[str, Any]:
        out = base / ("whole" if number is None else f"killed-{number}")
        filled = [word.replace("{out}", str(out)) for word in words]
        said = base / "said"
        codes = [attempt(filled, said, kill=number or 0, folder=str(out), counted=counted)]
        if number is not None:
            codes.append(attempt(filled, said, kill=None, folder=str(out), counted=counted))
        text = said.read_text()
        kept = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        error = Path(f"{said}.err").read_text()[-600:] if codes[-1] else ""
        return {"at": number, "codes": codes, "said": text, "kept": kept, "error": error}

    whole = trial(None)
    operations = counted.read_text().splitlines()
    trials = [trial(number) for number in range(1, len(operations) + 1)]
    print(json.dumps({"operations": operations, "whole": whole, "trials": trials}))


if __name__ == "__main__":
    main()
