"""Which adapters of PEFT are read: ordinary LoRA in all its usual options; whatever does something else is refused.

``adapter_config.json`` says what an adapter is. Two things in it decide whether its tensors mean what they seem to:

- its type and its options: many of PEFT's methods are not LoRA, and several options of LoRA change the base, the
  layers or the inputs;
- its initialisation. PiSSA and OLoRA take their first factors out of the base's weights; that is repeated exactly
  (`loratlas.adapters.stored.plain_lora`). Others took them out in a way that data or a random generator decided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_check import expected_warnings
from loratlas.adapters.stored.expressions import Excess, excess
from loratlas.errors import ModelError
from loratlas.files import read_json

if TYPE_CHECKING:
    from peft import LoraConfig

_OTHER_KINDS = {
    "ADALORA": "AdaLoRA",
    "ADAPTION_PROMPT": "an adaption prompt",
    "IA3": "IA³",
    "LN_TUNING": "tuning of norms",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "PROMPT_TUNING": "prompt tuning",
    "TRAINABLE_TOKENS": "trainable tokens alone",
    "VERA": "VeRA",
    "XLORA": "X-LoRA",
}

_OTHER_OPTIONS = {
    "alora_invocation_tokens": "activated LoRA, whose adapters only act behind certain tokens",
    "arrow_config": "Arrow, which routes among several adapters",
    "kasa_config": "KaSA, which cuts the base's smallest singular values off",
    "layer_replication": "layers of the base that were repeated",
    "megatron_config": "layers of Megatron",
    "monteclora_config": "MonteCLoRA, which draws its factors",
    "use_bdlora": "block-diagonal factors",
    "use_qalora": "QA-LoRA, which pools the inputs of a GPTQ base",
    "velora_config": "VeLoRA, which keeps compressed activations",
}

_UNREPEATABLE = {
    "corda": "covariances of data",
    "lora_ga": "gradients on data",
    "loftq": "the rounding of a quantised base",
    "pissa_niter": "a random generator",
}

ORDINARY_INITS = ("gaussian", "orthogonal", "eva", "mica")
"""Initialisations of the factors alone: the base stays as it was published."""

CONVERTED_INITS = ("pissa", "olora")
"""Initialisations that take a part out of the base's weights, which the weights alone decide."""

_HIGHEST = 2**31  # rank; shapes say what is right below it
LARGEST_SCALE = 1e30
"""α with which float32 still computes."""

