"""From a name or a directory to a model with its weights, frozen and ready to carry adapters.

Code that a repository brings along is never run: ``trust_remote_code`` is off throughout.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.errors import ModelError, RunError
from loratlas.modeling import is_out_of_memory, zero_dropout
from loratlas.models.config import hub_error, load_config
from loratlas.models.gguf_base import readable
from loratlas.models.gguf_header import is_gguf
from loratlas.models.heads import head_modules, head_parameters, note_drawn, output_parameters
from loratlas.models.labels import label_index, own_labels
from loratlas.models.meta import class_kind, meta_model, model_class
from loratlas.models.quantize import (
    keep_differentiable,
    lacks_package,
    lower,
    quantization,
    read_plain,
    stored_as,
)
from loratlas.models.quiet import first_line, quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MULTIPLIES_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")
"""What torch calls the instructions."""

_DTYPES = ("float32", "bfloat16")


def load_model(
    source: str | Path,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    attn: str = "sdpa",
    base_dropout: bool = False,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Load a model, frozen and ready to carry adapters.

    Args:
        source: a Hub id, a directory with weights, or a GGUF file.
        dtype: ``"float32"``, ``"bfloat16"``, or None for the type the weights are stored in.
        quantize: ``"4bit"`` through bitsandbytes, or None. Weights that are stored in FP8 or MXFP4 are read as the
            plain numbers that they stand for, without a dtype as bfloat16.
        attn: name of transformers' attention implementation; one the model lacks falls back to its own.
        base_dropout: keep the config's dropout probabilities. Off by default: they break pairing and packing.
        config: of `loratlas.models.task.for_task`, for anything but a causal language model.

    Returns:
        The model in eval mode, no parameter requiring a gradient, ``config.use_cache`` off. A classifier whose head
        the weights do not hold gets one that is the same every time, see :func:`loratlas.models.heads.new_head`.

    Raises:
        ModelError: see :func:`load_config`; weights missing or broken; bitsandbytes, or what else stored weights need,
            not installed.
        RunError: the memory is not enough.
    """
    import torch
    from safetensors import SafetensorError

    if dtype is not None and dtype not in _DTYPES:
        raise ModelError(
            given=f"dtype {dtype!r}", found="not a type to train in", instead=" or ".join(_DTYPES)
        )
    kind, config = (
        ("CausalLM", load_config(source)) if config is None else (class_kind(config), copy.deepcopy(config))
    )
    if not base_dropout:
        zero_dropout(config)
    config.use_cache = False
    few_bits = read_plain(config, quantize, str(source))
    if few_bits:
        dtype = dtype or "bfloat16"  # the type that they are stored in is none to compute in
    chosen = model_class(config)
    if chosen is not None:
        config = chosen[1]  # the part that the class takes: what is read is what is loaded
    options: dict[str, Any] = {"config": config, "trust_remote_code": False}
    options["dtype"] = getattr(torch, dtype) if dtype else "auto"
    if quantize is not None:
        options |= quantization(quantize, dtype)
        if kind == "SequenceClassification":
            # A head is trained whole, and there is nothing to train in 4 bits.
            options["quantization_config"].llm_int8_skip_modules = list(head_modules(meta_model(config)))
    path = readable(source, weights=True)
    path = Path(path).parent if Path(path).is_file() else path
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        # What weights do not hold is drawn.
        with quiet(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            model, report = _from_pretrained(str(path), str(kind), attn, options)
    except ImportError as error:
        if stored_as(config) is None:
            raise
        raise lacks_package(str(source), config, error) from error
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, EOFError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise RunError(
                given=str(source),
                found="weights that do not fit into the memory that is free",
                instead="--dtype bfloat16, --quantize 4bit, a smaller model, or a machine with more memory",
            ) from error
        if not Path(path).is_dir():
            raise hub_error(str(source), error) from error
        raise ModelError(
            given=str(source),
            found=f"a config but no weights that load: {first_line(error)}",
            instead="a directory with model.safetensors as save_pretrained writes it",
        ) from error
    except Exception as error:
        # By its name: the module of that class is imported nowhere in this package.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ModelError(
            given=str(source),
            found="weights as a pickle that holds more than tensors, which could run code when it is opened",
            instead="the weights as model.safetensors (save_pretrained writes them so)",
        ) from error
    if few_bits:
        lower(model, options["dtype"])
    drawn = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    missing = (
        sorted(drawn - head_parameters(model).keys()) if kind == "SequenceClassification" else sorted(drawn)
    )
    if missing:
        # transformers would go on with random numbers in their place.
        raise ModelError(
            given=str(source),
            found=f"weights without {missing[0]} ({len(missing)} missing in all)",
            instead=f"all weights of a {type(model).__name__}"
            if kind != "CausalLM"
            else "all weights of a causal language model",
        )
    if kind == "SequenceClassification" and not _same_classes(source, model.config):
        drawn |= output_parameters(model)
    if drawn:
        note_drawn(model, drawn)
    model.config.use_cache = False
    if is_gguf(source):
        model.name_or_path = model.config.name_or_path = str(source)
    model.requires_grad_(False)
    if quantize is not None:
        keep_differentiable(model)
    return model.eval()


def _from_pretrained(
    path: str, kind: str, attn: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    import transformers

    # Annotated as a model alone, though it returns the loading report as well when asked for it.
    load: Any = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    # A head for other labels is no head for these.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": kind == "SequenceClassification"}
    try:
        return load(path, attn_implementation=attn, **options)
    except ValueError as error:
        if "attention" not in str(error).lower() and "attn" not in str(error).lower():
            raise
        # gptj, gpt_neo, bloom and mpt have attention code of their own only.
        return load(path, **options)


def _same_classes(source: str | Path, config: PretrainedConfig) -> bool:
    """Whether the head that lies with a base is for the classes of a config, in their order, as far as names say."""
    own, labels = own_labels(load_config(source)), own_labels(config)
    return len(own) == len(labels) and all(label_index(label, own) == n for n, label in enumerate(labels))


def native_dtype() -> str:
    """``"bfloat16"`` where this machine multiplies it faster than float32, else ``"float32"``.

    A GPU says so itself; a CPU needs instructions for it (AMX or AVX-512 on x86-64, BF16 on 64-bit ARM). Without
    them it is emulated: 32 against 98 GFLOP/s measured on one such core.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if any(capabilities.get(name) for name in _MULTIPLIES_BF16) else "float32"
