"""Adapters as any tool reads them: A and B on the base as it was published."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.base_changes import double_factors
from loratlas.adapters.trained_heads import replaced_base_tensors

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

_START = "loratlas_start"


def keep_initial_factors(peft_model: PeftModel, adapter_name: str) -> None:
    """Keep a copy of the factors that an initialisation has just taken out of the base, on the model."""
    state = adapter_state(peft_model, adapter_name)
    setattr(peft_model, _START, {name: tensor.detach().clone() for name, tensor in state.items()})


def takes_a_start(peft_model: Any) -> bool:
    """Whether `keep_initial_factors` was called: what is saved is then the change since."""
    return getattr(peft_model, _START, None) is not None


def adapter_state(peft_model: PeftModel, adapter_name: str) -> dict[str, Any]:
    """The adapter's tensors by PEFT's names."""
    import warnings

    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        # PEFT takes the biases of factors (lora_bias) for matrices that were cut into pieces.
        warnings.filterwarnings("ignore", message=r"Adapter .* have invalid shape")
        return dict(
            get_peft_model_state_dict(peft_model, adapter_name=adapter_name, save_embedding_layers=False)
        )


def ordinary_state(peft_model: PeftModel, adapter_name: str) -> tuple[dict[str, Any], LoraConfig]:
    """Weights and config of the adapter that has the same effect on the published base.

    Args:
        peft_model: with the adapter. adapter_name: PEFT's name of it.

    Returns:
        Tensors by PEFT's names, those of the base that the adapter brought along included, and a copy of the config
        that fits them.
    """
    config: Any = copy.deepcopy(peft_model.peft_config[adapter_name])
    state = adapter_state(peft_model, adapter_name)
    brought = replaced_base_tensors(peft_model)
    if brought:
        now = peft_model.state_dict()
        state |= {name: now[name] for name in brought}
    # An init only matters when an adapter is made; on loading it would take the base apart once more.
    config.init_lora_weights = True
    start = getattr(peft_model, _START, None)
    return (state, config) if start is None else double_factors(state, start, config)
