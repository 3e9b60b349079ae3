"""loratlas: where in this transformer should LoRA go, for this data, under this budget?

>>> import loratlas
>>> loratlas.__version__
'0.1.0'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratlas.adapters.lean_lora import faster, slower
    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.errors import LoratlasError
    from loratlas.placement.plan import Plan, place
    from loratlas.sources import read

__version__ = "0.1.0"
__all__ = ["Anatomy", "LoratlasError", "Plan", "Site", "__version__", "faster", "place", "read", "slower"]

# Public name → module that holds it. Loaded on first use, so that `import loratlas` costs no torch.
_HOMES = {
    "Anatomy": "loratlas.anatomy.sites",
    "LoratlasError": "loratlas.errors",
    "Plan": "loratlas.placement.plan",
    "Site": "loratlas.anatomy.sites",
    "faster": "loratlas.adapters.lean_lora",
    "place": "loratlas.placement.plan",
    "read": "loratlas.sources",
    "slower": "loratlas.adapters.lean_lora",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'loratlas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
