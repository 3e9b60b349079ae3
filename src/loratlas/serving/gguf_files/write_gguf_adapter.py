"""Changes as a LoRA file for llama.cpp: two tensors per matrix, one α, each factor with its own rank.

llama.cpp scales by α over the rank of each tensor, so that no padding is needed: B is written with rank/α in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loratlas.errors import ModelError
from loratlas.serving.adapter_header import EMBEDDING, EXPERTS
from loratlas.serving.base_outline import BaseOutline
from loratlas.serving.gguf_files.gguf_names import GgufNames, gguf_package
from loratlas.serving.updates import Updates

if TYPE_CHECKING:
    import torch


def adapter_tensors(updates: Updates, names: GgufNames, alpha: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and numbers of the file.

    Args:
        updates: of an adapter.
        names: of its base.
        alpha: of the file.

    Raises:
        ModelError: a site that llama.cpp has no tensor for, or whose adapter it cannot hold.
    """
    for site in updates.sites:
        B = site.B * (site.rank / alpha)
        if site.kind == EXPERTS:
            targets = names.experts(site.module, site.parameter)
            for name, half in zip(targets, B.chunk(len(targets), dim=1), strict=True):
                yield f"{name}.weight.lora_a", site.A
                yield f"{name}.weight.lora_b", half
            continue
        name = names.name(site.module)
        if names.base.tied and (site.kind == EMBEDDING or name == "output"):
            raise ModelError(
                given=site.module[:200],
                found="embedding and head are one tensor in a GGUF of this base, and only one of the two is adapted",
                instead="--for merged, or a placement without it",
            )
        # The embedding is looked up by rows, for which llama.cpp wants A turned.
        A = site.A.t() if site.kind == EMBEDDING else site.A
        yield f"{name}.weight.lora_a", A
        yield f"{name}.weight.lora_b", names.rows(name, B)


def write_gguf_adapter(updates: Updates, base: BaseOutline, path: Path, *, alpha: int | None = None) -> None:
    """Write the file.

    Args:
        updates: of an adapter.
        base: its outline.
        path: of the file; replaced.
        alpha: of the file; the largest rank unless given.

    Raises:
        ModelError: see :func:`adapter_tensors`; nothing is written then.
    """
    gguf = gguf_package()
    names = GgufNames(base)
    alpha = updates.rank if alpha is None else alpha
    tensors = list(adapter_tensors(updates, names, alpha))
    writer = gguf.GGUFWriter(str(path), names.type.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for name, tensor in tensors:
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
