"""Handing adapters over: plain PEFT folders, and merged models, each checked by loading it again.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, which any tool that knows PEFT
reads, and ``loratlas.json``, which says where the adapter came from.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.peft_check import expected_warnings
from loratlas.adapters.peft_targets import adapted, restore_full_names
from loratlas.adapters.plain_lora import ordinary_state
from loratlas.adapters.tied_weights import share
from loratlas.adapters.trained_heads import detach_adapters
from loratlas.errors import AttachError, ModelError, OutputError
from loratlas.files import whole_folder
from loratlas.modeling import unwrap
from loratlas.models.heads import is_classifier

if TYPE_CHECKING:
    from peft import PeftModel

SCHEMA = "loratlas.adapter"
VERSION = 1
MARKER = "adapter_config.json"
TARGETS = ("peft", "merged")


def save_adapter(
    peft_model: PeftModel,
    folder: str | Path,
    *,
    plan_json: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    adapter_name: str = "default",
) -> Path:
    """Write one adapter; the folder appears whole or not at all.

    An adapter that changed its base when it was put on (PiSSA, OLoRA) is written as the ordinary adapter of twice
    the rank that has the same effect on the unchanged base.

    Args:
        peft_model: with the adapter, on any device.
        folder: new, empty, or an earlier adapter, which is replaced.
        plan_json: of the plan, for ``loratlas.json``.
        extra: anything else for ``loratlas.json``; plain data.
        adapter_name: PEFT's name of it.

    Returns:
        The folder.

    Raises:
        OutputError: something else lies there, or no permission.
        StorageError: the disk is full.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    state, config = ordinary_state(peft_model, adapter_name)
    config.inference_mode = True
    names = adapted(peft_model)
    parameters = {name for name, layer in names.items() if hasattr(layer, "parameter_name")}
    restore_full_names(config, [name for name in names if name not in parameters], sorted(parameters))
    about = {
        "schema": SCHEMA,
        "version": VERSION,
        "plan": dict(plan_json) if plan_json else None,
        "base_digest": _digest(peft_model),
        "extra": dict(extra or {}),
        "versions": _versions(),
    }
    with whole_folder(folder, marker=MARKER) as new:
        save_file(
            _apart(state),
            new / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(str(new))
        (new / "loratlas.json").write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")
    return folder


def _apart(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors on the CPU, those that several names share once for each name, as the format wants them."""
    seen: set[int] = set()
    written = {}
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu").contiguous()
        written[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return written


def load_adapter(base_model: Any, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved adapter on a base, in place.

    Args:
        base_model: the model it was trained on, without adapters.
        folder: as :func:`save_adapter` (or PEFT) writes it.
        trainable: whether to train it further; otherwise it is frozen.

    Returns:
        The PeftModel, in the mode of ``base_model``, use of the global random generators undone.

    Raises:
        ModelError: no adapter there, or not all of it loads on this base.
        AttachError: the adapter was made for a base of another shape.
    """
    import torch
    from peft import PeftModel

    folder = Path(folder)
    about = read_about(folder)
    if getattr(base_model, "peft_config", None):
        raise AttachError(
            given=str(folder),
            found=f"a model that carries the adapter {next(iter(base_model.peft_config))!r} already",
            instead="the bare base: merge the first adapter into it (merge_and_unload), or take it off (unload)",
        )
    made_for, here = about.get("base_digest"), _digest(base_model)
    if made_for and here and made_for != here:
        raise AttachError(
            given=str(folder),
            found=f"an adapter for a base with config digest {made_for}; this one has {here}",
            instead="the base that it was trained on",
        )
    training = base_model.training
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda), expected_warnings():
        # PEFT only remarks on weights that are missing.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            model = PeftModel.from_pretrained(base_model, str(folder), is_trainable=trainable)
        except (ValueError, RuntimeError, KeyError, OSError, UserWarning) as error:
            raise ModelError(
                given=str(folder),
                found=f"an adapter that does not load on this base: {str(error).splitlines()[0][:300]}",
                instead="the base that it was trained on",
            ) from error
    share(model, str(model.active_adapter))
    return model.train(training)


def read_about(folder: str | Path) -> dict[str, Any]:
    """What ``loratlas.json`` says about an adapter; empty for one from another tool.

    Raises:
        ModelError: there is no adapter in the folder, or the file is broken.
    """
    folder = Path(folder)
    if not (folder / MARKER).is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            given=str(folder),
            found=f"no {MARKER} with adapter_model.safetensors",
            instead="the adapter folder that `loratlas train` names",
        )
    path = folder / "loratlas.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            given=str(path), found=f"not readable: {error}", instead="the file as written"
        ) from error


