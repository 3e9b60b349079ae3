"""Python processes of our own, which import nothing from the folder that a command is given in.

``python -m`` puts the working folder before everything else, and people work in folders of models and adapters that
strangers made: a ``json.py`` there would be imported for the standard library's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import loratlas

LEAN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Environment of a process that trains. oneDNN keeps a kernel for each shape it has multiplied, and packed batches have
a new length at every step: with its own limit of 1,024 a run on 8 million parameters held 0.4 GiB more than with 64,
and was no faster. Fleets and encoder-decoders have more shapes, hence twice that."""


def module_command(module: str) -> list[str]:
    """The words that run a module in a new Python process.

    Args:
        module: its full name.

    >>> module_command("json.tool")[1:]
    ['-P', '-m', 'json.tool']
    """
    return [sys.executable, "-P", "-m", module]


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of such a process: it imports what this one does, from the same folders.

    Args:
        more: variables over those of this process.

    >>> child_environment({"OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"]
    '1'
    """
    # An empty entry would be the working folder, wherever that is by then.
    paths = [path for path in sys.path if path]
    own = str(Path(loratlas.__file__).resolve().parents[1])
    if own not in paths:
        paths.append(own)
    return {**LEAN, **os.environ, "PYTHONPATH": os.pathsep.join(paths), **(more or {})}
