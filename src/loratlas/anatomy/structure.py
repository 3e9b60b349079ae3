"""Which matrices a model has, who owns each, and in which block it stands. No roles yet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
Level = tuple[tuple[str, ...], tuple[str, ...]]
_WRAPPERS = ("ModuleList", "Sequential", "ModuleDict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One parameter of two or more dimensions and where it stands.

    Args:
        path: parameter name.
        module: name of the module holding it.
        leaf: the last named part of the module, e.g. ``q_proj``; of a raw parameter its own name.
        owner: name of the nearest module around the leaf that is no mere list.
        holder: the module itself.
        parameter: the tensor.
        kind: as in :class:`~loratlas.anatomy.sites.Site`; stacks of experts are still ``parameter``.
        shape: as stored.
        layer: index in the outermost list of blocks; None outside.
        block: name of that block; None outside.
        trail: for every module around the leaf, from the outermost in, its attribute's and its class's words.
        held: words of the holder's class.
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
    trail: tuple[Level, ...] = ()
    held: tuple[str, ...] = ()

    @property
    def linear_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the map; of a stack the last two dimensions, of a kernel (channels, the rest)."""
        if self.kind == "conv":
            return self.shape[0], math.prod(self.shape[1:])
        rows, columns = self.shape[-2:]
        return (columns, rows) if self.kind == "conv1d" else (rows, columns)

    @property
    def near(self) -> Level:
        """The innermost level that is no mere number in a list."""
        return next(
            (level for level in reversed(self.trail) if level[1] or not level[0][-1].isdigit()), ((), ())
        )

    @property
    def raw(self) -> bool:
        """Whether no module of its own applies it: a parameter beside others."""
        return self.kind == "parameter" and not self.path.endswith(".weight")


def matrices(model: nn.Module) -> list[Matrix]:
    """Every parameter of two or more dimensions by name, tied ones under each of their names."""
    from torch import nn

    modules = dict(model.named_modules())
    # A list of heads or projections is no list of blocks: its items hold a matrix each and nothing else.
    lists = {
        name
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList) and any(item._modules for item in module)
    }
    trails = _Trails(modules)
    listed = []
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2:
            continue
        module, _, leaf_parameter = path.rpartition(".")
        holder = modules[module]
        kind = _kind(holder, leaf_parameter, parameter.ndim)
        owner, leaf = _parent(module)
        if kind == "parameter" and leaf_parameter != "weight":
            owner, leaf = module, leaf_parameter
        while owner and type(modules[owner]).__name__ in _WRAPPERS:
            owner = _parent(owner)[0]
        block, layer = _block(module, lists)
        listed.append(
            Matrix(
                path=path,
                module=module,
                leaf=leaf,
                owner=owner,
                holder=holder,
                parameter=parameter,
                kind=kind,
                shape=tuple(parameter.shape),
                layer=layer,
                block=block,
                trail=trails.of(module if leaf is leaf_parameter else _parent(module)[0]),
                held=trails.cls(module),
            )
        )
    return listed


@lru_cache(maxsize=4096)
def words(name: str) -> tuple[str, ...]:
    """Lower-case words of an identifier in camel or snake case.

    >>> words("T5LayerSelfAttention"), words("query_key_value"), words("fc1")
    (('t', '5', 'layer', 'self', 'attention'), ('query', 'key', 'value'), ('fc', '1'))
    """
    # MoE and MoA (mixture of experts, of attention heads) are one word each, not "mo" and an "e".
    return tuple(word.lower() for word in _WORDS.findall(name.replace("MoE", "Moe").replace("MoA", "Moa")))


@lru_cache(maxsize=4096)
def class_words(name: str, prefix: str) -> tuple[str, ...]:
    """Words of a class name after the words it shares with the beginning of its model's name are taken off.

    The name of a model must not vote on roles: KimiLinear is no linear layer, GraniteMoeShared no expert.

    >>> class_words("GraniteMoeSharedMoE", "GraniteMoeShared"), class_words("SiglipMLP", "SiglipVision")
    (('moe',), ('mlp',))
    """
    if prefix and name.startswith(prefix):
        return words(name[len(prefix) :])
    mine, models = words(name), words(prefix)
    same = 0
    while same < min(len(mine), len(models)) and mine[same] == models[same]:
        same += 1
    return mine[same:]


def model_prefix(model: nn.Module) -> str:
    """The model's own name: what its class names begin with, e.g. ``"GPTNeoX"`` of GPTNeoXForCausalLM.

    The longest beginning that the model's class shares with its base model's class.
    """
    base = getattr(model, "base_model", model)
    names = [type(model).__name__, type(base).__name__]
    if names[0] == names[1]:
        return re.split(r"For[A-Z]|LMHead|WithLM|PreTrained|Model$", names[0])[0]
    same = 0
    while same < min(map(len, names)) and names[0][same] == names[1][same]:
        same += 1
    return names[0][:same]


class _Trails:
    """The words on the way to a module; every model inside a model brings a name of its own."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        from transformers import PreTrainedModel

        self.modules = modules
        self.prefixes = {
            name: model_prefix(module)
            for name, module in modules.items()
            if isinstance(module, PreTrainedModel)
        }
        self.known: dict[str, tuple[Level, ...]] = {"": ()}

    def of(self, name: str) -> tuple[Level, ...]:
        if name not in self.known:
            parent, leaf = _parent(name)
            self.known[name] = (*self.of(parent), (words(leaf), self.cls(name)))
        return self.known[name]

    def cls(self, name: str) -> tuple[str, ...]:
        module = self.modules[name]
        if type(module).__name__ in _WRAPPERS:
            return ()
        inside = name
        while inside and inside not in self.prefixes:
            inside = _parent(inside)[0]
        prefix = self.prefixes.get(inside, "")
        said = class_words(type(module).__name__, prefix)
        outer = self.prefixes.get("", "")
        # A tower may also carry the name of the whole: Gemma3 holds a Siglip, and Gemma3's own classes.
        return min(said, class_words(type(module).__name__, outer), key=len)


def _parent(name: str) -> tuple[str, str]:
    parent, _, leaf = name.rpartition(".")
    return parent, leaf


def _block(module: str, lists: set[str]) -> tuple[str | None, int | None]:
    parts = module.split(".")
    for index in range(1, len(parts)):
        if parts[index].isdigit() and ".".join(parts[:index]) in lists:
            return ".".join(parts[: index + 1]), int(parts[index])
    return None, None


def _kind(holder: nn.Module, parameter: str, ndim: int) -> str:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(holder, nn.Embedding):
        return "embedding"
    if isinstance(holder, (nn.modules.conv._ConvNd,)):
        return "conv"
    if parameter == "weight" and ndim == 2:
        if isinstance(holder, Conv1D):
            return "conv1d"
        if isinstance(holder, nn.Linear):
            return "linear"
    return "parameter"
