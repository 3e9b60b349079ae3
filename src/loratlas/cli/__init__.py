"""The command line: from words to the rooms below, and from what they say to people, programs and exit codes.

0 done · 1 a finding or check failed · 2 the request was wrong · 3 the run failed · 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loratlas.errors import LoratlasError

ROOM = "room on that disk, then the same command again (with --resume, for train)"
_BRIEF = {"map", "plan"}
"""Commands that import much and keep it: the garbage collector would take a sixth of their time."""
_HELP = {"-h", "--help"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: the words after ``loratlas``; by default those of the process.

    Set ``LORATLAS_DEBUG=1`` to see where an error came from.
    """
    from loratlas.interruption import terminate_like_ctrl_c

    terminate_like_ctrl_c()
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in _BRIEF:
        gc.disable()
    try:
        code = run(words)
    except KeyboardInterrupt:  # while Python was still importing, or for the second time
        code = 130
    # What is left goes with the process. The collector's last look through all that was imported takes up to a second.
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; see :func:`main`."""
    from loratlas.child_process import LEAN
    from loratlas.cli import output
    from loratlas.cli.app import build
    from loratlas.errors import Interrupted
    from loratlas.interruption import asked_by

    words = list(arguments) or ["--help"]  # who types nothing asks what there is
    # Read when torch is loaded. Threads that spin while they wait for one another take the cores from those that they
    # wait for as soon as another process computes: a scan then took ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name, value in LEAN.items():
        os.environ.setdefault(name, value)
    # The Hub's client announces each of its retries; what came of them is said once, by the error.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # bitsandbytes tells every process that imports it which kernels it would like to fetch.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × and ■ gets ? instead of a crash
    try:
        with output.others_are_quoted():
            if not os.environ.get("LORATLAS_DEBUG"):
                # Libraries warn their own users, programmers; nothing a person at a terminal can act on.
                for kind in (DeprecationWarning, FutureWarning):
                    warnings.simplefilter("ignore", kind)
            with output.help_without_padding() if _HELP & set(words) else contextlib.nullcontext():
                code = build().main(args=words, prog_name="loratlas", standalone_mode=False)
        sys.stdout.flush()
        error = None
    except BrokenPipeError:
        output.silence(sys.stdout)
        return 0
    except Exception as problem:
        if os.environ.get("LORATLAS_DEBUG"):
            import traceback

            traceback.print_exc()
        code, error = None, translate(problem, words)
    # A Ctrl-C that no room turned into an Interrupted comes back from typer as this number.
    if code == 130:
        error = Interrupted(
            given=asked_by(),
            found="the command was stopped before it had anything to save",
            instead="the same command again",
        )
    if error is not None:
        return output.fail(error, as_json="--json" in words)
    return code if isinstance(code, int) else 0


def nearest_choice(message: str) -> str | None:
    """The option with the nearest of its values, where a message of typer's is about a value that it does not have.

    >>> nearest_choice("Invalid value for '--for': 'vlm' is not one of 'peft', 'vllm'.")
    '--for vllm'
    """
    import re
    from difflib import get_close_matches

    match = re.search(r"Invalid value for '(--[\w-]+)'.*?'([^']*)' is not one of (.+)", message)
    if match is None:
        return None
    choices = re.findall(r"'([^']+)'", match[3])
    near = get_close_matches(match[2].lower(), choices, n=1, cutoff=0.0)
    return f"{match[1]} {near[0]}" if near else None


def translate(problem: Exception, words: Sequence[str]) -> LoratlasError:
    """Say in the house's words what any exception means to the person who typed the command.

    Args:
        problem: what was raised.
        words: the words after ``loratlas``.

    >>> import errno
    >>> translate(OSError(errno.ENOSPC, "No space left on device", "out/x.parquet"), ["study"]).code
    'storage'
    """
    from loratlas.errors import LoratlasError, OutputError, RequestError, RunError, StorageError
    from loratlas.modeling import is_out_of_memory

    cause = problem.__cause__
    if isinstance(problem, OutputError) and isinstance(cause, OSError) and cause.errno in _FULL:
        # Not the place was wrong but the room in it: the request may be repeated as it is.
        return StorageError(given=problem.given, found=problem.found, instead=ROOM)
    if isinstance(problem, LoratlasError):
        return problem
    given = " ".join(["loratlas", *words])
    if hasattr(problem, "format_message"):  # typer's own errors about options and arguments
        context = getattr(problem, "ctx", None)
        command = context.command_path if context is not None else "loratlas"
        message = " ".join(str(problem.format_message()).split())  # pyright: ignore[reportAttributeAccessIssue]
        return RequestError(
            given=given, found=message, instead=nearest_choice(message) or f"what {command} --help lists"
        )
    if isinstance(problem, OSError) and problem.errno in _FULL:
        return StorageError(
            given=str(problem.filename or given),
            found=f"{problem.strerror}; what was finished stays readable",
            instead=ROOM,
        )
    if isinstance(problem, OSError) and problem.errno in _FORBIDDEN and problem.filename:
        return OutputError(
            given=str(problem.filename),
            found=str(problem.strerror),
            instead="a place that you may read and write",
        )
    if is_out_of_memory(problem):
        return RunError(
            given=given,
            found="the memory is not enough",
            instead="a smaller --micro-batch or --max-length, --checkpointing, or --quantize 4bit",
        )
    lines = str(problem).strip().splitlines()
    return RunError(
        given=given,
        found=f"{type(problem).__name__}: {lines[0] if lines else 'no message'}",
        instead="LORATLAS_DEBUG=1 before the command shows where it happened",
    )
