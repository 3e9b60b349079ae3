"""Folders that commands read from and write to, checked before anything is done."""

from __future__ import annotations

import json
import os
from pathlib import Path

from loratlas.cli.output import plain
from loratlas.errors import ModelError, OutputError


def adapter_folder(given: Path) -> Path:
    """Where the adapter lies: the folder itself, or ``adapter`` inside the folder of a training run.

    Raises:
        ModelError: neither holds an ``adapter_config.json``.
    """
    for folder in (given, given / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise ModelError(
        given=f"the adapter {given}",
        found="no adapter_config.json in it" if given.is_dir() else "no such directory",
        instead="a PEFT adapter's directory, or the --out folder of `loratlas train`",
    )


def check_out(out: Path | None, *, mine: tuple[str, ...] = (), what: str = "result") -> None:
    """Refuse an output folder before any work is done that would be lost.

    Args:
        out: the folder; None is nothing to check.
        mine: names of files that an earlier run of the same command may have left.
        what: what such a folder holds.

    Raises:
        OutputError: it is a file, holds other things, or cannot be written to.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise OutputError(given=f"--out {out}", found="a file of that name", instead="a folder")
    strange = [] if not out.is_dir() else sorted(p.name for p in out.iterdir() if p.name not in mine)
    if strange:
        raise OutputError(
            given=f"--out {out}",
            found=f"a folder that already holds {strange[0]}" + (" and more" if len(strange) > 1 else ""),
            instead=f"a new folder for this {what}",
        )
    place = out
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            given=f"--out {out}",
            found=f"{place} cannot be written to",
            instead="a folder that you may write to",
        )


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
