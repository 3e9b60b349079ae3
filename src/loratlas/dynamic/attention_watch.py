"""How far a run has moved the base's attention, measured by two passes over a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.role_table import ATTENTION_FAMILIES
from loratlas.anatomy.sites import Site
from loratlas.dynamic.run_evidence import Measured
from loratlas.errors import SettingsError
from loratlas.modeling import modes_kept, unwrap
from loratlas.signals.attention import AttentionHeads, watched_attention

if TYPE_CHECKING:
    import torch

    from loratlas.data.batches.batch import Batch


def attention_movement(model: Any, batches: Sequence[Batch], sites: Sequence[Site]) -> Measured | None:
    """Probability that attention patterns have moved by, and with it which layers the run has turned elsewhere.

        moved = Σ_h mean over queries t of ½ Σ_s |P_ts − P⁰_ts|

    P with the adapters, P⁰ without them. Every site of a layer's attention has its layer's number.

    Args:
        model: a `PeftModel`.
        batches: of a few rows; even and odd ones are the halves.
        sites: for which numbers are wanted.

    Returns:
        None where no attention was seen at work.
    """
    moved = patterns_moved(model, batches)
    modules = {
        site.path: name
        for site in sites
        if site.family in ATTENTION_FAMILIES
        for name in [_inside(site.module, moved)]
        if name is not None
    }
    if not modules:
        return None

    def of(rows: slice) -> dict[str, float]:
        means = {name: sum(own[rows]) / max(1, len(own[rows])) for name, own in moved.items()}
        return {path: means[name] for path, name in modules.items()}

    return Measured(whole=of(slice(None)), first=of(slice(0, None, 2)), second=of(slice(1, None, 2)))


def patterns_moved(model: Any, batches: Sequence[Batch]) -> dict[str, list[float]]:
    """Attention's module → movement of every row, summed over heads."""
    import torch

    base = unwrap(model)
    names = {id(module): name for name, module in base.named_modules()}
    moved: dict[str, list[float]] = {}
    for batch in batches:
        before: dict[str, AttentionHeads] = {}

        def keep(module: Any, heads: AttentionHeads, _out: torch.Tensor, before: Any = before) -> None:
            before[names[id(module)]] = heads

        def compare(module: Any, heads: AttentionHeads, _out: torch.Tensor, before: Any = before) -> None:
            name = names[id(module)]
            moved.setdefault(name, []).extend(before[name].distances(heads))

        with torch.no_grad(), modes_kept(model):
            model.eval()
            with model.disable_adapter(), watched_attention(batch, keep):
                _pass(model, batch)
            with watched_attention(batch, compare):
                _pass(model, batch)
    return moved


def check_attention(model: Any, batch: Batch) -> None:
    """Refuse a policy by attention on a model whose attention cannot be watched.

    Raises:
        SettingsError: nothing was seen in a pass.
    """
    import torch

    seen: list[str] = []
    with torch.no_grad(), modes_kept(model), watched_attention(batch, lambda *_: seen.append("")):
        model.eval()
        _pass(model, batch)
    if not seen:
        raise SettingsError(
            given="--signal attention",
            found=f"a {type(unwrap(model)).__name__} in which no attention pattern can be seen",
            instead="--signal weighted, energy or gradient",
        )


def _pass(model: Any, batch: Batch) -> None:
    from loratlas.evaluation.token_losses import token_losses

    token_losses(model, batch)


def _inside(module: str, attentions: dict[str, list[float]]) -> str | None:
    """The attention that a module stands in."""
    while module:
        module = module.rpartition(".")[0]
        if module in attentions:
            return module
    return None
