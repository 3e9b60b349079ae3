"""Whether PEFT does what the rows say: looked at on a copy without weights, and on the live model.

PEFT rewrites configs for some model types and matches names in several ways; the only evidence that counts is the
list of layers that it has made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_targets import adapted as adapted_layers
from loratlas.adapters.plan_row import PlanRow
from loratlas.errors import AttachError

if TYPE_CHECKING:
    from peft import LoraConfig


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Remarks that ask the user for nothing are kept away from them."""
    with warnings.catch_warnings():
        # PEFT says this of each Conv1D or Linear that differs from fan_in_fan_out, and then does the right thing.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # PEFT 0.21 asks transformers 5.23 for an attribute under its old name.
        # It cannot turn PiSSA with rank patterns into an ordinary adapter on saving; `ordinary` can.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        # What they warn of is looked at by `export`: it unties, or refuses to merge.
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed but")
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        _ignore_patterns()
        yield


def _ignore_patterns() -> None:
    # PEFT looks for the keys of patterns among modules alone, and misses those that name a parameter. Whether a rank
    # or a scale was lost is seen by looking at every layer.
    warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")


def prove_on_meta(rows: Sequence[PlanRow], config: LoraConfig, model: Any) -> None:
    import copy

    from peft import get_peft_model

    from loratlas.models.meta import copy_on_meta, meta_model

    if model is None:
        raise AttachError(
            given="no model",
            found="nothing to prove the config on",
            instead="the model or its config, or prove=False",
        )
    twin = copy_on_meta(model) if hasattr(model, "named_parameters") else meta_model(model)
    trial = copy.deepcopy(config)
    # Initialisations that decompose the base's weights cannot do so where there are none.
    trial.init_lora_weights = True
    try:
        with expected_warnings(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # targets that matched nothing
            _ignore_patterns()
            adapted = get_peft_model(twin, trial, low_cpu_mem_usage=True)
    except (ValueError, RuntimeWarning, TypeError) as error:
        raise AttachError(
            given=f"a plan of {len(rows)} sites",
            found=f"PEFT refuses it on a copy of {type(twin).__name__}: {error}",
            instead="a plan made for this model",
        ) from error
    wrong = differences(rows, adapted, "default", bool(config.use_rslora))
    if wrong:
        raise AttachError(
            given=f"a plan of {len(rows)} sites", found=wrong, instead="a plan made for this model"
        )


def differences(rows: Sequence[PlanRow], adapted: Any, adapter_name: str, rslora: bool) -> str:
    """What the adapted model has that the rows do not say, in words; empty where they agree."""
    layers = {name: layer for name, layer in adapted_layers(adapted).items() if adapter_name in layer.r}
    # A plan names a stack of experts by its parameter; a matrix that PEFT took by parameter as well.
    wanted = {
        name: row for row in rows for name in ((row.site.path,) if row.site.path in layers else row.modules)
    }
    extra = [name for name in layers if name not in wanted]
    missing = [name for name in wanted if name not in layers]
    if extra or missing:
        parts = [f"PEFT would adapt {some(extra)} as well"] if extra else []
        parts += [f"PEFT would not adapt {some(missing)}"] if missing else []
        return "; ".join(parts)
    for name, row in wanted.items():
        layer = layers[name]
        if (adapter_name in layer.lora_magnitude_vector) != row.dora:
            return f"{'LoRA' if row.dora else 'DoRA'} at {name} where the plan has {'DoRA' if row.dora else 'LoRA'}"
        if layer.r[adapter_name] != row.rank:
            return f"rank {layer.r[adapter_name]} at {name} where the plan has {row.rank}"
        count = sum(
            factor[adapter_name].weight.numel()
            for factor in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)
            if adapter_name in factor
        )
        if count and count != row.trainable:
            return f"{count} parameters at {name} where the plan has {row.trainable}"
        if not math.isclose(layer.scaling[adapter_name], row.scaling(rslora=rslora), rel_tol=1e-12):
            return f"scale {layer.scaling[adapter_name]} at {name} where the plan has {row.scaling(rslora=rslora)}"
    return ""


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
