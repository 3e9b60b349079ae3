"""Where the embedded base lies."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from loratlas.errors import ModelError

BASES = ("llama-mini",)


def base_path(name: str = "llama-mini") -> Path:
    """The folder of an embedded base: config, safetensors, tokenizer and card.

    Args:
        name: ``llama-mini``, with or without the prefix ``demo:``.

    Raises:
        ModelError: no embedded base has this name.

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
    return Path(str(files("loratlas.demo"))) / "base" / plain
