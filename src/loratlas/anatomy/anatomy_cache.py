"""The anatomy of a model by its name, read once per config and from then on from the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

from loratlas.anatomy.sites import Anatomy
from loratlas.errors import ModelError
from loratlas.models.gguf_base import readable
from loratlas.result_cache import ResultCache, config_text


def config_key(source: str | Path) -> str | None:
    """Names the content of the config that a name stands for; None where it can only be read by transformers."""
    content = config_text(readable(source))
    return None if content is None else hashlib.sha256(content).hexdigest()


def cached_anatomy(source: str | Path) -> Anatomy:
    """Map a model as :func:`loratlas.anatomy.read.read` does; a config seen before needs no torch and no transformers.

    Args:
        source: a Hub id, a directory, a ``config.json`` or a GGUF file.

    Returns:
        The anatomy. Under its ``model`` stands the name that was given now.

    Raises:
        ModelError: see :func:`loratlas.anatomy.read.read`.
    """
    from dataclasses import replace

    key, known = config_key(source), ResultCache("anatomy")
    kept = None if key is None else known.get({"config": key})
    if kept is not None:
        try:
            return replace(Anatomy.from_json(kept), model=str(source))
        except (ModelError, KeyError, TypeError, ValueError):
            kept = None
    from loratlas.anatomy.read import read

    anatomy = read(source)
    if key is not None:
        known.put({"config": key}, anatomy.to_json())
    return anatomy
