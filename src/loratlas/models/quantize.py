"""4-bit weights through bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

from loratlas.errors import ModelError


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
