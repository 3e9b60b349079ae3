"""What arithmetic alone knows of a plan's price: operations, and the bytes of adapters and optimizer.

The formulas are written out in ``docs/method/cost.md``. Memory depends on the code that runs and is not computed here
but rehearsed, see `loratlas.cost.dry_run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import ModelError

# Moments that the optimizer keeps for each trainable parameter.
_MOMENTS = {"adamw": 2, "sgd": 0}
_MASTER = 4  # adapter weights and moments are float32
_BEFORE, _AFTER = -1, 1 << 30  # where embeddings and heads stand among the layers
# Order in which a block's matrices are passed. Of a parallel block, see `_upstream`.
_STAGES = {"q": 0, "k": 0, "v": 0, "qkv": 0, "kv": 0, "o": 1, "gate": 2, "up": 2, "gate_up": 2, "down": 3}


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


def cost(anatomy: Anatomy, rows: Mapping[str, int], *, length: int = 512, optimizer: str = "adamw") -> Cost:
    """Price a plan.

    Args:
        anatomy: of the base.
        rows: parameter path → rank.
        length: tokens that one token attends among; half of them on average, attention being causal.
        optimizer: ``"adamw"`` or ``"sgd"``.

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
    return Cost(
        flops_per_token=_Pass(anatomy, adapted, rows).flops(length),
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


class _Pass:
    """One forward and one backward pass, as far down as the lowest adapter."""

    def __init__(self, anatomy: Anatomy, adapted: Mapping[str, Site], rows: Mapping[str, int]) -> None:
        self.anatomy, self.adapted, self.rows = anatomy, adapted, rows
        self.lowest = min((self._place(site) for site in adapted.values()), default=(_AFTER, 0))
        self.starts = [site for site in adapted.values() if self._place(site)[0] == self.lowest[0]]
        self.parallel = self._parallel(self.lowest[0])

    def _place(self, site: Site) -> tuple[int, int]:
        if site.layer is not None:
            return site.layer, _STAGES.get(site.part, 0)
        inward = site.role == "embed" or (site.role == "proj" and site.shape[0] == self.anatomy.hidden)
        return (_BEFORE if inward else _AFTER), (0 if site.role == "proj" else 1)

    def _upstream(self, site: Site) -> bool:
        """Whether a gradient flows through this site's input: an adapter stands before it."""
        layer, stage = self._place(site)
        if not self.adapted or layer != self.lowest[0]:
            return bool(self.adapted) and layer > self.lowest[0]
        return any(
            self._place(start)[1] < stage
            # Parallel blocks: the feed-forward that reads what attention reads does not follow it.
            and not (self.parallel and start.family != site.family)
            for start in self.starts
        )

    def _parallel(self, layer: int) -> bool:
        groups = {
            (site.input_group, site.family)
            for site in self.anatomy.sites
            if site.layer == layer and _STAGES.get(site.part) in (0, 2) and site.input_group is not None
        }
        return len({group for group, _ in groups}) < len({family for _, family in groups})

    def flops(self, length: int) -> int:
        """Operations for one token; a multiplication with its addition counts as two."""
        total = 0
        for site in self.anatomy.sites:
            if site.kind not in ("linear", "conv1d"):
                continue
            through = self._upstream(site)
            # Forward, and the gradient of the input: the frozen weight itself has none.
            total += 2 * site.shape[0] * site.shape[1] * (2 if through else 1)
            if site.role in ("attn.o", "xattn.o"):
                # Scores and their product with the values; twice that backward.
                total += 2 * length * site.shape[1] * (3 if through else 1)
        for path, site in self.adapted.items():
            out, into = site.shape
            rank = self.rows[path]
            forward = 0 if site.kind == "embedding" else 2 * rank * into
            # Backward: both factors' own gradients, the gradient between them, and the input's if asked for.
            total += 2 * rank * out + forward
            total += 2 * rank * (2 * out) + forward + (forward if self._upstream(site) else 0)
        return total
