"""How PEFT is told which matrices: by module, or by parameter.

A stack of experts is a parameter without a module of its own, and goes through ``target_parameters``. So do the
matrices whose leaf PEFT 0.21 renames when it meets a converted model of experts (`gate_proj` of a shared expert in
deepseek_v3 would become the routed experts of all layers): by parameter they are named whole and left alone. For the
other matrices of such a model a list of full names is needed, because an expression is cut down to its leaves there,
and would hit every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from loratlas.adapters.patterns import anchored
from loratlas.adapters.plan_row import PlanRow
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from loratlas.anatomy.sites import Site

_TASKS = {"Seq2SeqLM": "SEQ_2_SEQ_LM", "CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a LoraConfig names.

    Args:
        modules: one anchored expression, or full names.
        parameters: full names, or None.
        keys: by row, the names that PEFT matches patterns of ranks against.
    """

    modules: str | list[str]
    parameters: list[str] | None
    keys: tuple[tuple[str, ...], ...]


def targets(rows: Sequence[PlanRow], model: Any) -> Targets:
    """Say rows to PEFT.

    Args:
        rows: of a plan.
        model: a model or a config; None for one that PEFT does not convert.
    """
    renamed = renamed_leaves(model)
    by_parameter = [
        row.site.kind == "experts" or row.site.module.rpartition(".")[2] in renamed for row in rows
    ]
    modules = [
        name for row, whole in zip(rows, by_parameter, strict=True) if not whole for name in row.modules
    ]
    parameters = [row.site.path for row, whole in zip(rows, by_parameter, strict=True) if whole]
    keys = tuple(
        (row.site.path,) if whole else row.modules for row, whole in zip(rows, by_parameter, strict=True)
    )
    named = modules if renamed or not modules else anchored(modules)
    return Targets(modules=named, parameters=parameters or None, keys=keys)


def renamed_leaves(model: Any) -> frozenset[str]:
    """Leaves that PEFT rewrites for a type of model; empty for a type that it leaves alone."""
    from peft.utils import transformers_weight_conversion as conversion

    config = getattr(model, "config", model)
    families: dict[str, str] = vars(conversion)["_MODEL_TO_CONVERSION_PATTERN"]
    family = families.get(str(getattr(config, "model_type", None)))
    if family is None or not conversion._MOE_FUSED_TARGETS.get(family):
        return frozenset()
    return frozenset(conversion._MOE_TARGET_MODULE_MAPPING.get(family) or ())


def refused_sites(sites: Iterable[Site], model_type: str | None) -> list[Site]:
    """Those that PEFT refuses an adapter for this type of model: what mamba's fused kernels would bypass.

    PEFT names the leaves inside of a function, which is asked for each. Where another release has none, nothing is
    refused.

    Args:
        sites: of the model. model_type: transformers' name of it.

    >>> from loratlas.anatomy.sites import Site
    >>> site = Site(path="b.out_proj.weight", module="b.out_proj", layer=0, scope="decoder", role="mixer.out",
    ...             shape=(8, 8), kind="linear")
    >>> len(refused_sites([site], "mamba")), len(refused_sites([site], "llama"))
    (1, 0)
    """
    from peft.tuners import tuners_utils

    check = vars(tuners_utils).get("_check_lora_target_modules_mamba")
    if check is None:
        return []
    asked = SimpleNamespace(peft_type="LORA"), SimpleNamespace(config=SimpleNamespace(model_type=model_type))

    def refused(leaf: str) -> bool:
        try:
            check(*asked, leaf)
        except ValueError:
            return True
        return False

    listed = list(sites)
    leaves = {leaf for leaf in {site.module.rpartition(".")[2] for site in listed} if refused(leaf)}
    return [site for site in listed if site.module.rpartition(".")[2] in leaves]


def task_type(model: Any) -> str | None:
    """PEFT's word for what a model is for; None for an encoder without a head, which does nothing by itself.

    Args:
        model: a model or a config; None for a causal language model.
    """
    from loratlas.models.heads import is_classifier
    from loratlas.models.meta import class_kind, model_class

    if model is None:
        return "CAUSAL_LM"
    config = getattr(model, "config", model)
    if hasattr(model, "named_parameters"):
        bare = unwrap(model)
        if is_classifier(bare):
            return _TASKS["SequenceClassification"]
        kind = type(bare)
    else:
        chosen = model_class(config)
        if chosen is None:
            return None
        if class_kind(config) == "SequenceClassification":
            return _TASKS["SequenceClassification"]
        kind = chosen[0]
    if not hasattr(kind, "prepare_inputs_for_generation"):
        return None
    return _TASKS["Seq2SeqLM" if getattr(config, "is_encoder_decoder", False) else "CausalLM"]


def restore_full_names(
    config: Any, modules: Sequence[str], parameters: Sequence[str], others: Iterable[str] = ()
) -> None:
    """Name targets in the form that most tools read, before the config is saved: whole names, whole alphas.

    A list of whole names is written unless PEFT, which matches lists by suffix, would adapt another module by it; an
    expression stays then. What PEFT has shortened to suffixes becomes whole again.

    Args:
        config: a LoraConfig, changed in place.
        modules, parameters: names of what is adapted, as :func:`adapted` gives them.
        others: names of all modules of the bare model; without them an expression is left alone.
    """
    config.lora_alpha = _whole(config.lora_alpha)
    config.alpha_pattern = {key: _whole(alpha) for key, alpha in (config.alpha_pattern or {}).items()}
    others = set(others)
    if isinstance(config.target_modules, str) and (
        not modules or not others or _hits_another(modules, others)
    ):
        return
    config.target_modules = sorted(modules)
    config.target_parameters = sorted(parameters) or None


def module_names(model: Any) -> list[str]:
    """Names of the modules of the bare model that PEFT was put on."""
    inside = (".base_layer", ".lora_", ".modules_to_save", ".original_module")
    names = (name.removeprefix("base_model.model.") for name, _ in model.named_modules())
    return [name for name in names if name and not any(word in f".{name}" for word in inside)]


def _hits_another(modules: Sequence[str], others: set[str]) -> bool:
    """Whether a name in a list is the end of a longer name that is not meant."""
    wanted = set(modules)
    ends = {
        ".".join(words[index:])
        for other in others - wanted
        if (words := other.split("."))
        for index in range(1, len(words))
    }
    return bool(wanted & ends)


def _whole(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def adapted(model: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by the name that a row's key has in the bare model; parameters by their full name."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            bare = name.removeprefix("base_model.model.")
            if isinstance(layer, ParamWrapper):
                while bare.endswith(".base_layer"):
                    bare = bare.removesuffix(".base_layer")
                bare = f"{bare}.{layer.parameter_name}"
            layers[bare] = layer
    return layers
