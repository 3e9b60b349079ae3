"""What keeps the ranks of a model from being changed, each as a sentence."""

from __future__ import annotations

import difflib
from typing import Any

from loratlas.adapters.attach import takes_from_base
from loratlas.adapters.peft_check import some
from loratlas.adapters.peft_targets import adapted, renamed_leaves
from loratlas.adapters.stored.plain_lora import takes_a_start
from loratlas.errors import AttachError
from loratlas.modeling import unwrap

BASE_CHANGING = ("corda", "lora_ga", "loftq")
"""More values of PEFT's ``init_lora_weights`` that leave another base behind."""


def refused(given: str, found: str, instead: str) -> AttachError:
    """The error of a change that cannot be made."""
    return AttachError(given=given, found=found, instead=instead)


def check_resizable(model: Any) -> str:
    """The name of the adapter whose ranks can be changed.

    Raises:
        AttachError: the model has no LoRA adapter, several, one that is merged or a variant of LoRA, or one that has
            taken a part of the base's weights along.
    """
    given = f"new ranks for a {type(model).__name__}"
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "base_model"):
        raise refused(given, "no PeftModel", "a model that a plan was attached to, or get_peft_model(…)")
    if len(configs) != 1:
        raise refused(given, f"the adapters {some(list(configs))}", "a model with one of them")
    ((name, config),) = configs.items()
    if str(getattr(config, "peft_type", "")).rpartition(".")[2] != "LORA":
        raise refused(given, f"an adapter of type {config.peft_type}", "LoRA")
    layers = adapted(model)
    if not layers:
        raise refused(given, "no LoRA layer in it", "a model that a plan was attached to")
    for path, layer in layers.items():
        if layer.merged_adapters:
            raise refused(
                given, f"its adapter is merged into the base at {path}", "model.unmerge_adapter() first"
            )
        if layer.lora_variant:
            kind = type(next(iter(layer.lora_variant.values()))).__name__
            raise refused(
                given,
                f"{kind} at {path}, which has more than two factors",
                "plain LoRA (use_dora=False, no variant)",
            )
        if any(layer.lora_bias.values()):
            raise refused(given, f"factors with a bias at {path}", "lora_bias=False")
    init = config.init_lora_weights
    if takes_a_start(model) or takes_from_base(init) or init in BASE_CHANGING:
        raise refused(
            given,
            "an initialisation (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) that moved a part of the base's weights into the "
            "adapter",
            "init_lora_weights=True",
        )
    return name


def module_of(model: Any, path: str) -> str:
    """The module of a site, by its parameter's path or its own name.

    Raises:
        AttachError: there is none, or PEFT's layer there cannot have another rank.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import Linear, ParamWrapper
    from transformers.pytorch_utils import Conv1D

    base = unwrap(model)
    layers = adapted(model)
    wrapper = layers.get(path)
    if isinstance(wrapper, ParamWrapper):
        raise refused(
            f"a new rank for {path}",
            "a parameter that PEFT wraps whole, experts in one stack say, all of whose ranks are one",
            "ranks for the linear sites of this model",
        )
    names = dict(base.named_modules())
    module = path if path in names else path.rpartition(".")[0]
    layer = names.get(module)
    own = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    if layer is None or path == "":
        known = [*layers, *(f"{name}.weight" for name in layers)]
        near = difflib.get_close_matches(path, known, 3) or list(layers)[:3]
        raise refused(f"a new rank for {path!r}", "no site of that name", " or ".join(near))
    linear = isinstance(layer, Linear) or isinstance(own, (torch.nn.Linear, Conv1D))
    if isinstance(own, torch.nn.Embedding) or not linear:
        raise refused(
            f"a new rank for {path}", f"a {type(own).__name__}, which is no linear map", "a linear site"
        )
    if not isinstance(layer, LoraLayer) and module.rpartition(".")[2] in renamed_leaves(base):
        raise refused(
            f"an adapter at {path}",
            "a module that PEFT renames in models of this type",
            "ranks for the sites that have an adapter",
        )
    return module