_LARGEST = 10_000_000  # bytes of a config; those of the largest models take some hundred kilobytes


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` as a table.

    Raises:
        ModelError: it is missing or broken.
    """
    path = folder / "adapter_config.json"
    try:
        if path.stat().st_size > _LARGEST:
            raise _refused(path, f"a config of more than {_LARGEST:,} bytes", "the file as PEFT wrote it")
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise _refused(
            path, f"not readable as JSON ({str(error)[:100]})", "the file as PEFT wrote it"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise _refused(path, "no peft_type in it", "the adapter_config.json of a PEFT adapter")
    return config


def check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is no ordinary LoRA, before anything is loaded or written.

    Args:
        config: as :func:`read_config` returns it.
        folder: of the adapter, for the message.

    Raises:
        ModelError: another method, an option that changes what the tensors mean, or an initialisation that changed
            the base in a way that cannot be repeated.
    """
    kind = config["peft_type"]
    if kind != "LORA":
        name = _OTHER_KINDS.get(kind.upper(), f"peft_type {kind[:40]!r}")
        raise _refused(folder, f"an adapter of another kind than LoRA: {name}", "a LoRA adapter")
    for option, what in _OTHER_OPTIONS.items():
        if config.get(option):
            raise _refused(folder, f"{option} in adapter_config.json: {what}", "a LoRA adapter without it")
    known = _fields()
    for option, value in config.items():
        # A later version of PEFT writes its new options with the value that changes nothing.
        if option not in known and value not in (None, False, [], {}, ""):
            raise _refused(
                folder,
                f"an option {option[:60]!r} in adapter_config.json that PEFT {_version()} does not know",
                "an adapter without it, or a newer PEFT",
            )
    init = _init(config)
    for name, by in _UNREPEATABLE.items():
        if isinstance(init, str) and init.startswith(name):
            raise _refused(
                folder,
                f"an adapter that was started by {config['init_lora_weights']!r}, which changed the base by {by}; "
                "on the base as it was published it does something else",
                "the adapter saved again by PEFT with path_initial_model_for_weight_conversion, or its changed base",
            )
    if not isinstance(init, (str, bool)) and init is not None:
        raise _refused(folder, f"an initialisation {str(init)[:60]!r}", "an adapter that PEFT wrote")
    saved = config.get("modules_to_save")
    if saved is not None and not isinstance(saved, list):
        raise _refused(
            folder, f"modules_to_save {str(saved)[:60]!r}, which is no list", 'names in a list, ["lm_head"]'
        )
    if isinstance(init, str) and init not in (*ORDINARY_INITS, *CONVERTED_INITS):
        raise _refused(folder, f"an unknown initialisation {init[:60]!r}", "an adapter that PEFT wrote")
    check_numbers(config, folder)


def base_changed_by(config: Mapping[str, Any]) -> str | None:
    """The initialisation that took the first factors out of the base; None for one that left it alone."""
    init = _init(config)
    return str(init) if init in CONVERTED_INITS else None


def lora_config_of(config: Mapping[str, Any], folder: Path) -> LoraConfig:
    """The config as PEFT's own class, for a base that stays as it is.

    Raises:
        ModelError: PEFT refuses it.
    """
    from peft import LoraConfig

    known = _fields()
    started = (
        "peft_type",
        "init_lora_weights",
        "eva_config",
        "corda_config",
        "loftq_config",
        "lora_ga_config",
    )
    # How an adapter was started only matters when it is made.
    fields = {name: value for name, value in config.items() if name in known and name not in started}
    try:
        with expected_warnings():
            made = LoraConfig(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise _refused(
            folder, f"a config that PEFT refuses: {str(error)[:200]}", "the file as PEFT wrote it"
        ) from error
    return made


def check_numbers(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse ranks that are no whole numbers, scales that are no numbers, expressions that may never end.

    Raises:
        ModelError: one of them is there.
    """
    too_much = excess(config)
    if too_much is not None:
        raise too_long(too_much, folder)
    ranks = {"r": config.get("r", 8), **_table(config, "rank_pattern", folder)}
    for name, rank in ranks.items():
        if type(rank) is not int or not 1 <= rank <= _HIGHEST:
            raise _refused(folder, f"a rank {str(rank)[:40]!r} ({name[:60]!r})", "whole numbers from 1")
    scales = {"lora_alpha": config.get("lora_alpha", 8), **_table(config, "alpha_pattern", folder)}
    for name, alpha in scales.items():
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= LARGEST_SCALE:
            raise _refused(folder, f"an alpha {str(alpha)[:40]!r} ({name[:60]!r})", "a number")


def too_long(problem: Excess, given: Any) -> ModelError:
    """The refusal of a config whose names or expressions take too long to match."""
    return _refused(
        given, f"{problem.where} in its config, {problem.given!r}: {problem.found}", problem.instead
    )


def _table(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    table = config.get(name) or {}
    if not isinstance(table, dict):
        raise _refused(folder, f"a {name} that is no table", "names of modules and their numbers")
    return table


def _init(config: Mapping[str, Any]) -> Any:
    init = config.get("init_lora_weights", True)
    return init.lower() if isinstance(init, str) else init


def _fields() -> frozenset[str]:
    from peft import LoraConfig

    return frozenset(field.name for field in dataclasses.fields(LoraConfig))


def _version() -> str:
    import peft

    return peft.__version__


def _refused(given: Any, found: str, instead: str) -> ModelError:
    return ModelError(given=str(given), found=found, instead=instead)
