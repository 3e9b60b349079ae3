"""From rows (site, rank, alpha) to PEFT layers at exactly these sites and no other.

PEFT chooses modules by suffix, regular expression or a table of names. Here it gets one anchored expression made
of whole, escaped names, and is then watched: on a copy without weights before anything happens, and on the live
model afterwards.

    y = W x + (α/r) · B A x          (with rsLoRA: α/√r)
    y = m ∘ (W + (α/r) · B A) x / ‖W + (α/r) · B A‖ by rows      (with DoRA, m starting as the lengths of W's rows)

A classifier's head trains whole beside them, alike under every plan, and is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loratlas.adapters.patterns import default_and_patterns
from loratlas.adapters.peft_check import differences, expected_warnings, prove_on_meta, some
from loratlas.adapters.peft_targets import adapted as adapted_layers
from loratlas.adapters.peft_targets import refused_sites, targets, task_type
from loratlas.adapters.plan_row import PlanRow
from loratlas.adapters.stored.plain_lora import keep_initial_factors
from loratlas.adapters.tied_weights import align, share
from loratlas.adapters.trained_heads import (
    detach_adapters,
    draw_heads,
    head_differences,
    head_size,
    heads_of,
    refuse_head_rows,
)
from loratlas.adapters.variants import refuse_stacks
from loratlas.errors import AttachError, SettingsError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn

INITS = ("gaussian", "olora", "orthogonal", "pissa", "pissa_niter_[n]")
"""PEFT's initialisations that need the base's weights at most. True (Kaiming A, zero B) is the default."""

_KNOWN = f"true or {', '.join(INITS)}; for a run to train, eva or auto as well"

_NEEDS_MORE = {
    "eva": "activations on data, which a run reads itself (`loratlas train --init eva`, Settings(init='eva'))",
    "corda": "activations on data",
    "lora_ga": "gradients on data",
    "loftq": "a base that is not quantised yet and a quantisation config",
}


def takes_from_base(init: bool | str | None) -> bool:
    """Whether an initialisation moves a part of the base's weights into the adapter, changing the base."""
    return isinstance(init, str) and (init.lower() == "olora" or init.lower().startswith("pissa"))


