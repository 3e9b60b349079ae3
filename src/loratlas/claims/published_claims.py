"""The eight claims of the founding study, and what two of them say in numbers.

The study compares full-layer, attention-only and feed-forward-only LoRA on DialoGPT-medium with Alpaca. Its arms were
very likely suffix lists (`loratlas.placement.legacy`), which is what its figures come out of exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CLAIMS = (
    "Attention contributes disproportionately to downstream performance; feed-forward gives diminishing returns.",
    "Feed-forward-only LoRA: 99.45 % parameter reduction, 32 % faster training, 37.6 % performance cost.",
    "Attention-only LoRA: 31 % parameter reduction, 15 % faster training, 13 % performance cost.",
    "Evaluation loss and perplexity diverge.",
    "Hybrid placement by learned importance is worth having.",
    "The trends carry over to BERT, T5 and larger decoders.",
    "Dynamic placement by gradient signals or attention patterns is worth having.",
    "Effect sizes are large.",
)
"""In our words, in the order of the study; claim n is ``CLAIMS[n - 1]``."""

FULL, ATTENTION, FEEDFORWARD = "c_attn,c_proj,c_fc", "c_attn,c_proj", "c_fc"
"""Module names by which PEFT's list gives the published figures, at rank 16."""

REDUCTIONS = {2: "99.45", 3: "31"}
"""Claim → published parameter reduction in percent, in the digits that were printed."""

COSTS = {2: 0.376, 3: 0.13}
"""Claim → published performance cost against full LoRA."""

FASTER = {2: 0.32, 3: 0.15}
"""Claim → published saving of training time against full LoRA."""

LOSS = 2.5
"""A loss in nats near that of DialoGPT-medium on Alpaca, where a cost is read as a share of the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCount:
    """What one arm trains on DialoGPT-medium.

    Args:
        name: of the arm.
        placement: in the placement language.
        trainable: parameters.
        less_than_full: share of full LoRA at rank 16 that it does not train.
        less_than_model: share of the base that it does not train.
        holds: what its list holds, where it is a list.
    """

    name: str
    placement: str
    trainable: int
    less_than_full: float
    less_than_model: float
    holds: str


def medium() -> PretrainedConfig:
    """The shape of DialoGPT-medium; no file is read."""
    from transformers import GPT2Config

    return GPT2Config(n_embd=1024, n_layer=24, n_head=16)


def counts() -> list[ArmCount]:
    """The published lists and the true roles, counted from the config alone.

    >>> [(arm.name, arm.trainable) for arm in counts()][:2]
    [('full, as a list', 6291456), ('attention, as a list', 4325376)]
    """
    from loratlas.anatomy.read import read
    from loratlas.placement.plan import place

    anatomy = read(medium())
    arms = {
        "full, as a list": f'legacy:"{FULL}":16',
        "attention, as a list": f'legacy:"{ATTENTION}":16',
        "attention": "attention:16",
        "feed-forward, as a list": f'legacy:"{FEEDFORWARD}":16',
        "feed-forward, both matrices at rank 8": "feedforward:8",
        "feed-forward": "feedforward:16",
    }
    plans = {name: place(anatomy, text) for name, text in arms.items()}
    full = plans["full, as a list"].trainable
    return [
        ArmCount(
            name=name,
            placement=arms[name],
            trainable=plan.trainable,
            less_than_full=1 - plan.trainable / full,
            less_than_model=1 - plan.of_model,
            holds="; ".join(warning.partition("does: ")[2] for warning in plan.warnings),
        )
        for name, plan in plans.items()
    ]


def published_half(placement: str) -> str | None:
    """What a list of module names was published as: "attention" or "feedforward"; None for any other placement.

    >>> published_half('legacy:"c_attn,c_proj":16'), published_half('legacy:"c_fc":8'), published_half("attention:16")
    ('attention', 'feedforward', None)
    """
    lists = {f'legacy:"{ATTENTION}"': "attention", f'legacy:"{FEEDFORWARD}"': "feedforward"}
    return lists.get(placement.rpartition(":")[0])


def printed_alike(share: float, percent: str) -> bool:
    """Whether a share, rounded to the digits of a printed percentage, is that percentage.

    >>> printed_alike(0.3125, "31"), printed_alike(0.99454, "99.45"), printed_alike(0.3125, "32")
    (True, True, False)
    """
    return f"{100 * share:.{len(percent.partition('.')[2])}f}" == percent


def readings(cost: float, loss: float = LOSS) -> dict[str, Any]:
    """A published "performance cost", read in both ways that it can be meant.

    As perplexity, exp(L') = (1 + c) exp(L): the loss rises by ln(1 + c) nats. As loss, L' = (1 + c) L: it rises by c·L,
    and perplexity by the factor exp(c·L).

    Args:
        cost: c, such as 0.376.
        loss: L, in nats per token.

    >>> {name: round(value, 3) for name, value in readings(0.376).items()}
    {'as_perplexity_nats': 0.319, 'as_loss_nats': 0.94, 'as_loss_factor': 2.56}
    """
    import math

    return {
        "as_perplexity_nats": math.log1p(cost),
        "as_loss_nats": cost * loss,
        "as_loss_factor": math.exp(cost * loss),
    }
