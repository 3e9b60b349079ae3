"""Which matrices a model has, who owns each, and in which block it stands. No roles yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_WRAPPERS = ("ModuleList", "Sequential", "ModuleDict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One parameter of two or more dimensions and where it stands.

    Args:
        path: parameter name.
        module: name of the module holding it.
        leaf: that module's last named part, e.g. ``q_proj``.
        owner: name of the nearest module around it that is no mere list.
        holder: the module itself.
        parameter: the tensor.
        kind: as in :class:`~loratlas.anatomy.sites.Site`.
        shape: as stored.
        layer: index in the outermost list of blocks; None outside.
        block: name of that block; None outside.
    """

    path: str
    module: str
    leaf: str
    owner: str
    holder: nn.Module
    parameter: torch.Tensor
    kind: str
    shape: tuple[int, ...]
    layer: int | None
    block: str | None

    @property
    def linear_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the map; of a stack the last two dimensions."""
        rows, columns = self.shape[-2:]
        return (columns, rows) if self.kind == "conv1d" else (rows, columns)


def matrices(model: nn.Module) -> list[Matrix]:
    """Every parameter of two or more dimensions by name, tied ones under each of their names."""
    from torch import nn

    modules = dict(model.named_modules())
    lists = {name for name, module in modules.items() if isinstance(module, nn.ModuleList)}
    found = []
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2:
            continue
        module, _, leaf_parameter = path.rpartition(".")
        holder = modules[module]
        owner, leaf = _parent(module)
        while owner and type(modules[owner]).__name__ in _WRAPPERS:
            owner = _parent(owner)[0]
        block, layer = _block(module, lists)
        found.append(
            Matrix(
                path=path,
                module=module,
                leaf=leaf,
                owner=owner,
                holder=holder,
                parameter=parameter,
                kind=_kind(holder, leaf_parameter, parameter.ndim),
                shape=tuple(parameter.shape),
                layer=layer,
                block=block,
            )
        )
    return found


def words(name: str) -> tuple[str, ...]:
    """Lower-case words of an identifier in camel or snake case.

    >>> words("T5LayerSelfAttention"), words("query_key_value"), words("fc1")
    (('t', '5', 'layer', 'self', 'attention'), ('query', 'key', 'value'), ('fc', '1'))
    """
    return tuple(word.lower() for word in _WORDS.findall(name))


def class_words(module: nn.Module, prefix: str) -> tuple[str, ...]:
    """Words of a module's class after the model's own name is taken off.

    The name of a model must not vote on roles: KimiLinear is no linear layer, GraniteMoeShared no expert.
    """
    name = type(module).__name__
    return words(name[len(prefix) :] if prefix and name.startswith(prefix) else name)


def model_prefix(model: nn.Module) -> str:
    """The model's own name: what its class names begin with, e.g. ``"GPTNeoX"`` of GPTNeoXForCausalLM.

    The longest beginning that the model's class shares with its base model's class.
    """
    base = getattr(model, "base_model", model)
    names = [type(model).__name__, type(base).__name__]
    if names[0] == names[1]:
        return re.split(r"For[A-Z]|LMHead|Model$", names[0])[0]
    same = 0
    while same < min(map(len, names)) and names[0][same] == names[1][same]:
        same += 1
    return names[0][:same]


def _parent(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition(".")
    return parent, leaf


def _block(module: str, lists: set[str]) -> tuple[str | None, int | None]:
    parts = module.split(".")
    for index in range(1, len(parts)):
        if ".".join(parts[:index]) in lists and parts[index].isdigit():
            return ".".join(parts[: index + 1]), int(parts[index])
    return None, None


def _kind(holder: nn.Module, parameter: str, ndim: int) -> str:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(holder, nn.Embedding):
        return "embedding"
    if isinstance(holder, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv"
    if parameter == "weight" and ndim == 2:
        if isinstance(holder, Conv1D):
            return "conv1d"
        if isinstance(holder, nn.Linear):
            return "linear"
    return "parameter"
