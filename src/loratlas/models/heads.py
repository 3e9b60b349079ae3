"""The head of a classifier: what stands between the output of the base's own stack and the logits.

A masked language model has none, a classifier that was trained before has one for its own labels; then it is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

_DRAWN: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def note_drawn(model: Any, names: Iterable[str]) -> None:
    """Note which parameters of a model's head were drawn when the model was loaded."""
    _DRAWN[model] = frozenset(names)


def drawn_parameters(model: Any) -> frozenset[str]:
    """Parameters of a classifier's head that were drawn when the model was loaded: its weights held none that fit."""
    return _DRAWN.get(model, frozenset())


def new_head(model: Any) -> bool:
    """Whether a classifier's head, or a module of it, was drawn when the model was loaded."""
    return bool(drawn_parameters(model))


def is_classifier(model: Any) -> bool:
    """Whether a model is of a class that transformers has for the classification of texts."""
    from transformers import AutoModelForSequenceClassification

    mapped: Any = AutoModelForSequenceClassification._model_mapping
    config = getattr(model, "config", None)
    return type(config) in mapped and type(model) is mapped[type(config)]


def head_modules(model: Any) -> tuple[str, ...]:
    """Names of the modules of a classifier's head; none for any other model.

    The children of the model beside its stack, and the stack's own pooler.

    Args:
        model: a transformers model, with or without weights.
    """
    if not is_classifier(model):
        return ()
    prefix = model.base_model_prefix
    others = [name for name, child in model.named_children() if name != prefix and _weighs(child)]
    pooler = getattr(getattr(model, prefix), "pooler", None)
    return (*([f"{prefix}.pooler"] if pooler is not None and _weighs(pooler) else ()), *others)


def head_parameters(model: Any) -> dict[str, Any]:
    """The parameters of a classifier's head by their names; none for any other model."""
    return {
        f"{name}.{parameter}": value
        for name in head_modules(model)
        for parameter, value in model.get_submodule(name).named_parameters()
    }


def output_parameters(model: Any) -> set[str]:
    """Those of a head's parameters that have a row for each class: they are for these classes and no others."""
    return {name for name, p in head_parameters(model).items() if len(p) == model.config.num_labels}


def _weighs(module: Any) -> bool:
    return next(module.parameters(), None) is not None
