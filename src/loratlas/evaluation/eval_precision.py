"""Low-rank factors in the base's own numbers while a model is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from loratlas.modeling import modes_kept


@contextmanager
def base_precision(model: Any) -> Iterator[None]:
    """Within this context PEFT's plain factors are rounded to the type of the matrix that they adapt.

    Training computes so as well (`loratlas.training.master_weights`): float32 factors over a bfloat16 base
    would make PEFT
    lift every activation to float32 and back. The float32 weights are put back afterwards, bit for bit.
    """
    kept: list[tuple[Any, Any]] = []
    try:
        for module in model.modules():
            base = getattr(getattr(module, "base_layer", None), "weight", None)
            # A quantised matrix stores integers; its computing type is the activations', which PEFT looks after.
            if base is None or not base.is_floating_point():
                continue
            for holder in ("lora_A", "lora_B", "lora_E"):  # lora_E: AdaLoRA's singular values
                for factor in getattr(module, holder, {}).values():
                    weight = getattr(factor, "weight", factor)  # AdaLoRA keeps bare parameters
                    if weight.dtype != base.dtype:
                        kept.append((weight, weight.data))
                        weight.data = weight.data.to(base.dtype)
        yield
    finally:
        for weight, data in kept:
            weight.data = data


@contextmanager
def evaluating(model: Any, *, dropout: bool = False, lean: bool = True) -> Iterator[None]:
    """No dropout, no graph, factors in the base's precision; every module's mode is put back afterwards.

    Args:
        model: bare or as a `PeftModel`.
        dropout: leave it on.
        lean: compute as `loratlas.adapters.layers.lean_lora` does; without it PEFT's own layers draw and round as in
        its tools.
    """
    import torch

    from loratlas.adapters.layers.lean_lora import lean as lean_layers
    from loratlas.evaluation.cpu_products import fast_products

    with modes_kept(model):
        model.train(dropout)
        # Not inference mode: what the model caches in it could never take part in training.
        layers = lean_layers(model) if lean else nullcontext()
        products = fast_products(model) if lean else nullcontext()
        with torch.no_grad(), base_precision(model), layers, products:
            yield
