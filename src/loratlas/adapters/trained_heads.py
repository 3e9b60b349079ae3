"""The head of a classifier beside the adapters: a whole module that trains in a copy of its own.

PEFT keeps that copy beside the base's module (``modules_to_save``), saves it with the adapter, and loads it again. The
copy has the base's numbers; while it trains, its masters are float32 (`loratlas.training.master_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.adapters.plan_row import PlanRow
from loratlas.errors import AttachError, ModelError
from loratlas.modeling import unwrap
from loratlas.models.heads import drawn_parameters, head_modules, new_head

HEAD_STREAM = 5
"""Word beside the seed, so that a head is drawn alike whatever adapters are drawn before it."""

_COPY = ".modules_to_save."


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a head's trained copy.

    >>> is_head("base_model.model.classifier.modules_to_save.default.weight")
    True
    """
    return _COPY in name


def heads_of(model: Any) -> tuple[str, ...]:
    """Modules of the head; see `loratlas.models.heads.head_modules`.

    Args:
        model: a transformers model, a PEFT model around one, or a config; None for a causal language model.
    """
    if model is None:
        return ()
    if hasattr(model, "named_parameters"):
        return head_modules(unwrap(model))
    from loratlas.models.meta import class_kind, meta_model

    return head_modules(meta_model(model)) if class_kind(model) == "SequenceClassification" else ()


def head_size(model: Any) -> int:
    """Parameters that train beside the adapters because a task has added a head; 0 for a language model."""
    from loratlas.models.heads import head_parameters
    from loratlas.models.meta import class_kind, meta_model

    if not hasattr(model, "named_parameters"):
        if class_kind(model) != "SequenceClassification":
            return 0
        model = meta_model(model)
    if hasattr(model, "get_base_model"):
        return sum(p.numel() for name, p in model.named_parameters() if is_head(name))
    return sum(parameter.numel() for parameter in head_parameters(model).values())


def refuse_head_rows(rows: Sequence[PlanRow], heads: Sequence[str]) -> None:
    """Refuse a plan with a site in the head, which trains whole.

    Raises:
        AttachError: the plan has one.
    """
    for row in rows:
        if any(row.site.module == head or row.site.module.startswith(f"{head}.") for head in heads):
            raise AttachError(
                given=f"a plan with {row.site.module}",
                found="a matrix of the classifier's head, which is trained whole in addition to the adapters",
                instead="a placement without the head",
            )


def draw_heads(adapted: Any, adapter_name: str, seed: int) -> None:
    """Draw the trained copies of a head that the base's weights did not hold, by the seed alone.

    Each submodule is drawn as transformers draws it for this architecture. A head that was trained before is kept.

    Args:
        adapted: the PeftModel.
        adapter_name: PEFT's name of the adapter.
        seed: of the run.
    """
    import torch

    inner = adapted.get_base_model()
    if not new_head(inner):
        return
    word = np.random.SeedSequence([seed, HEAD_STREAM]).generate_state(1, np.uint64)
    torch.manual_seed(int(word[0]) >> 1)
    for wrapper in _wrappers(inner).values():
        copied = wrapper.modules_to_save[adapter_name]
        with torch.no_grad():
            for module in reversed(list(copied.modules())):  # what holds others may say more about them
                for parameter in module.parameters(recurse=False):
                    parameter._is_hf_initialized = False  # transformers leaves alone what it has drawn
                inner._init_weights(module)


def head_differences(adapted: Any, heads: Sequence[str]) -> str:
    """Which modules PEFT trains whole that are no head, or does not that are one; empty where they agree."""
    wrapped = set(_wrappers(adapted.get_base_model()))
    extra, missing = sorted(wrapped - set(heads)), sorted(set(heads) - wrapped)
    parts = [f"PEFT would train {extra[0]} whole"] if extra else []
    return "; ".join([*parts, *([f"PEFT would not train the head {missing[0]}"] if missing else [])])


def detach_adapters(model: Any) -> Any:
    """Give back the bare base of a `PeftModel`, as it was before: heads, embeddings and biases included.

    Args:
        model: a `PeftModel`; or a model that PEFT has begun to put an adapter on.
    """
    inner = unwrap(model)
    own = {name: wrapper.original_module for name, wrapper in _wrappers(inner).items()}
    with_bias = {id(parameter): original for parameter, original in getattr(model, _REPLACED, {}).values()}
    for parameter in inner.parameters():
        if id(parameter) in with_bias:
            parameter.data.copy_(with_bias[id(parameter)])
    base = model.unload() if hasattr(model, "unload") else _strip(inner)
    for name, module in own.items():  # PEFT leaves the trained copy in its place
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, module)
    base.requires_grad_(False)
    # What PEFT leaves on a base it has left: a config that would make the next attachment warn.
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base


def _strip(base: Any) -> Any:
    """Take PEFT's layers out of a model on which it has stopped halfway."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    for name, layer in layers.items():
        if any(name.startswith(f"{outer}.") for outer in layers):
            continue
        parent, _, leaf = name.rpartition(".")
        inner = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer.original_module
        setattr(base.get_submodule(parent), leaf, inner)
    return base


_REPLACED = "loratlas_replaced"


def replace_base_tensors(model: Any, tensors: Mapping[str, Any]) -> None:
    """Give the base the tensors that an adapter brings for it; `detach_adapters` puts its own ones back.

    Args:
        model: the PeftModel.
        tensors: by the names of its parameters.
    """
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = parameters[name]
            kept[name] = parameter, parameter.detach().clone()
            parameter.copy_(tensor)
    setattr(model, _REPLACED, kept)


def replaced_base_tensors(model: Any) -> tuple[str, ...]:
    """Names of the base's parameters that an adapter has brought along."""
    return tuple(getattr(model, _REPLACED, ()))


def _wrappers(inner: Any) -> dict[str, Any]:
    from peft.utils import ModulesToSaveWrapper

    return {name: m for name, m in inner.named_modules() if isinstance(m, ModulesToSaveWrapper)}


def untrained(model: Any) -> tuple[str, ...]:
    """Modules of a classifier's head that neither the base's weights nor an adapter hold: they are random numbers.

    Args:
        model: a transformers model, or a `PeftModel` around one.
    """
    inner = unwrap(model)
    brought = trained_whole(model)
    names = [
        name
        for name in drawn_parameters(inner)
        if not any(name.startswith(f"{module}.") for module in brought)
    ]
    return tuple(sorted({name.rpartition(".")[0] for name in names}))


def refuse_untrained(model: Any, adapter: Path) -> Any:
    """Refuse an adapter whose model holds modules that nobody saved.

    Returns:
        The model.

    Raises:
        ModelError: neither base nor adapter hold a module of its head; the message names it.
    """
    names = untrained(model)
    if not names:
        return model
    raise ModelError(
        given=f"the adapter {adapter}",
        found=f"a classifier whose {', '.join(names)} neither base nor adapter hold: drawn at random at every load",
        instead="an adapter saved with every module of its head (modules_to_save), or a base that holds them",
    )


def trained_whole(adapted: Any) -> tuple[str, ...]:
    """Modules that an adapter brings along whole."""
    return tuple(_wrappers(adapted.get_base_model())) if hasattr(adapted, "get_base_model") else ()
