"""A base with an adapter added in, as one GGUF file with its tokenizer."""

from __future__ import annotations

import math
from pathlib import Path

from loratlas.adapters.export.export_adapter import Export
from loratlas.adapters.export.merge_adapter import adapted_base, merged_base
from loratlas.adapters.stored.adapter_task import open_base_config
from loratlas.adapters.stored.read_adapter import read_adapter
from loratlas.errors import ModelError
from loratlas.files import whole_folder
from loratlas.models.base_tokenizer import base_tokenizer
from loratlas.models.task import CAUSAL
from loratlas.serving.gguf_files.write_gguf_model import write_gguf_model

MODEL_FILE = "model.gguf"


def export_gguf(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "float16",
    final: Path | None = None,
) -> Export:
    """Write a whole model for llama.cpp and what stands on it.

    Args:
        adapter_dir: the adapter. out: a new folder, or an earlier export.
        base: the base; None for the one that the adapter names.
        dtype: of matrices: ``float16`` or ``float32``.
        final: where ``out`` will be moved to, which the recipe names; None where it stays.

    Returns:
        The export; its ``check`` is the largest difference of the file's numbers from the merged model's, by rounding.

    Raises:
        ModelError: no adapter or base, or something that llama.cpp does otherwise; nothing is written then.
    """
    final = Path(out) if final is None else final
    contents = read_adapter(adapter_dir)
    source = str(base or contents.base or "")
    if not source:
        raise ModelError(given=str(adapter_dir), found="it does not name its base", instead="--base MODEL")
    base_source, config = open_base_config(contents, source)
    if base_source.task.name != CAUSAL:
        raise ModelError(
            given=f"a {base_source.task.name} adapter for --for gguf",
            found="GGUF is written here for causal language models",
            instead="--for merged",
        )
    model = merged_base(adapted_base(contents, source, config), source, given=str(final))
    tokenizer = base_tokenizer(source)
    if tokenizer is None:
        raise ModelError(
            given=source,
            found="a base without a tokenizer, which a GGUF file holds as well",
            instead="--for merged",
        )
    with whole_folder(Path(out), marker=MODEL_FILE) as new:
        write_gguf_model(model, tokenizer, new / MODEL_FILE, dtype=dtype)
        check = largest_difference(new / MODEL_FILE, model)
    remarks = [base_source.remark] if base_source.remark else []
    return Export(
        path=str(final),
        check=check,
        dtype=dtype,
        recipe=f"llama-server -m {final / MODEL_FILE}",
        remarks=(*remarks, f"Matrices are {dtype}, vectors float32; nothing is quantised further."),
        compared="numbers in the file",
    )


def largest_difference(path: Path, model: object) -> float:
    """Largest difference of the file's numbers from a model's, relative to the largest of each tensor."""
    import numpy as np

    from loratlas.serving.base_outline import BaseOutline
    from loratlas.serving.gguf_files.gguf_names import GgufNames, gguf_package
    from loratlas.serving.gguf_files.write_gguf_model import model_tensors

    config = model.config.to_dict()  # pyright: ignore[reportAttributeAccessIssue]
    wanted = dict(model_tensors(model, GgufNames(BaseOutline.of(config))))
    worst = 0.0
    read = {tensor.name: tensor for tensor in gguf_package().GGUFReader(path).tensors}
    if read.keys() != wanted.keys():
        return math.nan
    for name, tensor in wanted.items():
        exact = tensor.numpy()
        apart = np.abs(np.asarray(read[name].data, dtype=np.float32) - exact).max()
        worst = max(worst, float(apart) / max(float(np.abs(exact).max()), 1e-30))
    return worst
