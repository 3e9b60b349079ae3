"""A saved adapter onto a live base: every tensor of it used, every expected one there, or nothing done at all.

PEFT only remarks on tensors that are missing, and says nothing of those that it has no use for. Here the adapter is
put on without numbers first (its factors on the meta device), PEFT's own loading is tried with the shapes that the
file's header names, and the numbers follow only where names, shapes, ranks and scales all agree.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_check import differences, expected_warnings
from loratlas.adapters.peft_targets import task_type
from loratlas.adapters.plan_row import rows_of_json
from loratlas.adapters.stored.adapter_digests import base_digest, weights_sample
from loratlas.adapters.stored.base_changes import double_factors, initial_factors
from loratlas.adapters.stored.expressions import slow
from loratlas.adapters.stored.lora_options import lora_config_of, too_long
from loratlas.adapters.stored.read_adapter import PREFIX, AdapterFolder, read_adapter
from loratlas.adapters.tied_weights import share
from loratlas.adapters.trained_heads import detach_adapters, replace_base_tensors
from loratlas.errors import AttachError, ModelError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel

NAME = "default"
"""PEFT's name of a loaded adapter."""


def load_adapter(base_model: Any, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved adapter on a base, in place.

    Args:
        base_model: the model it was trained on, without adapters.
        folder: as `loratlas.adapters.stored.adapter_files.save_adapter` (or PEFT) writes it. One that took its first
            factors out of the base (PiSSA, OLoRA) is put on as the ordinary adapter of twice the rank that has the same
            effect, and the base stays as it is.
        trainable: whether to train it further; otherwise it is frozen.

    Returns:
        The PeftModel, in the mode of ``base_model``, use of the global random generators undone.

    Raises:
        ModelError: no adapter there, another kind than LoRA, files that are broken or were changed, tensors that are
            missing, left over, of another shape or not finite. The base is then as it was.
        AttachError: the adapter was made for a base of another shape or with other weights, or the base carries one
            already.
    """
    import torch

    contents = read_adapter(folder)
    _check_base(base_model, contents)
    problem = slow(contents.config, [name for name, _ in base_model.named_modules()])
    if problem is not None:
        raise too_long(problem, contents.folder)
    tensors, config = contents.read(), lora_config_of(contents.config, contents.folder)
    if contents.changed_base:
        first = initial_factors(base_model, contents, config, remainders=True)
        tensors, config = double_factors(tensors, first, config)
    config.inference_mode = not trainable
    # What the model is decides what PEFT makes of it, not a word in a file.
    config.task_type = task_type(base_model) or config.task_type
    training = base_model.training
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model = None
    with torch.random.fork_rng(devices=cuda), expected_warnings():
        try:
            model = _wrapped(base_model, config, numbers=False)
            own = _base_tensors(model, contents, tensors)
            rest = {name: tensor for name, tensor in tensors.items() if name not in own}
            _fill(
                model,
                contents,
                {name: torch.empty_like(tensor, device="meta") for name, tensor in rest.items()},
            )
            _check_plan(model, contents)
            model = _wrapped(detach_adapters(model), config, numbers=True)
            _fill(model, contents, rest)
            replace_base_tensors(model, own)
            share(model, NAME)
        except BaseException:
            detach_adapters(model if model is not None else base_model)
            base_model.train(training)
            raise
    return model.train(training)


def _check_base(base_model: Any, contents: AdapterFolder) -> None:
    if getattr(base_model, "peft_config", None):
        raise AttachError(
            given=str(contents.folder),
            found=f"a model that carries the adapter {next(iter(base_model.peft_config))!r} already",
            instead="the bare base: merge the first adapter into it (merge_and_unload), or take it off (unload)",
        )
    made_for, here = contents.notes.get("base_digest"), base_digest(base_model)
    if made_for and here and made_for != here:
        raise AttachError(
            given=str(contents.folder),
            found=f"an adapter for a base with config digest {made_for}; this one has {here}",
            instead="the base that it was trained on",
        )
    trained_on = contents.notes.get("base_weights")
    here = weights_sample(base_model) if trained_on else None
    if here and trained_on != here:
        raise AttachError(
            given=str(contents.folder),
            found="an adapter for a base of this shape with other weights: numbers of its layers' matrices differ",
            instead="the base that it was trained on; or, for another on purpose, a copy of the folder without "
            "loratlas.json",
        )


def _wrapped(base_model: Any, config: LoraConfig, *, numbers: bool) -> PeftModel:
    """The base with PEFT's layers in it; without numbers their factors are on the meta device, and take no memory."""
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from peft.peft_model import PeftModel

    kind: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    try:
        return kind(base_model, copy.deepcopy(config), NAME, low_cpu_mem_usage=not numbers)
    except (
        ValueError,
        RuntimeError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
        ImportError,
    ) as error:
        raise _unfit(base_model, f"PEFT cannot put it on this base: {_first_line(error)}") from error


def _fill(model: PeftModel, contents: AdapterFolder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the adapter its numbers; or, for tensors without any, see whether it would take them.

    Raises:
        ModelError: names or shapes that do not fit this base.
    """
    from peft import set_peft_model_state_dict

    trial = any(tensor.device.type == "meta" for tensor in tensors.values())
    try:
        result = set_peft_model_state_dict(model, dict(tensors), NAME, low_cpu_mem_usage=trial)
    except KeyError as error:
        raise _unfit(
            contents.folder, f"no tensor {str(error.args[0]).removeprefix(PREFIX)[:200]}: missing"
        ) from error
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise _unfit(contents.folder, _first_line(error)) from error
    if result.unexpected_keys:
        raise _unfit(
            contents.folder,
            f"tensors that its config has no use for on this base: {_named(result.unexpected_keys)}",
        )
    missing = [name for name in result.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    if missing:
        raise _unfit(contents.folder, f"no tensors for {_named(missing)}, which its config names: missing")


def _base_tensors(
    model: PeftModel, contents: AdapterFolder, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors of the base itself, which an adapter may bring along: biases that it trained, and embeddings.

    Raises:
        ModelError: another matrix of the base, or one of another shape.
    """
    inner: Any = model.get_base_model()
    kept = model.state_dict()
    own = {name: tensor for name, tensor in tensors.items() if name in kept}
    tables = {
        id(module.get_base_layer() if hasattr(module, "get_base_layer") else module)
        for module in (inner.get_input_embeddings(), inner.get_output_embeddings())
        if module is not None
    }
    for name, tensor in own.items():
        bare = name.removeprefix(PREFIX)
        bias = bare.endswith(".bias") and contents.config.get("bias", "none") != "none"
        if not bias and id(inner.get_submodule(bare.rpartition(".")[0])) not in tables:
            raise _unfit(contents.folder, f"a matrix of the base itself, {bare[:200]}")
        if tensor.shape != kept[name].shape:
            raise _unfit(
                contents.folder,
                f"{bare[:200]} of shape {tuple(tensor.shape)}, which is {tuple(kept[name].shape)} in the base"
                + ("" if bias else ": tokens were added to the one that it was trained on"),
            )
    return own


def _check_plan(model: PeftModel, contents: AdapterFolder) -> None:
    """Sites, ranks and scales are those of the plan in ``loratlas.json``, where there is one."""
    plan = contents.notes.get("plan")
    if not plan:
        return
    rslora, rows = bool(plan.get("rslora")), rows_of_json(plan)
    wrong = differences(rows, model, NAME, rslora)
    if wrong:
        # An adapter that took from its base is saved with twice the rank of its plan, at the same scale.
        grown = math.sqrt(2) if rslora else 2
        doubled = [replace(row, rank=2 * row.rank, alpha=grown * row.alpha) for row in rows]
        if not differences(doubled, model, NAME, rslora):
            return
        raise _unfit(contents.folder, wrong.replace("PEFT would", "its config would"))


def _named(names: list[str]) -> str:
    from loratlas.adapters.peft_check import some

    return some([name.removeprefix(PREFIX).replace(f".{NAME}", "")[:200] for name in names])


def _unfit(given: Any, found: str) -> ModelError:
    return ModelError(
        given=str(given) if isinstance(given, Path) else f"an adapter on a {type(given).__name__}",
        found=f"an adapter that does not load on this base: {found}",
        instead="the base that it was trained on, and the adapter's files as they were written",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # torch lists what does not fit below a headline.
    return " ".join(lines[:2])[:300]
