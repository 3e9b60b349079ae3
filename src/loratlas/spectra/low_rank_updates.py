"""The updates that an adapter's files hold, site by site, and their singular values; no base is needed.

An update is s·B·A with A [r, d_in] and B [d_out, r]. Its singular values are those of the r × r matrix
s·R_B·R_Aᵀ, where B = Q_B·R_B and Aᵀ = Q_A·R_A: nothing of the size d_out × d_in is ever made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratlas.adapters.pattern_keys import pattern_value
from loratlas.adapters.read_adapter import PREFIX, WEIGHTS, AdapterFolder, refuse_nonfinite
from loratlas.errors import ModelError

if TYPE_CHECKING:
    import torch

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(\.weight)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankUpdate:
    """One adapted matrix, or one stack of experts.

    Args:
        module: its name in the bare model; of a parameter that has no module, the module that holds it.
        path: name of the parameter.
        a: name of A's tensor. b: of B's.
        rank: r; of a stack the rank of each expert.
        scale: s, the factor in front of B·A.
        shape: (d_out, d_in) of the update.
        experts: how many updates one pair of tensors holds; None for one.
    """

    module: str
    path: str
    a: str
    b: str
    rank: int
    scale: float
    shape: tuple[int, int]
    experts: int | None = None

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return sum(self.shape) * (self.experts or 1)


def updates_of(contents: AdapterFolder) -> list[LowRankUpdate]:
    """The updates of an adapter, in the order of its file, from names and shapes alone.

    Args:
        contents: of its folder.

    Raises:
        ModelError: a factor without its partner, or a pair of factors that cannot be multiplied.
    """
    pairs: dict[str, dict[str, str]] = {}
    for name in contents.tensors:
        if match := _FACTOR.fullmatch(name):
            pairs.setdefault(match[1], {})[match[3]] = name
    found = []
    for key, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise _broken(contents, f"{key[:200]} has one of the two factors alone")
        found.append(_update(contents, key, pair["A"], pair["B"]))
    if not found:
        raise _broken(contents, "no factor of LoRA in it")
    return found


def _update(contents: AdapterFolder, key: str, a: str, b: str) -> LowRankUpdate:
    config = contents.config
    module = key.removeprefix(PREFIX)
    nesting = 0
    while module.endswith(".base_layer"):
        module, nesting = module.removesuffix(".base_layer"), nesting + 1
    first, second = contents.tensors[a].shape, contents.tensors[b].shape
    if len(first) < 2 or len(second) < 2 or first[0] != second[1] or math.prod(second[2:]) != 1:
        raise _broken(contents, f"{key[:200]} has factors of shapes {first} and {second}")
    parameters = [p for p in config.get("target_parameters") or () if _holds(module, p)]
    # PEFT wraps parameters as their module registers them, the first one innermost: experts have their down-projection
    # last, in every model of transformers.
    names = sorted((p if "." in p else f"{module}.{p}" for p in parameters), key=_is_down)
    name = names[-1 - nesting] if nesting < len(names) else f"{module}.weight"
    keyed = name if parameters else module
    rank = pattern_value(config.get("rank_pattern"), keyed, config.get("r", 8))
    alpha = pattern_value(config.get("alpha_pattern"), keyed, config.get("lora_alpha", 8))
    count = first[0] // rank if parameters and first[0] % rank == 0 else 1
    own = first[0] // count
    return LowRankUpdate(
        module=module,
        path=name,
        a=a,
        b=b,
        rank=own,
        scale=alpha / (math.sqrt(own) if config.get("use_rslora") else own),
        shape=(second[0], math.prod(first[1:])),
        experts=count if count > 1 else None,
    )


def _is_down(parameter: str) -> bool:
    return parameter.endswith(("down_proj", "w2", "output_linear"))


def _holds(module: str, parameter: str) -> bool:
    holder = parameter.rpartition(".")[0]
    return not holder or module == holder or module.endswith(f".{holder}")


def read_factors(
    contents: AdapterFolder, updates: list[LowRankUpdate]
) -> Iterator[tuple[LowRankUpdate, torch.Tensor, torch.Tensor]]:
    """A and B of each update, one pair in memory at a time.

    Args:
        contents: of the adapter's folder.
        updates: some of :func:`updates_of`.

    Returns:
        Update, A [r, d_in], B [d_out, r] in float64 on the CPU; of a stack with the experts in front.

    Raises:
        ModelError: a number in them is NaN or infinite.
    """
    import torch
    from safetensors import safe_open

    with safe_open(contents.folder / WEIGHTS, framework="pt", device="cpu") as file:
        for update in updates:
            A, B = file.get_tensor(update.a).to(torch.float64), file.get_tensor(update.b).to(torch.float64)
            refuse_nonfinite({update.a: A, update.b: B}, given=str(contents.folder / WEIGHTS))
            A, B = A.flatten(1), B.flatten(1)
            if update.experts is not None:
                # PEFT keeps the experts of A one below the other, those of B interleaved.
                A = A.reshape(update.experts, update.rank, -1)
                B = B.reshape(B.shape[0], update.rank, update.experts).permute(2, 0, 1)
            yield update, A, B


def singular_values(A: torch.Tensor, B: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Singular values of scale·B·A, largest first.

    Args:
        A: [..., r, d_in]. B: [..., d_out, r]. scale: the factor.

    Returns:
        [..., min(r, d_out, d_in)].

    >>> import torch
    >>> singular_values(torch.eye(2, 5), torch.diag(torch.tensor([3.0, 2.0])), 2.0)
    tensor([6., 4.])
    """
    import torch

    Rb = torch.linalg.qr(B, mode="r").R
    Ra = torch.linalg.qr(A.transpose(-1, -2), mode="r").R
    return torch.linalg.svdvals(Rb @ Ra.transpose(-1, -2)) * abs(scale)


def effective_rank(values: torch.Tensor) -> float:
    """How many directions an update really uses: exp of the entropy of its normalised singular values.

        exp(−Σ p_i ln p_i),   p_i = σ_i / Σσ

    1 where one direction has everything, r where all r are equally large, 0 of an update that is zero.

    Args:
        values: [..., r] singular values; of a stack the mean over its experts.

    >>> import torch
    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0])), effective_rank(torch.zeros(3))
    (2.0, 0.0)

    Source:
        O. Roy and M. Vetterli (2007), The effective rank: a measure of effective dimensionality, EUSIPCO.
    """
    import torch

    total = values.sum(-1, keepdim=True)
    p = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    ranks = torch.exp(-torch.special.xlogy(p, p).sum(-1)) * (total[..., 0] > 0)
    return float(ranks.mean())


def _broken(contents: AdapterFolder, found: str) -> ModelError:
    return ModelError(
        given=str(contents.folder / WEIGHTS), found=found, instead="the adapter's files as PEFT wrote them"
    )
