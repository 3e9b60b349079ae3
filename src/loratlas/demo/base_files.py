"""Where the embedded base lies, and that it is as it was packed."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from loratlas.errors import ModelError
from loratlas.files import sha256

BASES = ("llama-mini",)


def base_path(name: str = "llama-mini") -> Path:
    """The folder of an embedded base: config, safetensors, tokenizer and card.

    Args:
        name: ``llama-mini``, with or without the prefix ``demo:``.

    Raises:
        ModelError: no embedded base has this name, or a file of it differs from what was packed.

    >>> base_path("demo:llama-mini").name
    'llama-mini'
    """
    plain = name.removeprefix("demo:")
    if plain not in BASES:
        raise ModelError(
            given=f"the embedded base {name!r}",
            found="the embedded bases are " + ", ".join(f"demo:{base}" for base in BASES),
            instead="demo:llama-mini",
        )
    folder = Path(str(files("loratlas.demo"))) / "base" / plain
    check_digests(folder)
    return folder


@cache
def check_digests(folder: Path) -> None:
    """Compare the files of a base with the SHA-256 of each in its ``sha256.json``; once in a process.

    Raises:
        ModelError: one differs, or is missing.
    """
    table = folder / "sha256.json"
    try:
        wanted = json.loads(table.read_text(encoding="utf-8"))
        changed = [name for name, digest in wanted.items() if sha256(folder / name) != digest]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            given=str(table), found=f"not readable: {str(error)[:100]}", instead="the package installed again"
        ) from error
    if changed:
        raise ModelError(
            given=str(folder / changed[0]),
            found="another content than was packed: its SHA-256 differs",
            instead="the package installed again",
        )
