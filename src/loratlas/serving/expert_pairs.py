"""A stack of experts as one pair of factors per expert, under the names that vLLM, SGLang and TensorRT-LLM read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loratlas.errors import ModelError
from loratlas.serving.adapter_header import EXPERTS
from loratlas.serving.updates import SiteUpdate

_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def per_expert(sites: Iterable[SiteUpdate], model_type: str) -> tuple[SiteUpdate, ...]:
    """Take stacks apart; everything else stays as it is.

    Both halves of a fused gate and up share the factor A. Where one of gate, up and down of an expert is adapted, all
    three are written.

    Args:
        sites: of an adapter.
        model_type: of its base: mixtral's experts have names of their own.

    Raises:
        ModelError: a parameter of experts that is neither of the two known ones.
    """
    done: list[SiteUpdate] = []
    for site in sites:
        done.extend(_taken_apart(site, model_type) if site.kind == EXPERTS else (site,))
    return tuple(done)


def _taken_apart(site: SiteUpdate, model_type: str) -> Iterator[SiteUpdate]:
    if site.parameter not in _PARTS:
        raise ModelError(
            given=f"{site.module}.{site.parameter}",
            found="a stack of experts whose parts have no names of their own",
            instead="--for merged",
        )
    module = site.module
    if model_type == "mixtral":
        module = module.replace(".mlp.experts", ".block_sparse_moe.experts")
    leaves = _PARTS[site.parameter]
    for expert in range(site.A.shape[0]):
        for leaf, B in zip(leaves, site.B[expert].chunk(len(leaves), dim=0), strict=True):
            name = _NAMES[leaf] if model_type == "mixtral" else leaf
            yield SiteUpdate(module=f"{module}.{expert}.{name}", A=site.A[expert], B=B.contiguous())
