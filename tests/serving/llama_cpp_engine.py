"""llama.cpp itself, through xllamacpp: next-token log-probabilities of token ids, with and without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def llama_cpp() -> Any:
    """The module, or a skip that says how it is installed."""
    return pytest.importorskip(
        "xllamacpp",
        reason="needs llama.cpp: make test installs xllamacpp into .venv/engines and puts it on the path",
    )


def log_probabilities(
    model: Path, tokens: list[int], vocabulary: int, adapter: Path | None = None
) -> torch.Tensor:
    """Log-probabilities of the token that follows, of all tokens: [vocabulary]."""
    engine = llama_cpp()
    params = engine.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.warmup, params.verbosity = False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if adapter is not None:
        params.lora_adapters = [engine.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = engine.Server(params)
    answer = server.handle_completions(
        {"prompt": tokens, "n_predict": 1, "n_probs": vocabulary, "temperature": -1, "cache_prompt": False}
    )
    outcome = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
    result = torch.full((vocabulary,), float("nan"))
    for entry in outcome[0]["top_logprobs"]:
        result[entry["id"]] = entry["logprob"]
    assert not result.isnan().any(), "llama.cpp left tokens out"
    return result
