"""From a name, a directory or a file to a config, a model without weights, or a model with them.

Code that a repository brings along is never run: ``trust_remote_code`` is off throughout.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.errors import ModelError
from loratlas.modeling import unwrap, zero_dropout
from loratlas.models.heads import head_modules, head_parameters, remember_new_head
from loratlas.models.quantize import keep_differentiable, quantization

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MULTIPLIES_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")
"""What torch calls the instructions."""

_DTYPES = ("float32", "bfloat16")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, remarks and warnings while a model is built or loaded.

    They are about generation settings, missing kernels and weights that a later step loads; errors still
    raise.
    """
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: importing a model's code and building it makes much that stays.

    Reading a config takes a fifth less time so.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def load_config(source: str | Path | PretrainedConfig) -> PretrainedConfig:
    """Find a model's config; no weights are read.

    Args:
        source: a Hub id, a directory with a ``config.json``, such a file itself, or a config.

    Returns:
        The config, of the class that transformers has for its ``model_type``.

    Raises:
        ModelError: nothing there, no network, broken JSON, or an architecture unknown to
            transformers.
    """
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(source, PretrainedConfig):
        return source
    if not str(source).strip():
        raise ModelError(given="an empty name", found="no model", instead="a Hub id, or a directory")
    path = Path(source)
    if path.is_file():
        return _config_from_file(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                given=str(source),
                found="a directory without a config.json",
                instead="a directory that save_pretrained wrote, or a Hub id",
            )
        return _config_from_file(path / "config.json")
    if _looks_like_a_path(str(source)):
        raise ModelError(
            given=str(source), found="no such file or directory", instead="an existing path, or a Hub id"
        )
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _hub_error(str(source), error) from error


