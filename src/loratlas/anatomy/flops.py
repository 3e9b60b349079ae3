"""What arithmetic alone knows of a plan's price: operations, and the bytes of adapters and optimizer.

The formulas are written out in ``docs/method/cost.md``; which matrices a backward pass goes through, in
:mod:`loratlas.anatomy.backward_reach`. Memory depends on the code that runs and is not computed here
but measured in a dry run, see `loratlas.cost.dry_run`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from loratlas.anatomy.backward_reach import backward_reach
from loratlas.anatomy.role_table import ATTENTION_FAMILIES, ROLES, TEXT_SCOPES
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import ModelError

# Moments that the optimizer keeps for each trainable parameter.
_MOMENTS = {"adamw": 2, "sgd": 0}
_MASTER = 4  # adapter weights and moments are float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan costs, whatever the batch.

    Args:
        flops_per_token: floating point operations for one token, forward and backward.
        adapter_bytes: the adapters themselves, as they lie in memory.
        optimizer_bytes: the optimizer's moments.
    """

    flops_per_token: int
    adapter_bytes: int
    optimizer_bytes: int

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


def cost(
    anatomy: Anatomy,
    rows: Mapping[str, int],
    *,
    length: int = 512,
    optimizer: str = "adamw",
    dora: bool = False,
) -> Cost:
    """Price a plan.

    Args:
        anatomy: of the base.
        rows: parameter path → rank.
        length: tokens that one token attends among; half of them on average, attention being causal.
        optimizer: ``"adamw"`` or ``"sgd"``.
        dora: whether each row of an adapted matrix trains its length as well. What renews those lengths is done once
            a micro-batch and not for every token, so that it is in a dry run's operations and not in these.

    Returns:
        The cost, monotone in every rank.

    Raises:
        ModelError: a path that is no adaptable site, or an unknown optimizer.

    >>> from loratlas.anatomy.read import read
    >>> from transformers import LlamaConfig
    >>> anatomy = read(LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4,
    ...                            intermediate_size=128, vocab_size=96))
    >>> early = cost(anatomy, {"model.layers.0.mlp.up_proj.weight": 4})
    >>> late = cost(anatomy, {"model.layers.1.mlp.up_proj.weight": 4})
    >>> early.adapter_bytes == late.adapter_bytes, early.flops_per_token > late.flops_per_token
    (True, True)
    """
    if optimizer not in _MOMENTS:
        raise ModelError(
            given=f"optimizer {optimizer!r}", found="no such one to price", instead=" or ".join(_MOMENTS)
        )
    by_path = {site.path: site for site in anatomy.sites}
    adapted = {path: _adaptable(by_path.get(path) or anatomy.site(path)) for path in rows}
    trainable = sum(site.lora_parameters(rows[path]) for path, site in adapted.items())
    trainable += sum(site.dora_parameters for site in adapted.values()) if dora else 0
    return Cost(
        flops_per_token=_operations(anatomy, adapted, rows, length),
        adapter_bytes=trainable * _MASTER,
        optimizer_bytes=trainable * _MASTER * _MOMENTS[optimizer],
    )


def _adaptable(site: Site) -> Site:
    if not site.adaptable:
        raise ModelError(
            given=site.path,
            found=f"a site of kind {site.kind} that carries no adapter",
            instead="an adaptable site",
        )
    return site


def _operations(anatomy: Anatomy, adapted: Mapping[str, Site], rows: Mapping[str, int], length: int) -> int:
    """Operations for one token; a multiplication with its addition counts as two."""
    reached = backward_reach(anatomy, {name for site in adapted.values() for name in _names(site)})
    scopes = TEXT_SCOPES | {site.scope for site in adapted.values()}
    share, often, queries = shares(anatomy), runs(anatomy), _query_widths(anatomy)
    total = 0.0
    for site in anatomy.sites:
        row = ROLES[site.role]
        if row.use != "map" or site.kind == "embedding" or site.scope not in scopes:
            continue
        # Forward, and the gradient of the input: the frozen weight itself has none.
        passes = 2 if site.path in reached else 1
        total += 2 * math.prod(site.shape) * share.get(site.path, 1) * often.get(site.path, 1) * passes
        if row.family in ATTENTION_FAMILIES and row.part in ("o", "o_a"):
            # Scores, as wide as a query, and their product with the values; of a causal attention half of the pairs.
            scored = length * (queries.get((site.scope, site.layer), site.shape[1]) + site.shape[1])
            pairs = 1 if row.family == "attn" and site.scope == "decoder" else 2
            # Twice that backward.
            total += scored * pairs * often.get(site.path, 1) * (3 if passes == 2 else 1)
    for path, site in adapted.items():
        out, into = site.shape
        rank = rows[path]
        forward = 0 if site.kind == "embedding" else 2 * rank * into
        for name in _names(site):
            # Backward: both factors' own gradients, the gradient between them, and the input's if asked for.
            once = 2 * rank * out + forward + 2 * rank * (2 * out) + forward
            once += forward if name in reached else 0
            total += once * share.get(path, 1) * often.get(path, 1)
    return round(total)


def _names(site: Site) -> tuple[str, ...]:
    """Every name under which an adapter at a site works."""
    return site.called_as or (site.path,)


def shares(anatomy: Anatomy) -> dict[str, float]:
    """Path → how many of its maps a token passes, of routed experts."""
    routed = [site for site in anatomy.sites if site.family == "moe" or site.experts is not None]
    alike = Counter(map(_alike, routed))
    active = anatomy.active_experts
    return {
        site.path: min(active, site.experts or alike[_alike(site)])
        / (1 if site.experts else alike[_alike(site)])
        for site in routed
    }


def runs(anatomy: Anatomy) -> dict[str, int]:
    """Path → how often a token passes it, of a block that works in place of all layers (albert)."""
    shared = [
        site
        for site in anatomy.sites
        if "shared" in site.flags and not site.called_as and site.layer is not None
    ]
    stacks = {site.path.partition(f".{site.layer}.")[0] for site in shared}
    if len(stacks) != 1:
        return {}  # some repeat, each as often as their code says
    each = anatomy.layers // max(len({site.layer for site in shared}), 1)
    return {site.path: max(each, 1) for site in shared}


def _query_widths(anatomy: Anatomy) -> dict[tuple[str, int | None], int]:
    """(scope, layer) → width of all heads' queries where it is another than that of their values: compressed keys."""
    compressed = {(site.scope, site.layer) for site in anatomy.sites if site.role == "attn.kv_b"}
    return {
        where: site.shape[0]
        for site in anatomy.sites
        if site.role in ("attn.q", "attn.q_b") and (where := (site.scope, site.layer)) in compressed
    }


def _alike(site: Site) -> tuple[str, int | None, str, tuple[int, int], int | None]:
    """Equal for the experts of one mixture."""
    return site.scope, site.layer, site.role, site.shape, site.experts
