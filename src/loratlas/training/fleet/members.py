"""One run of a fleet, and what keeps a run out of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.attach import takes_from_base
from loratlas.adapters.peft_targets import renamed_leaves
from loratlas.modeling import device_of
from loratlas.models.heads import head_modules
from loratlas.training.fleet import expert_lora
from loratlas.training.fleet.segmented_lora import MATRICES
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    from loratlas.adapters.plan_row import PlanRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a fleet.

    Args:
        rows: of its plan.
        settings: of the run; ``seed`` draws its initial weights as well.
        rslora: scale by α/√r.
        out: folder for its checkpoints; None keeps none.
        hooks: take part in its steps, as those of `loratlas.training.loop.fit`.
    """

    rows: Sequence[PlanRow]
    settings: Settings
    rslora: bool = False
    out: Path | None = None
    hooks: Sequence[RunHook] = ()


def why_not_in_fleet(model: Any, member: Member) -> str | None:
    """What keeps a run out of a fleet, in words; None if nothing does.

    Args:
        model: the bare base.
        member: the run.
    """
    settings = member.settings
    if takes_from_base(settings.init):
        return f"init {settings.init} changes the base, which a fleet shares"
    if not isinstance(settings.lr, float | int):
        return "its learning rate is decided in its own first steps"
    if settings.early_stop is not None or settings.evaluate_every is not None:
        return "it is evaluated while it trains"
    if settings.checkpointing and settings.dropout:
        return "recomputed layers would draw other dropout masks"
    if settings.dropout and device_of(model).type != "cpu":
        return "its dropout masks are drawn by the accelerator, whose stream a fleet does not follow"
    if settings.compile == "on":
        return "its layers are compiled, with its own adapters in them"
    if settings.report_to:
        return "it reports to a tracker while it trains"
    dropping = _drops_out(model)
    if dropping is not None:
        return f"the base has dropout ({dropping}), whose masks would be those of the whole pass"
    for path in head_modules(model):
        if _hooked(model.get_submodule(path)):
            return f"something is hooked onto {path}"
    return next(filter(None, (_why_not_there(model, row, settings) for row in member.rows)), None)


def _why_not_there(model: Any, row: PlanRow, settings: Settings) -> str | None:
    """What keeps one site's adapter out of a fleet."""
    path = row.site.module
    if row.dora:
        return "DoRA rescales the rows of the base's matrices, which a fleet shares"
    if len(row.modules) > 1:
        return f"{path} is one matrix under {len(row.modules)} names"
    module = model.get_submodule(path)
    if row.site.kind == "experts":
        if not expert_lora.serves(module, row.site.path.rpartition(".")[2]):
            kind = type(module).__name__
            return f"{row.site.path} is of a {kind}, which does not run through transformers' interface of experts"
    elif type(module) not in MATRICES:
        return f"{path} is a {type(module).__name__}, and a fleet serves plain matrices and stacks of experts"
    elif settings.dropout and path.rpartition(".")[2] in renamed_leaves(model):
        return f"{path} is adapted as a parameter, without the dropout of the others"
    return f"something is hooked onto {path}" if _hooked(module) else None


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _drops_out(model: Any) -> str | None:
    """The first module that has a dropout probability, or a jitter of its router, above 0."""
    import torch

    for path, module in model.named_modules():
        plain = isinstance(module, torch.nn.modules.dropout._DropoutNd)
        for name, value in vars(module).items():
            named = "drop" in name or "jitter" in name or (plain and name == "p")
            if named and isinstance(value, float) and value > 0:
                return path
    return None
