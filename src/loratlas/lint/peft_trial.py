"""What PEFT makes of a config, tried on a copy of the model without weights: the evidence that counts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_check import expected_warnings
from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.expressions import Excess, slow

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_STARTED = ("init_lora_weights", "eva_config", "corda_config", "loftq_config", "lora_ga_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftTrial:
    """What PEFT did.

    Args:
        modules: names of all modules of the bare model.
        adapted: module, or parameter, → rank and scale.
        refusal: what PEFT said where it refused; empty where it did not.
        slow: an expression that takes too long on these modules, so that nothing was tried.
    """

    modules: tuple[str, ...]
    adapted: Mapping[str, tuple[int, float]]
    refusal: str = ""
    slow: Excess | None = None


def try_config(config: Mapping[str, Any], base: PretrainedConfig) -> PeftTrial:
    """Put a config on a copy without weights.

    Args:
        config: fields of a LoraConfig; those that PEFT does not know are left out.
        base: config of the model.
    """
    import dataclasses

    from peft import LoraConfig, get_peft_model

    from loratlas.models.meta import meta_model

    twin = meta_model(base)
    names = tuple(name for name, _ in twin.named_modules() if name)
    too_slow = slow(config, names)
    if too_slow is not None:
        return PeftTrial(modules=names, adapted={}, slow=too_slow)
    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    left_out = {*_STARTED, "peft_type", "task_type", "base_model_name_or_path", "auto_mapping"}
    fields = {name: value for name, value in config.items() if name in known - left_out}
    try:
        with expected_warnings(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(twin, LoraConfig(**fields), low_cpu_mem_usage=True)
            layers = adapted(model)
    except Exception as error:
        # PEFT refuses configs by exceptions of many classes; whichever it is, its sentence is the finding.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return PeftTrial(modules=names, adapted={}, refusal=lines[0][:300])
    made = {
        name: (layer.r["default"], float(layer.scaling["default"]))
        for name, layer in layers.items()
        if "default" in layer.r and math.isfinite(layer.scaling["default"])
    }
    return PeftTrial(modules=names, adapted=made)
