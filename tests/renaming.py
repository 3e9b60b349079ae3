"""A model whose every attribute and class is called at random, and which runs as before.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2))
>>> before = model(torch.ones(1, 2))
>>> name = type(rename(model, seed=0)[0]).__name__
>>> name == "Linear", bool((model(torch.ones(1, 2)) == before).all()), [n for n, _ in model.named_parameters()] == []
(False, True, False)
"""

from __future__ import annotations

import random
import string
from typing import Any

from torch import nn

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
        return self[name] if name in self else default


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
