"""The closest adapter of a budget, written as an ordinary one: `loratlas shrink`.

Closest in the root of Σ‖s·B·A − s'·B'·A'‖² over all sites; see `loratlas.spectra.global_ranks`. No base is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.patterns import anchored
from loratlas.adapters.stored.adapter_digests import write_notes
from loratlas.adapters.stored.read_adapter import MARKER, WEIGHTS, AdapterFolder, read_adapter
from loratlas.errors import BudgetError, ModelError
from loratlas.files import whole_folder, write_json
from loratlas.placement.plan import Plan
from loratlas.serving.adapter_header import FactorPair
from loratlas.spectra.global_ranks import KeptRanks, keep_largest
from loratlas.spectra.low_rank_updates import path_of, rank_cost, read_factors, singular_values, updates_of
from loratlas.spectra.site_labels import sites_of

if TYPE_CHECKING:
    import torch

_REFUSED = {
    "use_dora": "DoRA, whose magnitudes were trained for the update as it is",
    "lora_bias": "lora_bias, which adds a constant to the update",
    "target_parameters": "stacks of experts (target_parameters), whose experts share one rank",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShrunkenAdapter:
    """A smaller adapter that was written.

    Args:
        path: its folder.
        ranks: module → rank before and after; 0 after where the site is left out.
        before: parameters of the factors. after: of the new ones.
        kept: how the budget was distributed.
    """

    path: str
    ranks: Mapping[str, tuple[int, int]]
    before: int
    after: int
    kept: KeptRanks


def check_shrinkable(contents: AdapterFolder) -> None:
    """Refuse an adapter whose updates are not s·B·A alone.

    Raises:
        ModelError: one of another kind; the sentence says what to do.
    """
    if contents.changed_base:
        raise ModelError(
            given=str(contents.folder),
            found=f"factors that were started by {contents.changed_base} from the base, of which only the difference "
            "from the first ones is the update",
            instead=f"loratlas export {contents.folder} --for peft --out ordinary, then shrink that",
        )
    for option, what in _REFUSED.items():
        if contents.config.get(option):
            raise ModelError(
                given=str(contents.folder),
                found=what,
                instead="an adapter of plain LoRA, or a smaller one trained anew",
            )


def shrink(contents: AdapterFolder, out: Path, *, budget: int) -> ShrunkenAdapter:
    """Write the closest adapter that costs at most so many parameters.

    The scale of every site is α/r with one α for all, what is left of the old scale is in B. What is no factor (a
    head, an embedding) is kept as it is and not counted.

    Args:
        contents: of the adapter's folder.
        out: a new folder, or an earlier adapter, which is replaced once the new one is whole.
        budget: parameters of the factors.

    Raises:
        ModelError: see :func:`check_shrinkable`; numbers that are not finite.
        BudgetError: less than one direction costs. OutputError, StorageError: ``out`` cannot be written.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    check_shrinkable(contents)
    updates = updates_of(contents)
    groups = _groups(contents, updates)
    spectra = [
        singular_values(A, B, u.scale).tolist() for u, A, B in read_factors(contents, [g[0] for g in groups])
    ]
    costs = [rank_cost(group[0]) for group in groups]
    kept = keep_largest(spectra, costs, budget=budget)
    if not kept.spent:
        least = min((c for c, s in zip(costs, spectra, strict=True) if max(s) > 0), default=0)
        raise BudgetError(
            given=f"a budget of {budget:,} parameters",
            found=f"one direction costs at least {least:,}" if least else "an adapter whose update is 0",
            instead=f"params={least} or more" if least else "an adapter that was trained",
        )
    ranks = {u.module: r for group, r in zip(groups, kept.ranks, strict=True) for u in group}
    config = _config(contents, {module: rank for module, rank in ranks.items() if rank})
    tensors = {}
    factors = {name for u in updates for name in (u.a, u.b)}
    with safe_open(contents.folder / WEIGHTS, framework="pt", device="cpu") as file:
        for name in contents.tensors:
            if name not in factors:
                tensors[name] = file.get_tensor(name)
        dtypes = {u.module: file.get_tensor(u.a).dtype for u in updates}
    for u, A, B in read_factors(contents, [u for u in updates if ranks[u.module]]):
        rank = ranks[u.module]
        a, b = truncated(A, B, rank, u.scale * rank / config["lora_alpha"])
        tensors[u.a] = a.to(dtypes[u.module]).contiguous()
        tensors[u.b] = b.to(dtypes[u.module]).contiguous()
    with whole_folder(out, marker=MARKER) as new:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        write_json(new / MARKER, config)
        if contents.notes:
            write_notes(new, _notes(contents, ranks, config["lora_alpha"]), (MARKER, WEIGHTS))
        read_adapter(new)
    return ShrunkenAdapter(
        path=str(out),
        ranks={u.module: (u.rank, ranks[u.module]) for u in updates},
        before=sum(group[0].parameters for group in groups),
        after=kept.spent,
        kept=kept,
    )


def truncated(A: torch.Tensor, B: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The closest factors of a rank: B'·A' is nearest to scale·B·A.

    Args:
        A: [r, d_in]. B: [d_out, r]. rank: at most r. scale: of the product.

    Returns:
        A' [rank, d_in] and B' [d_out, rank], alike in size.
    """
    import torch

    Qb, Rb = torch.linalg.qr(B)
    Qa, Ra = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T * scale)
    root = S[:rank].sqrt()
    return (Qa @ Vh[:rank].T * root).T, Qb @ U[:, :rank] * root


def _groups(contents: AdapterFolder, updates: Sequence[FactorPair]) -> list[list[FactorPair]]:
    """Updates that stand in for one another: copies of one matrix, which need the same factors."""
    labels = sites_of(contents, None)
    groups: dict[str, list[FactorPair]] = {}
    for update in updates:
        site = labels.get(update.module)
        groups.setdefault(site.path if site else path_of(update), []).append(update)
    return list(groups.values())


def _config(contents: AdapterFolder, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The adapter's config for these ranks: full names, one α, and a pattern only where ranks differ."""
    by_rank: dict[int, list[str]] = {}
    for module, rank in ranks.items():
        by_rank.setdefault(rank, []).append(module)
    common = max(by_rank, key=lambda rank: len(by_rank[rank]))
    return {
        **contents.config,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": {anchored(names): rank for rank, names in by_rank.items() if rank != common},
        "alpha_pattern": {},
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _notes(contents: AdapterFolder, ranks: Mapping[str, int], alpha: int) -> dict[str, Any]:
    """``loratlas.json`` of the smaller adapter, its plan in it."""
    notes = {k: v for k, v in contents.notes.items() if k not in ("schema", "version", "sha256", "seal")}
    notes["extra"] = {**(notes.get("extra") or {}), "shrunk_from": contents.folder.name}
    if not notes.get("plan"):
        return notes
    plan = Plan.from_json(notes["plan"])
    rows = tuple(
        replace(row, rank=ranks[row.modules[0]], alpha=float(alpha))
        for row in plan.rows
        if ranks.get(row.modules[0])
    )
    text = " + ".join(f'"{row.site.module}":{row.rank}' for row in rows)
    smaller = replace(plan, placement=text, text=text, budget=None, rows=rows, rslora=False, why=None)
    return {**notes, "plan": smaller.to_json()}
