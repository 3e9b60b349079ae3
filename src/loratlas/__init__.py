"""loratlas: where in this transformer should LoRA go, for this data, under this budget?

>>> import loratlas
>>> loratlas.__version__
'0.1.0'
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratlas.adapters.layers.lean_lora import faster, slower
    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.api.check_adapter import Check, check, lint
    from loratlas.api.compare import study, study_cost
    from loratlas.api.evaluate_model import evaluate
    from loratlas.api.export_run import export
    from loratlas.api.judge_claims import Claims, claims
    from loratlas.api.place_model import place
    from loratlas.api.results import Evaluation, Run, ScanResult, Study
    from loratlas.api.scan_model import scan
    from loratlas.api.show_adapter_folder import show
    from loratlas.api.shrink_adapter_folder import Shrinkage, shrink
    from loratlas.api.train_run import train
    from loratlas.errors import LoratlasError
    from loratlas.integrations.trainer.dynamic_placement import DynamicPlacement
    from loratlas.placement.plan import Plan
    from loratlas.sources import read
    from loratlas.spectra.show_adapter import AdapterSpectrum
    from loratlas.training.settings import Settings

__version__ = "0.1.0"
__all__ = [
    "AdapterSpectrum",
    "Anatomy",
    "Check",
    "Claims",
    "DynamicPlacement",
    "Evaluation",
    "LoratlasError",
    "Plan",
    "Run",
    "ScanResult",
    "Settings",
    "Shrinkage",
    "Site",
    "Study",
    "__version__",
    "check",
    "claims",
    "evaluate",
    "export",
    "faster",
    "lint",
    "place",
    "read",
    "scan",
    "show",
    "shrink",
    "slower",
    "study",
    "study_cost",
    "train",
]

# Public name → module that holds it. Loaded on first use, so that `import loratlas` costs no torch.
_HOMES = {
    "AdapterSpectrum": "loratlas.spectra.show_adapter",
    "Anatomy": "loratlas.anatomy.sites",
    "Check": "loratlas.api.check_adapter",
    "Claims": "loratlas.api.judge_claims",
    "DynamicPlacement": "loratlas.integrations.trainer.dynamic_placement",
    "Evaluation": "loratlas.api.results",
    "LoratlasError": "loratlas.errors",
    "Plan": "loratlas.placement.plan",
    "Run": "loratlas.api.results",
    "ScanResult": "loratlas.api.results",
    "Settings": "loratlas.training.settings",
    "Shrinkage": "loratlas.api.shrink_adapter_folder",
    "Site": "loratlas.anatomy.sites",
    "Study": "loratlas.api.results",
    "check": "loratlas.api.check_adapter",
    "claims": "loratlas.api.judge_claims",
    "evaluate": "loratlas.api.evaluate_model",
    "export": "loratlas.api.export_run",
    "lint": "loratlas.api.check_adapter",
    "faster": "loratlas.adapters.layers.lean_lora",
    "place": "loratlas.api.place_model",
    "read": "loratlas.sources",
    "scan": "loratlas.api.scan_model",
    "show": "loratlas.api.show_adapter_folder",
    "shrink": "loratlas.api.shrink_adapter_folder",
    "slower": "loratlas.adapters.layers.lean_lora",
    "study": "loratlas.api.compare",
    "study_cost": "loratlas.api.compare",
    "train": "loratlas.api.train_run",
}


class _Front(ModuleType):
    """The package, in which a public function is not hidden by the room of the same name.

    Importing ``loratlas.scan.scores`` would bind the name ``scan`` here to the room; ``loratlas.scan`` is the function.
    Rooms are imported as ever: ``from loratlas.scan.scores import load_scan``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'loratlas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
