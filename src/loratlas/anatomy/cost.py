"""What one training step with a plan costs, by arithmetic alone.

Nothing is measured: the formulas are written out in ``docs/method/cost.md``, with what they leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import ModelError

_BYTES = {"float32": 4, "bfloat16": 2}
# Moments that the optimizer keeps for each trainable parameter.
_MOMENTS = {"adamw": 2, "sgd": 0}
_MASTER = 4  # adapter weights, their gradients and moments are float32
_BEFORE, _AFTER = -1, 1 << 30  # where embeddings and heads stand among the layers
# Order in which a block's matrices are passed. Of a parallel block, see `_upstream`.
_STAGES = {"q": 0, "k": 0, "v": 0, "qkv": 0, "kv": 0, "o": 1, "gate": 2, "up": 2, "gate_up": 2, "down": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan costs in one step.

    Args:
        flops_per_token: floating point operations for one token, forward and backward.
        adapter_bytes: the adapters themselves, as they lie in memory.
        optimizer_bytes: the optimizer's moments.
        saved_activation_bytes: what forward keeps for backward, for all tokens of the step.
        peak_bytes: base weights, adapters, their gradients and moments, saved activations and logits.
    """

    flops_per_token: int
    adapter_bytes: int
    optimizer_bytes: int
    saved_activation_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


def cost(
    anatomy: Anatomy,
    rows: Mapping[str, int],
    *,
    tokens: int = 2048,
    length: int = 512,
    dtype: str = "bfloat16",
    optimizer: str = "adamw",
) -> Cost:
    """Price a plan.

    Args:
        anatomy: of the base.
        rows: parameter path → rank.
        tokens: tokens in one step, all of them labelled.
        length: tokens that one token attends among; half of them on average, attention being causal.
        dtype: of the base's weights and of the activations.
        optimizer: ``"adamw"`` or ``"sgd"``.

    Returns:
        The cost, monotone in every rank.

    Raises:
        ModelError: a path that is no adaptable site, or an unknown type or optimizer.

    >>> from loratlas.anatomy.read import read
    >>> from transformers import LlamaConfig
    >>> anatomy = read(LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4,
    ...                            intermediate_size=128, vocab_size=96))
    >>> early = cost(anatomy, {"model.layers.0.mlp.up_proj.weight": 4})
    >>> late = cost(anatomy, {"model.layers.1.mlp.up_proj.weight": 4})
    >>> early.adapter_bytes == late.adapter_bytes, early.flops_per_token > late.flops_per_token
    (True, True)
    """
    for name, value, known in (("dtype", dtype, _BYTES), ("optimizer", optimizer, _MOMENTS)):
        if value not in known:
            raise ModelError(
                given=f"{name} {value!r}", found="no such one to price", instead=" or ".join(known)
            )
    by_path = {site.path: site for site in anatomy.sites}
    adapted = {path: _adaptable(by_path.get(path) or anatomy.site(path)) for path in rows}
    pass_ = _Pass(anatomy, adapted, rows, _BYTES[dtype])
    trainable = sum(site.lora_parameters(rows[path]) for path, site in adapted.items())
    saved = pass_.saved_per_token() * tokens
    logits = (
        tokens * anatomy.vocabulary * (_BYTES[dtype] + 2 * 4)
    )  # logits, and twice in float32 for the loss
    adapters, moments = trainable * _MASTER, trainable * _MASTER * _MOMENTS[optimizer]
    return Cost(
        flops_per_token=pass_.flops(length),
        adapter_bytes=adapters,
        optimizer_bytes=moments,
        saved_activation_bytes=saved,
        peak_bytes=anatomy.parameters * _BYTES[dtype] + 2 * adapters + moments + saved + logits,
    )


def step_flops(anatomy: Anatomy, rows: Mapping[str, int], *, tokens: int = 2048, length: int = 512) -> int:
    """Floating point operations of one step of ``tokens`` tokens: what ``match: time`` holds equal."""
    return cost(anatomy, rows, tokens=tokens, length=length).flops_per_token * tokens


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

    def __init__(
        self, anatomy: Anatomy, adapted: Mapping[str, Site], rows: Mapping[str, int], width: int
    ) -> None:
        self.anatomy, self.adapted, self.rows, self.width = anatomy, adapted, rows, width
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

    def saved_per_token(self) -> int:
        """Bytes that one token's forward pass keeps for backward."""
        if not self.adapted:
            return 0
        sites = self.anatomy.sites
        kept = sum(self.width * size for size in self._adapter_inputs().values())
        kept += sum(self.width * self.rows[path] for path in self.adapted)
        layers: dict[int, list[Site]] = {}
        for site in sites:
            if site.layer is not None and site.layer >= self.lowest[0]:
                layers.setdefault(site.layer, []).append(site)
        for members in layers.values():
            kept += self._norms(members) + self._attention(members) + self._feedforward(members)
        return kept + 4 * self.anatomy.hidden  # the norm before the head

    def _adapter_inputs(self) -> dict[str, int]:
        # Sites that read the same tensor keep it once. Attention keeps its own result, which `o` reads.
        return {
            site.input_group or path: site.shape[1]
            for path, site in self.adapted.items()
            if site.kind != "embedding" and not (site.role == "attn.o" and self._upstream(site))
        }

    def _norms(self, members: list[Site]) -> int:
        # One norm before each distinct tensor that attention or feed-forward reads: its input, in float32.
        groups = {
            site.input_group or site.path
            for site in members
            if _STAGES.get(site.part) in (0, 2) and self._upstream(site)
        }
        return 4 * self.anatomy.hidden * len(groups)

    def _attention(self, members: list[Site]) -> int:
        output = next((site for site in members if site.role == "attn.o"), None)
        if output is None or not self._upstream(output):
            return 0
        # Queries, keys, values and the result; one float32 per head for the softmax.
        projected = sum(site.shape[0] for site in members if site.family == "attn" and site is not output)
        return self.width * (projected + output.shape[1]) + 4 * self.anatomy.heads

    def _feedforward(self, members: list[Site]) -> int:
        down = next((site for site in members if site.role == "ffn.down"), None)
        if down is None or not self._upstream(down):
            return 0
        inner = down.shape[1] * self.width
        if not any(site.role in ("ffn.gate", "ffn.gate_up") for site in members):
            return inner  # what goes into the nonlinearity
        moving = {
            site.part
            for site in members
            if site.family == "ffn" and (site.path in self.adapted or self._upstream(site))
        }
        # The gate's nonlinearity keeps its input; the product keeps each factor whose partner has a gradient.
        through_gate = bool(moving & {"gate", "gate_up"})
        through_up = bool(moving & {"up", "gate_up"})
        return inner * (2 * through_gate + through_up)
