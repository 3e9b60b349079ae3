"""Adapters as any tool reads them: A and B on the base as it was published.

PiSSA and OLoRA start from a part of the base, W = W' + s·B₀A₀, and train B, A on W'. On the published W their
effect is s·(BA − B₀A₀): an ordinary adapter of twice the rank, with the factors stacked.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

_START = "loratlas_start"


def keep_initial_factors(peft_model: PeftModel, adapter_name: str) -> None:
    """Keep a copy of the factors that an initialisation has just taken out of the base, on the model."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(peft_model, adapter_name=adapter_name, save_embedding_layers=False)
    setattr(peft_model, _START, {name: tensor.detach().clone() for name, tensor in state.items()})


def ordinary_state(peft_model: PeftModel, adapter_name: str) -> tuple[dict[str, Any], LoraConfig]:
    """Weights and config of the adapter that has the same effect on the published base.

    Args:
        peft_model: with the adapter. adapter_name: PEFT's name of it.

    Returns:
        Tensors by PEFT's names, and a copy of the config that fits them.
    """
    import torch
    from peft import get_peft_model_state_dict

    config: Any = copy.deepcopy(peft_model.peft_config[adapter_name])
    state = get_peft_model_state_dict(peft_model, adapter_name=adapter_name, save_embedding_layers=False)
    start = getattr(peft_model, _START, None)
    # An init only matters when an adapter is made; on loading it would take the base apart once more.
    config.init_lora_weights = True
    if start is None:
        return dict(state), config
    doubled = {}
    for name, tensor in state.items():
        if "lora_" not in name:  # a head, which trains whole
            doubled[name] = tensor
            continue
        first = start[name].to(tensor)
        if "lora_A" in name:
            doubled[name] = torch.cat([tensor, first], dim=0)
        else:
            doubled[name] = torch.cat([tensor, -first], dim=1)
    # Twice the rank at the same scale: α/r keeps it with 2α, α/√r with √2·α.
    grown = math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.lora_alpha *= grown
    config.rank_pattern = {key: rank * 2 for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: alpha * grown for key, alpha in config.alpha_pattern.items()}
    return doubled, config
