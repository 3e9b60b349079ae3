"""How llama.cpp names what transformers calls something else, and how it turns rows of q and k.

Names come from the tables of the ``gguf`` package, which is llama.cpp's own. What stands here beside them is which
types are written, and the one change of numbers that touches adapters: llama's q and k keep the two halves of a rotated
pair next to each other, so that their rows are interleaved, and those of B with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.errors import ModelError
from loratlas.serving.base_outline import BaseOutline

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufType:
    """One architecture of llama.cpp.

    Args:
        arch: llama.cpp's name of it.
        interleaved: whether rows of q and k are.
        unit_norms: whether norms are stored with their 1 added (gemma).
    """

    arch: str
    interleaved: bool = False
    unit_norms: bool = False


GGUF_TYPES = {
    "llama": GgufType(arch="llama", interleaved=True),
    "mistral": GgufType(arch="llama", interleaved=True),
    "mixtral": GgufType(arch="llama", interleaved=True),
    "qwen2": GgufType(arch="qwen2"),
    "qwen3": GgufType(arch="qwen3"),
    "qwen3_moe": GgufType(arch="qwen3moe"),
    "gemma": GgufType(arch="gemma", unit_norms=True),
    "gemma2": GgufType(arch="gemma2", unit_norms=True),
    "gemma3_text": GgufType(arch="gemma3", unit_norms=True),
    "gpt2": GgufType(arch="gpt2"),
}
"""transformers' type → llama.cpp's; each of them is compared with PEFT in llama.cpp itself."""


class GgufNames:
    """Names of one base's matrices in llama.cpp.

    Args:
        base: its outline.

    Raises:
        ModelError: a type that is not written here.
    """

    def __init__(self, base: BaseOutline) -> None:
        gguf = gguf_package()
        if base.model_type not in GGUF_TYPES:
            raise ModelError(
                given=f"a base of type {base.model_type or 'unknown'!r}",
                found="GGUF is written here for " + ", ".join(GGUF_TYPES),
                instead="--for merged, and llama.cpp's own convert_hf_to_gguf.py on that folder",
            )
        self.base = base
        self.type = GGUF_TYPES[base.model_type]
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.type.arch)
        self._map = gguf.get_tensor_name_map(arch, int(base.layers or 0))

    def name(self, module: str) -> str:
        """llama.cpp's name of a module, without ``.weight``.

        Raises:
            ModelError: it has none.
        """
        name = self._map.get_name(module)
        if name is None:
            raise ModelError(
                given=module[:200],
                found=f"llama.cpp's {self.type.arch} has no tensor for it",
                instead="a placement without it, or --for merged",
            )
        return name

    def experts(self, module: str, parameter: str) -> tuple[str, ...]:
        """llama.cpp's names of a stack of experts; two of a fused gate and up, which it keeps apart."""
        leaves = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(parameter)
        if leaves is None:
            raise ModelError(
                given=f"{module}.{parameter}"[:200],
                found="a stack of experts that llama.cpp has no tensor for",
                instead="--for merged",
            )
        return tuple(self.name(f"{module}.{leaf}") for leaf in leaves)

    def rows(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        """Rows of a matrix, or of B, in llama.cpp's order.

        Args:
            name: llama.cpp's, of :meth:`name`.
            matrix: [d_out, …].
        """
        heads = {"attn_q": self.base.heads, "attn_k": self.base.kv_heads}.get(name.rpartition(".")[2])
        if not self.type.interleaved or not heads:
            return matrix
        return interleaved_rows(matrix, heads)


def interleaved_rows(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head as first half, second half → pairs.

    >>> import torch
    >>> interleaved_rows(torch.arange(8.0).reshape(8, 1), 2).flatten().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    d_out = matrix.shape[0]
    halves = matrix.reshape(heads, 2, d_out // heads // 2, *matrix.shape[1:])
    return halves.transpose(1, 2).reshape(matrix.shape).contiguous()


def gguf_package() -> Any:
    """The ``gguf`` package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            given="a GGUF file", found="the package gguf is not installed", instead="pip install gguf"
        ) from error
    return gguf
