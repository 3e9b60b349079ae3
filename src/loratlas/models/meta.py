"""From a config to the class that it is read as, and to a model without weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from loratlas.errors import ModelError
from loratlas.modeling import unwrap
from loratlas.models.limits import check_sizes, counted_parameters
from loratlas.models.quiet import first_line, quiet, transformers_version

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_KINDS = ("CausalLM", "Seq2SeqLM", "MaskedLM", "SequenceClassification")


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model on the meta device: all names and shapes, no memory.

    Args:
        config: of a model for text, other towers included.

    Returns:
        The model in eval mode, parameters on the meta device, tied ones tied.

    Raises:
        ModelError: transformers has no such model for this config, or cannot build it.
    """
    chosen = model_class(config)
    if chosen is None:
        raise ModelError(
            given=f"a config of type {config.model_type!r}",
            found="transformers has no model for text of that type",
            instead="a model for text such as gpt2, llama, bert, t5, mixtral or mamba",
        )
    return _build_on_meta(*chosen)


def model_class(config: PretrainedConfig) -> tuple[Any, PretrainedConfig] | None:
    """The class that a config is read as, and the part of the config that this class takes.

    What the config itself names under ``architectures`` comes first, where transformers maps it to a model for
    text; then the causal, sequence-to-sequence, masked language model and classifier, in an order that suits the
    type: an encoder-decoder is read whole, an encoder as a masked language model.
    """
    kind = class_kind(config)
    return None if kind is None else classes(config)[kind]


def class_kind(config: PretrainedConfig) -> str | None:
    """What the class of `model_class` is for: ``CausalLM``, ``Seq2SeqLM``, ``MaskedLM``, ``SequenceClassification``."""
    known = classes(config)
    for name in getattr(config, "architectures", None) or ():
        for kind, (cls, _) in known.items():
            if cls.__name__ == name:
                return kind
    return next((kind for kind in _order(config) if kind in known), None)


def classes(config: PretrainedConfig) -> dict[str, tuple[Any, PretrainedConfig]]:
    """All classes for text that transformers maps a config to, by kind, each with the part of the config it takes."""
    import transformers

    parts = [config]
    text = config.get_text_config(decoder=True)
    if type(text) is not type(config):
        parts.append(text)
    known: dict[str, tuple[Any, PretrainedConfig]] = {}
    for part in parts:
        for kind in _KINDS:
            mapped = getattr(transformers, f"AutoModelFor{kind}")._model_mapping
            if kind not in known and type(part) in mapped:
                cls = mapped[type(part)]
                # Some types of several towers are mapped to the class of their text part.
                fits = next((one for one in (part, text) if isinstance(one, cls.config_class)), part)
                known[kind] = cls, fits
        if known:
            break
    return known


def _order(config: PretrainedConfig) -> tuple[str, ...]:
    if getattr(config, "is_encoder_decoder", False):
        return ("Seq2SeqLM", *_KINDS)
    if getattr(config, "is_decoder", True) is False and not getattr(config, "causal", False):
        return ("MaskedLM", *_KINDS)
    return _KINDS


def copy_on_meta(model: Any) -> PreTrainedModel:
    """The same architecture as a live model's, without adapters and without memory.

    Args:
        model: a transformers model, or a PEFT model around one, quantised or not.

    Returns:
        A model on the meta device, built by the live model's class from its config.

    Raises:
        ModelError: not a transformers model, or one whose parameters are not those that its config describes.
    """
    from transformers import PreTrainedModel

    bare = unwrap(model)
    if not isinstance(bare, PreTrainedModel):
        raise ModelError(
            given=f"an object of class {type(model).__name__}",
            found="neither a transformers model nor a PEFT model around one",
            instead="what AutoModelForCausalLM.from_pretrained returns",
        )
    twin = _build_on_meta(type(bare), bare.config)
    live = {bare_name(name) for name, _ in bare.named_parameters(remove_duplicate=False)}
    missing = [name for name, _ in twin.named_parameters(remove_duplicate=False) if name not in live]
    if missing:
        raise ModelError(
            given=f"a model of class {type(bare).__name__}",
            found=f"its config describes {missing[0]}, which the model does not have ({len(missing)} in all)",
            instead="the model as its config describes it, without parts removed by hand",
        )
    return twin


def bare_name(name: str) -> str:
    """A parameter's name without what PEFT wraps around it.

    >>> bare_name("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> bare_name("base_model.model.lm_head.original_module.weight")
    'lm_head.weight'
    """
    bare = name.removeprefix("base_model.model.")
    return bare.replace(".base_layer.", ".").replace(".original_module.", ".")


def _build_on_meta(model_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    import torch

    config = copy.deepcopy(config)
    # A quantised base has the matrices of the one it was made from.
    if getattr(config, "quantization_config", None) is not None:
        delattr(config, "quantization_config")
    given = f"a config of type {config.model_type!r}"
    check_sizes(config.to_dict(), given)
    try:
        with quiet(), torch.device("meta"), counted_parameters(given):
            return model_class._from_config(config).eval()
    except ModelError:
        raise
    except Exception as error:
        # Whatever a model class raises on sizes that do not fit together is the config's fault here.
        raise ModelError(
            given=given,
            found=f"transformers {transformers_version()} cannot build it: {first_line(error)}",
            instead="sizes that fit together",
        ) from error
