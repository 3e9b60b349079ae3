"""A whole model as one GGUF file, for llama.cpp, Ollama and what stands on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.serving.base_outline import BaseOutline
from loratlas.serving.gguf_files.gguf_metadata import head_width, rotation, write_metadata
from loratlas.serving.gguf_files.gguf_names import GgufNames, gguf_package
from loratlas.serving.gguf_files.gguf_tokenizer import write_tokenizer

if TYPE_CHECKING:
    import torch

_SKIPPED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def write_gguf_model(model: Any, tokenizer: Any, path: Path, *, dtype: str = "float16") -> None:
    """Write a model.

    Args:
        model: a causal language model of transformers, on the CPU, without adapters.
        tokenizer: its fast tokenizer.
        path: of the file; replaced.
        dtype: of matrices, ``float16`` or ``float32``; vectors are float32 always.

    Raises:
        ModelError: a type, a setting or a tokenizer that llama.cpp does not have.
    """
    import torch

    gguf = gguf_package()
    names = GgufNames(BaseOutline.of(model.config.to_dict()))
    writer = gguf.GGUFWriter(str(path), names.type.arch)
    half = dtype == "float16"
    writer.add_name(Path(str(model.config.name_or_path or "model")).name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    write_metadata(writer, model.config, names.type)
    write_tokenizer(writer, tokenizer, model.get_input_embeddings().weight.shape[0])
    for name, tensor in model_tensors(model, names):
        # llama.cpp multiplies by matrices and adds vectors; positions and routers it wants in float32.
        matrix = tensor.ndim > 1 and "position_embd" not in name and "ffn_gate_inp" not in name
        writer.add_tensor(name, tensor.to(torch.float16 if half and matrix else torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_tensors(model: Any, names: GgufNames) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a model in llama.cpp's names, order of rows and meaning.

    Args:
        model: of transformers. names: of its type.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    turned = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    with torch.no_grad():
        for full, parameter in model.state_dict().items():
            if full.endswith(_SKIPPED) or (names.base.tied and full.startswith("lm_head.")):
                continue
            module, _, word = full.rpartition(".")
            tensor = parameter.detach().float().contiguous()
            if module.endswith(".experts"):
                targets = names.experts(module, word)
                for name, half in zip(targets, tensor.chunk(len(targets), dim=1), strict=True):
                    yield f"{name}.weight", half.contiguous()
                continue
            name = names.name(module)
            if module in turned and word == "weight":
                tensor = tensor.t().contiguous()
            if names.type.unit_norms and "norm" in module.rpartition(".")[2]:
                tensor = tensor + 1.0
            yield f"{name}.{word}", names.rows(name, tensor)
    yield from _rotation_factors(model)


def _rotation_factors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """By what llama 3 divides its frequencies, one factor each."""
    import torch

    turned = rotation(model.config)
    if turned.get("rope_type") != "llama3":
        return
    width = head_width(model.config)
    plain = 1.0 / turned["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    own = model.model.rotary_emb.inv_freq.double().cpu()
    yield "rope_freqs.weight", (plain / own).float()
