"""One adapter on a matrix that a model calls under several names.

Zamba2's blocks share one attention: its parameter stands in several modules. PEFT wraps each module by itself, trains
them apart, and merges each of them into the one weight. Here the copies share their factors: one adapter serves all of
them, is saved under every name (any tool loads it so), and is merged once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from loratlas.errors import AttachError

PIECES = ("lora_A", "lora_B", "lora_magnitude_vector")


def copies(model: Any) -> list[list[tuple[str, Any]]]:
    """PEFT's layers on one and the same weight: name and layer of each, the first one first."""
    import torch

    from loratlas.adapters.peft_targets import adapted

    groups: dict[tuple[int, bool], list[tuple[str, Any]]] = {}
    for name, layer in adapted(model).items():
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        # A head that shares the embedding's table is another map: rows are looked up there, and multiplied here.
        if weight is not None and not hasattr(layer, "parameter_name"):
            groups.setdefault((id(weight), isinstance(base, torch.nn.Embedding)), []).append((name, layer))
    return [group for group in groups.values() if len(group) > 1]


def share(model: Any, adapter_name: str) -> None:
    """Let the copies of a matrix use the factors of the first one; merging then changes the weight once.

    Args:
        model: with the adapter on every copy, in place.
        adapter_name: PEFT's name of it.

    Raises:
        AttachError: the copies carry factors that differ, or not all of them carry some: as one adapter they would
            do something else than as several.
    """
    import torch

    for (name, first), *others in copies(model):
        for other_name, other in others:
            for kind in PIECES:
                mine, theirs = getattr(first, kind), getattr(other, kind)
                if (adapter_name in mine) != (adapter_name in theirs):
                    bare = other_name if adapter_name in mine else name
                    raise _differ(f"{name} and {other_name} are one matrix, and {bare} carries no adapter")
                if adapter_name not in mine:
                    continue
                a, b = mine[adapter_name].weight, theirs[adapter_name].weight
                if a.device.type != "meta" and not (a.shape == b.shape and torch.equal(a, b)):
                    raise _differ(f"{name} and {other_name} are one matrix with two different adapters")
                theirs[adapter_name] = mine[adapter_name]
            if adapter_name in other.lora_dropout:
                other.lora_dropout[adapter_name] = first.lora_dropout[adapter_name]
            if not getattr(type(other), "shares", False):
                other.__class__ = _merged_elsewhere(type(other))


def align(model: Any, adapter_name: str) -> None:
    """Give the copies of a matrix the factors that the first one starts from."""
    import torch

    with torch.no_grad():
        for (_, first), *others in copies(model):
            for _, other in others:
                for kind in PIECES:
                    if adapter_name in getattr(first, kind):
                        getattr(other, kind)[adapter_name].weight.copy_(
                            getattr(first, kind)[adapter_name].weight
                        )


@cache
def _merged_elsewhere(layer: type) -> type:
    """A class of PEFT's layers whose weight another layer merges into."""

    class Copy(layer):
        shares = True
        merged_adapters: list[str]

        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            names = self.active_adapters if adapter_names is None else adapter_names
            self.merged_adapters += [
                name for name in names if name in self.lora_A and name not in self.merged_adapters
            ]

        def unmerge(self) -> None:
            self.merged_adapters.clear()

    Copy.__name__ = Copy.__qualname__ = layer.__name__
    return Copy


def _differ(found: str) -> AttachError:
    return AttachError(
        given="an adapter on a matrix that the model calls under several names",
        found=found,
        instead="an adapter that loratlas has written, or one on none of these names",
    )