def export(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    target: str = "peft",
    base: str | Path | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Write an adapter for other tools, load what was written, and compare.

    Args:
        adapter_dir: the adapter.
        out: where to write; new, empty, or an earlier export.
        target: ``"peft"`` for a plain adapter folder; ``"merged"`` for a whole model with its tokenizer, which needs
            neither PEFT nor loratlas.
        base: the base; None for the one that the adapter names.
        dtype: numbers of a merged model. In float32 it equals base + adapter; bfloat16 halves the size and rounds
            what the adapter adds, which ``check`` then shows.

    Returns:
        ``path``, and ``check``: the largest absolute difference between the logits of base + adapter and of what was
        written, both in float32 on fixed tokens.

    Raises:
        ModelError: adapter or base are not there. OutputError, StorageError: see :func:`save_adapter`.
    """
    from loratlas.models.config import load_config
    from loratlas.models.load import load_model

    if target not in TARGETS:
        raise OutputError(
            given=f"--for {target}", found="a format that is not written", instead=" or ".join(TARGETS)
        )
    adapter_dir, out = Path(adapter_dir), Path(out)
    about = read_about(adapter_dir)
    source = str(
        base
        or json.loads((adapter_dir / MARKER).read_text(encoding="utf-8")).get("base_model_name_or_path")
        or ""
    )
    if not source:
        raise ModelError(given=str(adapter_dir), found="it does not name its base", instead="--base MODEL")
    config = _config_of(source, about, adapter_dir)
    options = {"dtype": "float32", "base_dropout": True}
    model = load_adapter(load_model(source, config=config, **options), adapter_dir)
    wanted = _logits(model)
    if target == "peft":
        save_adapter(model, out, plan_json=about.get("plan"), extra=about.get("extra"))
        again = load_adapter(detach_adapters(model), out)
    else:
        _save_merged(model, out, source, dtype)
        again = load_model(out, config=config and load_config(out), **options)
    return {"path": str(out), "check": float((_logits(again) - wanted).abs().max())}


def _config_of(source: str, about: Mapping[str, Any], adapter_dir: Path) -> Any:
    """The config that a base is loaded with for what its adapter does; None for a causal language model.

    An adapter from another tool says what it does in PEFT's words, and does not name its classes.
    """
    from loratlas.models.task import CAUSAL, SEQ2SEQ, Task, for_task

    told = (about.get("extra") or {}).get("task")
    theirs = json.loads((adapter_dir / MARKER).read_text(encoding="utf-8")).get("task_type")
    task = Task.from_json(told) if told else Task(name=SEQ2SEQ if theirs == "SEQ_2_SEQ_LM" else CAUSAL)
    return (
        None
        if task.name == CAUSAL
        else for_task(source, task, pad_id=(about.get("extra") or {}).get("pad_id"))
    )


def _save_merged(model: PeftModel, out: Path, source: str, dtype: str) -> None:
    import torch
    from transformers import AutoTokenizer

    from loratlas.models.config import load_config, quiet

    merged: Any = model.merge_and_unload(safe_merge=True)
    merged = merged.to(getattr(torch, dtype))
    # What loading for training switched off is not the base's own setting.
    merged.config.use_cache = getattr(load_config(source), "use_cache", True)
    with whole_folder(out, marker="config.json") as new, quiet():
        merged.save_pretrained(new)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # a base without a tokenizer is merged without one
        tokenizer.save_pretrained(new)


def _logits(model: Any) -> Any:
    """Logits for two fixed rows of tokens, float32 on the CPU."""
    import torch

    config = model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (2, 24), generator=generator)
    device = next(model.parameters()).device
    model.eval()
    given = {"input_ids": tokens.to(device)}
    if is_classifier(bare := unwrap(model)):
        # One row at a time, ended once: what a classifier reads is then the same whatever fills rows.
        tokens = tokens.where(tokens != bare.config.eos_token_id, (tokens + 1) % config.vocab_size)
        end = bare.config.eos_token_id
        tokens = tokens if not isinstance(end, int) else torch.cat([tokens, torch.full((2, 1), end)], dim=1)
        with torch.no_grad():
            return torch.cat([model(input_ids=row[None].to(device)).logits.float().cpu() for row in tokens])
    if config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"][:, :12]
    with torch.no_grad():
        return model(**given, use_cache=False).logits.float().cpu()


def _digest(model: Any) -> str | None:
    """Digest of a live model's config; None for a model without one."""
    from loratlas.anatomy.config_sizes import config_digest

    config: Any = getattr(model, "config", None)
    return config_digest(copy.deepcopy(config)) if hasattr(config, "to_dict") else None


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("loratlas", "peft", "torch", "transformers")}
