"""A model whose every attribute and class is called at random, and which runs as before.

>>> import torch
>>> class Gate(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.up, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
...     def forward(self, x):
...         return self.up(x) * self.scale
>>> gate = Gate()
>>> before = gate(torch.ones(1, 2))
>>> named = {part for name, _ in rename(gate, seed=0).named_parameters() for part in name.split(".")}
>>> bool((gate(torch.ones(1, 2)) == before).all()), named & {"up", "scale"}, type(gate).__name__ == "Gate"
(True, set(), False)
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

from torch import nn

from loratlas.anatomy.compare.decide_roles import RoleDecision, decide
from loratlas.anatomy.config_sizes import sizes
from loratlas.anatomy.structure import matrices

_POSITIONS = (nn.ModuleList, nn.Sequential, nn.ParameterList)
"""What these call their items is a place in a list, which is no name."""


class _Aliased(dict):
    """A dict that is listed under new keys and still answers to the old ones."""

    def __init__(self, held: dict[str, Any], new: dict[str, str]) -> None:
        super().__init__({new[name]: value for name, value in held.items()})
        self.new = new

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self.new.get(str(name), name))

    def __missing__(self, name: str) -> Any:
        return self[self.new[name]]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401


def rename(model: nn.Module, *, seed: int) -> nn.Module:
    """Give every class, submodule and parameter a random name, in place: one name per class and attribute.

    Args:
        model: any; its forward goes on to find everything by its old names.
        seed: of the names.
    """
    draw = random.Random(seed)
    words: dict[tuple[type, str], str] = {}
    classes: dict[type, type] = {}

    def word(cls: type, name: str) -> str:
        return words.setdefault((cls, name), "".join(draw.choices(string.ascii_lowercase, k=9)))

    for module in list(model.modules()):
        cls = type(module)
        if cls not in classes:
            classes[cls] = type(word(cls, "").capitalize(), (cls,), {})
        held = vars(module)
        if not isinstance(module, _POSITIONS):
            held["_modules"] = _Aliased(
                held["_modules"], {name: word(cls, name) for name in held["_modules"]}
            )
        if cls.__module__.startswith("torch."):
            continue  # that a Linear is one and has a weight is PyTorch's word, not the model's
        held["_parameters"] = _Aliased(
            held["_parameters"], {name: word(cls, name) for name in held["_parameters"]}
        )
        module.__class__ = classes[cls]
    return model


def renamed_decisions(
    model: Any, roles: dict[str, str | None], small: Callable[[], Any]
) -> dict[str, tuple[int, int]]:
    """Family → matrices that keep their role when all names are random, and how many there are.

    Args:
        model: on the meta device; its names are gone afterwards.
        roles: of its matrices, in their order, under its own names.
        small: makes the same model with weights, for one that asks tensors for their values.
    """
    told = _unnamed(model)
    if not all(told):
        told = [one or other for one, other in zip(told, _unnamed(small()), strict=True)]
    counts: dict[str, tuple[int, int]] = {}
    for role, alone in zip(roles.values(), told, strict=True):
        if role is not None:
            family = role.partition(".")[0]
            same, every = counts.get(family, (0, 0))
            counts[family] = same + (role == alone), every + 1
    return counts


def _unnamed(model: Any) -> list[str | None]:
    """The roles of a model's matrices, in their order, after its names are gone."""
    rename(model, seed=1)
    listed = matrices(model)
    decisions = decide(model, listed, sizes(model.config))
    return [_alone(decisions[matrix.path]) for matrix in listed]


def _alone(decision: RoleDecision) -> str | None:
    """The role, or what the trace alone said where shapes spoke against it."""
    said = dict(opinion.split(": ", 1) for opinion in decision.opinions)
    return said.get("trace") if decision.role is None else decision.role