def trainable(model: nn.Module) -> int:
    """Number of parameters that require a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def lora_config(
    rows: Sequence[PlanRow],
    *,
    model: Any = None,
    rslora: bool = False,
    dropout: float = 0.0,
    init: bool | str = True,
    prove: bool = True,
) -> LoraConfig:
    """Write rows as a LoraConfig.

    Args:
        rows: at least one, each site once.
        model: a transformers config, a model or a PEFT model, of which a copy without weights is made for the
            proof. None only without ``prove``.
        rslora: scale by α/√r.
        dropout: probability in front of A, in [0, 1).
        init: True, False or one of :data:`INITS`.
        prove: whether to check on that copy that PEFT adapts exactly the rows.

    Returns:
        A config whose ``target_modules`` is one expression (a list of 20 or more would be saved as suffixes), with
        the commonest rank and alpha as its defaults and anchored patterns for the others. A classifier's head is in
        ``modules_to_save``.

    Raises:
        AttachError: PEFT would adapt other sites, or with other ranks; the message names them.
        SettingsError: a dropout or an initialisation that cannot be.
    """
    from peft import LoraConfig

    _check(rows, dropout, init)
    _refuse_bypassed(rows, model)
    heads = heads_of(model)
    refuse_head_rows(rows, heads)
    named = targets(rows, model)
    keyed = [(key, row) for keys, row in zip(named.keys, rows, strict=True) for key in keys]
    rank, ranks = default_and_patterns([(key, row.rank) for key, row in keyed])
    alpha, alphas = default_and_patterns([(key, row.alpha) for key, row in keyed])
    conv1d = Counter(row.site.kind == "conv1d" for row in rows)
    with expected_warnings():
        config = LoraConfig(
            task_type=task_type(model),
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # a float is what its arithmetic takes
            target_modules=named.modules,
            target_parameters=named.parameters,
            modules_to_save=list(heads) or None,
            rank_pattern=ranks,
            alpha_pattern=alphas,
            lora_dropout=0.0 if named.parameters else dropout,
            bias="none",
            use_rslora=rslora,
            use_dora=rows[0].dora,
            init_lora_weights=init,  # pyright: ignore[reportArgumentType]
            fan_in_fan_out=conv1d[True] > conv1d[False],
        )
    if prove:
        prove_on_meta(rows, config, model)
    return config


def attach(
    rows: Sequence[PlanRow],
    model: Any,
    *,
    seed: int = 0,
    rslora: bool = False,
    dropout: float = 0.0,
    init: bool | str = True,
    adapter_name: str = "default",
) -> PeftModel:
    """Put adapters on a live model, in place.

    Args:
        rows: at least one, each site once.
        model: a transformers model without adapters.
        seed: decides the initial weights alone, those of a head that the base does not bring included; the global
            generators are left as they were.
        rslora, dropout, init: as for :func:`lora_config`.
        adapter_name: PEFT's name for the adapter.

    Returns:
        The PeftModel, in the mode (train or eval) of ``model``. Adapter weights are float32 on any base, a head has
        the base's numbers.

    Raises:
        AttachError: the model lacks a site, or PEFT adapted others; the model is as it was then.
    """
    import torch
    from peft import get_peft_model

    if getattr(model, "peft_config", None):
        raise _carries_one(rows, model)
    names = {name for name, _ in model.named_modules()}
    missing = [module for row in rows for module in row.modules if module not in names]
    if missing:
        raise AttachError(
            given=f"a plan of {len(rows)} sites",
            found=f"a {type(model).__name__} without {some(missing)}",
            instead="the bare model that the plan was made for",
        )
    config = lora_config(rows, model=model, rslora=rslora, dropout=dropout, init=init, prove=False)
    training, head = model.training, head_size(model)
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda), expected_warnings():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, adapter_name=adapter_name)
        draw_heads(adapted, adapter_name, seed)
    wrong = differences(rows, adapted, adapter_name, rslora) or head_differences(adapted, heads_of(model))
    if not wrong:
        align(adapted, adapter_name)
        share(adapted, adapter_name)
    count, wanted = trainable(adapted) - head, sum(row.trainable for row in rows)
    if not wrong and count != wanted:
        wrong = f"{count} trainable parameters where the plan has {wanted}"
    if wrong:
        detach_adapters(adapted)
        raise AttachError(
            given=f"a plan of {len(rows)} sites", found=wrong, instead="a report of this as a bug"
        )
    if dropout and config.target_parameters:
        _drop_out(adapted, adapter_name, dropout)
    if takes_from_base(init):
        keep_initial_factors(adapted, adapter_name)
    return adapted.train(training)


def _carries_one(rows: Sequence[PlanRow], model: Any) -> AttachError:
    """A second adapter: PEFT would train or route it beside the first, and demands equal stacks of experts."""
    name, config = next(iter(model.peft_config.items()))
    first = set(getattr(config, "target_parameters", None) or ())
    second = {row.site.path for row in rows if row.site.kind == "experts"}
    stacks = "" if first == second else ", on another set of expert stacks, and PEFT holds one set per model"
    return AttachError(
        given=f"a second plan, of {len(rows)} sites",
        found=f"a model that carries the adapter {name!r} already{stacks}",
        instead="the bare model: merge the first adapter into it (merge_and_unload), or take it off (unload)",
    )


def _drop_out(adapted: Any, adapter_name: str, dropout: float) -> None:
    """Dropout on the linear sites of a model with parameter-wise adapters, which PEFT refuses it for."""
    import torch
    from peft.tuners.lora.layer import ParamWrapper

    for layer in adapted_layers(adapted).values():
        if not isinstance(layer, ParamWrapper):
            layer.lora_dropout[adapter_name] = torch.nn.Dropout(dropout)


def _refuse_bypassed(rows: Sequence[PlanRow], model: Any) -> None:
    """Sites that PEFT refuses for this type of model, before it does so in its own words."""
    kind = str(getattr(getattr(model, "config", model), "model_type", None))
    refused = refused_sites((row.site for row in rows), kind)
    if refused:
        roles = " - ".join(dict.fromkeys(site.role for site in refused))
        raise AttachError(
            given=f"a plan of {len(rows)} sites",
            found=f"{some([site.module for site in refused])}, which the fused kernels of a {kind} model go around, so "
            "that PEFT puts no adapter there",
            instead=f"the same without them, such as all:{rows[0].rank} - {roles}",
        )


def _check(rows: Sequence[PlanRow], dropout: float, init: bool | str) -> None:
    if not rows:
        raise AttachError(given="a plan without rows", found="nothing to adapt", instead="at least one site")
    twice = [path for path, n in Counter(row.site.path for row in rows).items() if n > 1]
    if twice:
        raise AttachError(given="a plan", found=f"{some(twice)} in it twice", instead="each site once")
    for row in rows:
        if len(row.modules) > 1 and takes_from_base(init):
            raise SettingsError(
                given=f"init {init}",
                found=f"{row.site.module} is called under {len(row.modules)} names, and its part of the weights "
                "would be taken out as often",
                instead="init true",
            )
        if row.dora != rows[0].dora:
            raise AttachError(
                given="a plan",
                found="DoRA at some of its sites, and PEFT has it at all or none",
                instead="one of them",
            )
        if not row.site.adaptable:
            raise AttachError(
                given=row.site.path,
                found=f"a site of kind {row.site.kind} that no adapter can be put on by name",
                instead="an adaptable site",
            )
    if rows[0].dora:
        refuse_stacks(row.site for row in rows)
    if not 0 <= dropout < 1:
        raise SettingsError(
            given=f"dropout {dropout}", found="no probability below 1", instead="0, or e.g. 0.05"
        )
    if not isinstance(init, (bool, str)):  # PEFT would begin with a B that is not zero
        raise SettingsError(given=f"init {init}", found="no initialisation", instead=_KNOWN)
    if isinstance(init, str):
        name = init.lower()
        odd = [row for row in rows if row.rank % 2]
        if name == "orthogonal" and odd:
            raise SettingsError(
                given=f"init {init}",
                found=f"rank {odd[0].rank} at {odd[0].site.module}; this initialisation halves the rank",
                instead="even ranks, or init true",
            )
        if name in _NEEDS_MORE:
            raise SettingsError(
                given=f"init {init}",
                found=f"it needs {_NEEDS_MORE[name]}",
                instead=_KNOWN,
            )
        niter = name.removeprefix("pissa_niter_")
        if name not in INITS[:-1] and not (niter != name and niter.isdigit()):
            raise SettingsError(given=f"init {init}", found="an unknown initialisation", instead=_KNOWN)
