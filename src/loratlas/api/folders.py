"""Folders that commands read from and write to, checked before anything is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError, OutputError
from loratlas.files import is_leftover


def adapter_folder(given: Path) -> Path:
    """Where the adapter lies: the folder itself, or ``adapter`` inside the folder of a training run.

    Raises:
        ModelError: neither holds an ``adapter_config.json``, or a file of the run is not what was written.
    """
    if (given / "adapter_config.json").is_file():
        return given
    if (given / "adapter" / "adapter_config.json").is_file():
        from loratlas.adapters.stored.run_files import read_run_json

        read_run_json(given)
        return given / "adapter"
    raise ModelError(
        given=f"the adapter {given}",
        found="no adapter_config.json in it" if given.is_dir() else "no such directory",
        instead="a PEFT adapter's directory, or the --out folder of `loratlas train`",
    )


PROBE = "Ärger: 3,141 tokens — isn't it?\n\n\tdef f(x):  return x**2"
"""A text that tokenizers of one vocabulary and unlike rules take apart differently."""


def check_tokenizer(adapter: Path, tokenizer: Any) -> str | None:
    """Refuse an adapter that came with another tokenizer than the base's.

    Many tools save the tokenizer beside the adapter. One with another vocabulary made other tokens of the training
    rows: losses per token on the base's tokens would say nothing about that adapter. An added padding token alone is
    no difference, for it is never scored.

    Args:
        adapter: its folder.
        tokenizer: of the base.

    Returns:
        A remark where only the chat template differs, else None.

    Raises:
        ModelError: the tokenizers differ.
    """
    if not any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from loratlas.data.encode import load_tokenizer

    own = load_tokenizer(adapter)
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    reason = None
    moved = [token for token in theirs if token in ours and theirs[token] != ours[token]]
    more = [token for token in theirs if token not in ours and token != own.pad_token]
    fewer = [token for token in ours if token not in theirs and token != tokenizer.pad_token]
    if moved:
        token = min(moved, key=lambda t: theirs[t])
        reason = (
            f"its own tokenizer, in which {token!r} is token {theirs[token]}, and {ours[token]} in the base's"
        )
    elif more or fewer:
        few = ", ".join(repr(token) for token in sorted(more or fewer, key=len)[:3])
        verb = "adds" if more else "lacks"
        reason = (
            f"its own tokenizer of {len(theirs):,} tokens, which {verb} {few}; the base has {len(ours):,}"
        )
    elif own(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]:
        reason = "its own tokenizer, which splits the same text into other tokens than the base's"
    elif own.eos_token_id != tokenizer.eos_token_id:
        reason = (
            f"its own tokenizer, which ends with {own.eos_token!r}, the base's with {tokenizer.eos_token!r}"
        )
    if reason:
        raise ModelError(
            given=f"the adapter {adapter}",
            found=reason,
            instead="the base that it was trained on, with the same tokenizer",
        )
    if (own.chat_template or "") != (tokenizer.chat_template or ""):
        return (
            f"The tokenizer in {adapter} has another chat template than the base's, which is used here: "
            "the text around the rows may differ from what the adapter was trained on."
        )
    return None


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
    inside = out.iterdir() if out.is_dir() else ()
    # What a killed process left unfinished is nobody's: the next write of that name removes it.
    strange = sorted(p.name for p in inside if p.name not in mine and not is_leftover(p))
    if strange:
        raise OutputError(
            given=f"--out {out}",
            found=f"a folder that already holds {strange[0]}" + (" and more" if len(strange) > 1 else ""),
            instead=f"a new folder for this {what}",
        )
    nearest = out
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            given=f"--out {out}",
            found=f"{nearest} cannot be written to",
            instead="a folder that you may write to",
        )
