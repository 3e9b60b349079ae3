"""The study that ``loratlas demo`` runs: a demonstration, sized for minutes.

Few learning rates, one tuning seed and short runs are too little for a conclusion about anything but this
task; the spec says ``demonstration``, and so do the report and the findings. Five evaluation seeds all
the same, so that the intervals are honest ones.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

RECIPES = ("facts", "retrieval")
"""Studies that need no file of anybody's: ``loratlas study demo:facts``."""


def recipe_path(name: str) -> Path | None:
    """The study file of an embedded recipe; None where no recipe has this name.

    Args:
        name: ``facts``, with or without the prefix ``demo:``.

    >>> recipe_path("demo:facts").name, recipe_path("demo:none")
    ('facts.yaml', None)
    """
    plain = name.removeprefix("demo:")
    return Path(str(files("loratlas.demo"))) / "recipes" / f"{plain}.yaml" if plain in RECIPES else None


def study() -> dict[str, Any]:
    """The spec of the demonstration, as a study file would hold it, in the numbers this machine is fast at.

    >>> study()["arms"]
    {'full': 'all:1', 'attention': 'attention', 'feedforward': 'feedforward'}
    """
    from loratlas.models.load import native_dtype

    return {
        "name": "demo",
        "model": "demo:llama-mini",
        "data": {"train": "demo:facts-300", "eval": "demo:facts-300"},
        "arms": {"full": "all:1", "attention": "attention", "feedforward": "feedforward"},
        "reference": "full",
        "match": "params",
        "learning_rates": [0.0078, 0.0125, 0.02],
        "tuning": {"seeds": 1, "rows": 150, "extensions": 0},
        "evaluation": {"seeds": 5, "rows": 300},
        "steps": 70,
        "batch_size": 16,
        "max_length": 128,
        "dtype": native_dtype(),
        "delta": 0.01,
        "demonstration": True,
    }