def _config_from_file(path: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(
            given=str(path), found=f"not readable as JSON ({error})", instead="a model's config.json"
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise ModelError(
            given=str(path),
            found="JSON without a model_type",
            instead="the config.json of a transformers model",
        )
    model_type = data.pop("model_type")
    try:
        with quiet():
            return AutoConfig.for_model(model_type, **data)
    except Exception as error:
        # Config classes validate their fields with exceptions of several libraries.
        raise ModelError(
            given=str(path),
            found=f"a config of type {model_type!r} that transformers {_version()} refuses: "
            f"{_first_line(error)}",
            instead="a config that this version of transformers can build",
        ) from error


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model on the meta device: all names and shapes, no memory.

    Args:
        config: of a model for text, other towers included.

    Returns:
        The model in eval mode, parameters on the meta device, tied ones tied.

    Raises:
        ModelError: transformers has no such model for this config, or cannot build it.
    """
    chosen = model_class(config)
    if chosen is None:
        raise ModelError(
            given=f"a config of type {config.model_type!r}",
            found="transformers has no model for text of that type",
            instead="a model for text such as gpt2, llama, bert, t5, mixtral or mamba",
        )
    return _build_on_meta(*chosen)


_KINDS = ("CausalLM", "Seq2SeqLM", "MaskedLM", "SequenceClassification")


def model_class(config: PretrainedConfig) -> tuple[Any, PretrainedConfig] | None:
    """The class that a config is read as, and the part of the config that this class takes.

    What the config itself names under ``architectures`` comes first, where transformers maps it to a model for
    text; then the causal, sequence-to-sequence, masked language model and classifier, in an order that suits the
    type: an encoder-decoder is read whole, an encoder as a masked language model.
    """
    kind = class_kind(config)
    return None if kind is None else classes(config)[kind]


def class_kind(config: PretrainedConfig) -> str | None:
    """What the class of `model_class` is for: ``CausalLM``, ``Seq2SeqLM``, ``MaskedLM``, ``SequenceClassification``."""
    found = classes(config)
    for name in getattr(config, "architectures", None) or ():
        for kind, (cls, _) in found.items():
            if cls.__name__ == name:
                return kind
    return next((kind for kind in _order(config) if kind in found), None)


def classes(config: PretrainedConfig) -> dict[str, tuple[Any, PretrainedConfig]]:
    """All classes for text that transformers maps a config to, by kind, each with the part of the config it takes."""
    import transformers

    parts = [config]
    text = config.get_text_config(decoder=True)
    if type(text) is not type(config):
        parts.append(text)
    found: dict[str, tuple[Any, PretrainedConfig]] = {}
    for part in parts:
        for kind in _KINDS:
            mapped = getattr(transformers, f"AutoModelFor{kind}")._model_mapping
            if kind not in found and type(part) in mapped:
                cls = mapped[type(part)]
                # Some types of several towers are mapped to the class of their text part.
                fits = next((one for one in (part, text) if isinstance(one, cls.config_class)), part)
                found[kind] = cls, fits
        if found:
            break
    return found


def _order(config: PretrainedConfig) -> tuple[str, ...]:
    if getattr(config, "is_encoder_decoder", False):
        return ("Seq2SeqLM", *_KINDS)
    if getattr(config, "is_decoder", True) is False and not getattr(config, "causal", False):
        return ("MaskedLM", *_KINDS)
    return _KINDS


def copy_on_meta(model: Any) -> PreTrainedModel:
    """The same architecture as a live model's, without adapters and without memory.

    Args:
        model: a transformers model, or a PEFT model around one, quantised or not.

    Returns:
        A model on the meta device, built by the live model's class from its config.

    Raises:
        ModelError: not a transformers model, or one whose parameters are not those that its config describes.
    """
    from transformers import PreTrainedModel

    bare = unwrap(model)
    if not isinstance(bare, PreTrainedModel):
        raise ModelError(
            given=f"an object of class {type(model).__name__}",
            found="neither a transformers model nor a PEFT model around one",
            instead="what AutoModelForCausalLM.from_pretrained returns",
        )
    twin = _build_on_meta(type(bare), bare.config)
    live = {bare_name(name) for name, _ in bare.named_parameters(remove_duplicate=False)}
    missing = [name for name, _ in twin.named_parameters(remove_duplicate=False) if name not in live]
    if missing:
        raise ModelError(
            given=f"a model of class {type(bare).__name__}",
            found=f"its config describes {missing[0]}, which the model does not have ({len(missing)} in all)",
            instead="the model as its config describes it, without parts removed by hand",
        )
    return twin


def bare_name(name: str) -> str:
    """A parameter's name without what PEFT wraps around it.

    >>> bare_name("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _build_on_meta(model_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    import torch

    config = copy.deepcopy(config)
    # A quantised base has the matrices of the one it was made from.
    if getattr(config, "quantization_config", None) is not None:
        delattr(config, "quantization_config")
    try:
        with quiet(), torch.device("meta"):
            return model_class._from_config(config).eval()
    except Exception as error:
        # Whatever a model class raises on sizes that do not fit together is the config's fault here.
        raise ModelError(
            given=f"a config of type {config.model_type!r}",
            found=f"transformers {_version()} cannot build it: {_first_line(error)}",
            instead="sizes that fit together",
        ) from error


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
        source: a Hub id or a directory with weights.
        dtype: ``"float32"``, ``"bfloat16"``, or None for the type the weights are stored in.
        quantize: ``"4bit"`` through bitsandbytes, or None.
        attn: name of transformers' attention implementation; one the model lacks falls back to its own.
        base_dropout: keep the config's dropout probabilities. Off by default: they break pairing and packing.
        config: of `loratlas.models.task.for_task`, for anything but a causal language model.

    Returns:
        The model in eval mode, no parameter requiring a gradient, ``config.use_cache`` off. A classifier whose head
        the weights do not hold gets one that is the same every time, see :func:`loratlas.models.heads.new_head`.

    Raises:
        ModelError: see :func:`load_config`; weights missing or broken; bitsandbytes not installed.
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
    path = Path(source).parent if Path(source).is_file() else source
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        # What weights do not hold is drawn.
        with quiet(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            model, report = _from_pretrained(str(path), str(kind), attn, options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if not Path(path).is_dir():
            raise _hub_error(str(source), error) from error
        raise ModelError(
            given=str(source),
            found=f"a config but no weights that load: {_first_line(error)}",
            instead="a directory with model.safetensors as save_pretrained writes it",
        ) from error
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
    if drawn:
        remember_new_head(model)
    model.config.use_cache = False
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


def native_dtype() -> str:
    """``"bfloat16"`` where this machine multiplies it faster than float32, else ``"float32"``.

    A GPU says so itself; a CPU needs instructions for it (AMX or AVX-512 on x86-64, BF16 on 64-bit ARM). Without
    them it is emulated: 32 against 98 GFLOP/s measured on one such core.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    found = torch.cpu.get_capabilities()
    return "bfloat16" if any(found.get(name) for name in _MULTIPLIES_BF16) else "float32"


def _looks_like_a_path(text: str) -> bool:
    # A Hub id is "name" or "owner/name": anything deeper, or written like a path, can only be a path.
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith((".json", "/"))


def _hub_error(source: str, error: Exception) -> ModelError:
    if isinstance(error, (ValueError, KeyError)) and "model type" in str(error).lower():
        return ModelError(
            given=source,
            found=f"an architecture that transformers {_version()} does not know (or with its own code)",
            instead="a model whose code is part of transformers",
        )
    text = str(error).lower()
    if "not a valid model identifier" in text or "404" in text or "repository not found" in text:
        found = "neither a local directory nor a model on the Hub that can be read without logging in"
    else:
        found = "no local directory of that name, no copy in the cache, and the Hub could not be reached"
    return ModelError(
        given=source, found=found, instead="a local directory with a config.json, or a Hub id while online"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _version() -> str:
    import transformers

    return transformers.__version__
