"""How far a run has moved the base's attention, and how spread its heads are: two passes over a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from loratlas.anatomy.role_table import ATTENTION_FAMILIES
from loratlas.anatomy.sites import Site
from loratlas.dynamic.run_evidence import HeadEntropy, Measured
from loratlas.errors import SettingsError
from loratlas.modeling import modes_kept, unwrap
from loratlas.signals.attention import AttentionHeads, watched_attention

if TYPE_CHECKING:
    import torch

    from loratlas.data.batches.batch import Batch


class AttentionSeen(NamedTuple):
    """What two passes have seen.

    Args:
        movement: of patterns, by site.
        entropy: attention's module → of its heads.
    """

    movement: Measured
    entropy: dict[str, HeadEntropy]


def attention_seen(model: Any, batches: Sequence[Batch], sites: Sequence[Site]) -> AttentionSeen | None:
    """Probability that attention patterns have moved by, and with it which layers the run has turned elsewhere.

        moved   = Σ_h mean over queries t of ½ Σ_s |P_ts − P⁰_ts|
        entropy = mean over queries t of −Σ_s P_ts ln P_ts, of every head: of P and of P⁰

    P with the adapters, P⁰ without them. Every site of a layer's attention has its layer's number.

    Args:
        model: a `PeftModel`.
        batches: of a few rows; even and odd ones are the halves.
        sites: for which numbers are wanted.

    Returns:
        None where no attention was seen at work.
    """
    moved, entropy = patterns_moved(model, batches)
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

    movement = Measured(whole=of(slice(None)), first=of(slice(0, None, 2)), second=of(slice(1, None, 2)))
    return AttentionSeen(movement, entropy)


def patterns_moved(
    model: Any, batches: Sequence[Batch]
) -> tuple[dict[str, list[float]], dict[str, HeadEntropy]]:
    """Attention's module → movement of every row, summed over heads; and → entropy of every head."""
    import torch

    base = unwrap(model)
    names = {id(module): name for name, module in base.named_modules()}
    moved: dict[str, list[float]] = {}
    sums: dict[tuple[str, str], torch.Tensor] = {}
    queries: dict[tuple[str, str], int] = {}

    def add(name: str, which: str, heads: AttentionHeads) -> None:
        sums[name, which] = sums.get((name, which), 0) + heads.entropy().double()
        queries[name, which] = queries.get((name, which), 0) + heads.tokens

    for batch in batches:
        before: dict[str, AttentionHeads] = {}

        def keep(module: Any, heads: AttentionHeads, _out: torch.Tensor, before: Any = before) -> None:
            before[names[id(module)]] = heads
            add(names[id(module)], "base", heads)

        def compare(module: Any, heads: AttentionHeads, _out: torch.Tensor, before: Any = before) -> None:
            name = names[id(module)]
            moved.setdefault(name, []).extend(before[name].distances(heads))
            add(name, "adapted", heads)

        with torch.no_grad(), modes_kept(model):
            model.eval()
            looked_at = _without_filler(batch)
            with model.disable_adapter(), watched_attention(looked_at, keep):
                _pass(model, batch)
            with watched_attention(looked_at, compare):
                _pass(model, batch)
    entropy: dict[str, HeadEntropy] = {}
    for (name, which), total in sums.items():
        entropy.setdefault(name, {})[which] = (total / queries[name, which]).tolist()
    return moved, entropy


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


def _without_filler(batch: Batch) -> Batch:
    """The same without the tokens that only fill a packed batch up: their patterns are nobody's."""
    from loratlas.training.step.microbatches import FILLER

    kept = sum(row != FILLER for row in batch.rows)
    return replace(batch, lengths=batch.lengths[:kept])


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
