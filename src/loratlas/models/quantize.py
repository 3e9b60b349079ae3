"""Weights of few bits: 4 bits through bitsandbytes, and bases that are published in FP8 or MXFP4.

The products of FP8 and MXFP4 kernels pass no gradient to their inputs, so that nothing could be trained below them.
Such a base is read into the numbers that its own stand for, exactly, which transformers does on any machine; an adapter
that was trained on them fits the published base as well.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError, printable
from loratlas.files import read_json

DEQUANTISED = {"fp8": "FP8", "mxfp4": "MXFP4"}
"""transformers' word for how weights are stored → what people call it, of those that are read into plain numbers."""


def quantization(quantize: str, dtype: str | None) -> dict[str, Any]:
    """What `from_pretrained` has to be told.

    Args:
        quantize: ``"4bit"``: NF4 with double quantisation (QLoRA, arXiv:2305.14314).
        dtype: of the products; None for bfloat16.

    Raises:
        ModelError: another word, or bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if quantize != "4bit":
        raise ModelError(
            given=f"--quantize {quantize}", found="an unknown quantisation", instead="--quantize 4bit"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            given="--quantize 4bit",
            found="bitsandbytes is not installed",
            instead='pip install "loratlas[quantize]", or no --quantize',
        )
    compute = getattr(torch, dtype or "bfloat16")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": config, "dtype": compute}


def keep_differentiable(model: Any) -> None:
    """Hold quantised matrices in the one layout that has a gradient.

    On processors with bfloat16 instructions bitsandbytes (0.50) lays a matrix out anew at its first evaluation, for
    good, and products with that layout pass no gradient to their input: a run that is evaluated before or while it
    trains would go on with wrong gradients, and say nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def stored_as(config: Any) -> str | None:
    """How a base's weights are stored, in transformers' word; None for plain numbers.

    Args:
        config: of the base, as an object or as the table in its ``config.json``.

    >>> stored_as({"quantization_config": {"quant_method": "fp8"}}), stored_as({})
    ('fp8', None)
    """
    fields = config if isinstance(config, dict) else vars(config)
    stored = fields.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def read_plain(config: Any, quantize: str | None, given: str) -> bool:
    """Ask transformers for the numbers that weights in FP8 or MXFP4 stand for, in place; nothing of other bases.

    Args:
        config: of the base. quantize: what was asked for besides. given: the base's name, for errors.

    Returns:
        Whether the weights are in one of the two.

    Raises:
        ModelError: 4 bits of weights that are stored in few bits already.
    """
    stored = stored_as(config)
    if stored is not None and quantize is not None:
        raise ModelError(
            given=f"--quantize {quantize} with {given}",
            found=f"weights that are stored in {DEQUANTISED.get(stored, stored)} already",
            instead="no --quantize, or the base as it was before that",
        )
    if stored not in DEQUANTISED:
        return False
    kept = config.quantization_config
    fields = dict(kept) if isinstance(kept, dict) else kept.to_dict()
    config.quantization_config = {**fields, "dequantize": True}
    return True


def lower(model: Any, dtype: Any) -> None:
    """Numbers of one type throughout, but for what the architecture keeps in float32.

    Plain numbers of FP8 weights have the type of their scales, float32, whatever was asked for.

    Args:
        model: as transformers has loaded it, in place. dtype: torch's.
    """
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(word in name for word in kept):
            parameter.data = parameter.data.to(dtype)


def lacks_package(source: str, config: Any, error: ImportError) -> ModelError:
    """The error of a base that transformers reads by a package that is not here."""
    return ModelError(
        given=source,
        found=f"weights stored in {printable(str(stored_as(config)), 40)}, and transformers says: "
        f"{printable(' '.join(str(error).split()), 200)}",
        instead="pip install that package, or the base as it was before it was quantised",
    )


def quantised_note(source: Any) -> str | None:
    """What a person should know of a base in FP8 or MXFP4, in a sentence; None of any other.

    Args:
        source: a directory, or a Hub id whose config is in the Hub's cache.

    >>> quantised_note("owner/name") is None
    True
    """
    path = _config_file(str(source))
    if path is None:
        return None
    try:
        fields = read_json(path)
    except (OSError, ValueError):
        return None  # whoever reads the base says so
    name = DEQUANTISED.get(stored_as(fields) or "") if isinstance(fields, dict) else None
    if name is None:
        return None
    return (
        f"{source}: weights in {name}, which are read as the plain numbers that they stand for: in memory the base is "
        "as large as it was before. Training and losses are those of these numbers."
    )


def _config_file(source: str) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    if source.count("/") != 1 or folder.exists():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        kept = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return Path(kept) if isinstance(kept, str) else None
