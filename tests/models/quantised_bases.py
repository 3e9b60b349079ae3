"""Tiny bases whose weights are stored in FP8 or MXFP4 as published ones have them, and the numbers they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

BLOCK = 16
"""Rows and columns that share a scale in FP8; 32 numbers of a row do in MXFP4."""

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def stored_fp8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of 8 bits, a scale for each block, and the matrix that both stand for."""
    rows, columns = matrix.shape
    blocks = matrix.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    wide = scale[:, None, :, None]
    numbers = (blocks / wide).to(torch.float8_e4m3fn)
    return numbers.view(rows, columns), scale, (numbers.float() * wide).view(rows, columns)


def stored_mxfp4(stack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of experts [E, out, in]: two numbers a byte [E, out, in/32, 16], exponents [E, out, in/32], the matrices."""
    experts, out, into = stack.shape
    groups = stack.view(experts, out, into // 32, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1).clamp_min(1e-20))) - 2
    scaled = groups / torch.exp2(exponent)[..., None]
    codes = (scaled[..., None] - FP4).abs().argmin(-1)
    packed = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    whole = (FP4[codes] * torch.exp2(exponent)[..., None]).view(experts, out, into)
    return packed, (exponent + 127).to(torch.uint8), whole


def save_fp8(folder: Path) -> Any:
    """A llama in FP8 in a folder.

    Returns:
        The model that it stands for, in float32.
    """
    from tests.tiny import tiny_model

    model = tiny_model("llama")
    written = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "_proj." in name:
                numbers, scale, whole = stored_fp8(parameter.detach())
                written |= {name: numbers, name.replace(".weight", ".weight_scale_inv"): scale}
                parameter.copy_(whole)
            else:
                written[name] = parameter.detach().clone()
    return _saved(folder, model, written, {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
    })  # fmt: skip


def save_mxfp4(folder: Path) -> Any:
    """A gpt-oss whose experts are in MXFP4, in a folder.

    Returns:
        The model that it stands for, in float32.
    """
    from transformers import GptOssConfig, GptOssForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GptOssForCausalLM(GptOssConfig(
            vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, rope_parameters=None,
        )).float().eval().requires_grad_(False)  # fmt: skip
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    written = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            # Stored as [experts, out, in]; transformers multiplies by [experts, in, out].
            packed, exponents, whole = stored_mxfp4(parameter.detach().transpose(1, 2).contiguous())
            written |= {f"{name}_blocks": packed, f"{name}_scales": exponents}
            parameter.copy_(whole.transpose(1, 2))
        else:
            written[name] = parameter.detach().clone()
    return _saved(folder, model, written, {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    })  # fmt: skip


def _saved(folder: Path, model: Any, written: dict[str, torch.Tensor], quantisation: dict[str, Any]) -> Any:
    folder.mkdir(parents=True)
    save_file(
        {n: t.contiguous() for n, t in written.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        **model.config.to_dict(),
        "architectures": [type(model).__name__],
        "quantization_config": quantisation,
    }
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return model
