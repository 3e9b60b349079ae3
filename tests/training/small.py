"""Small models with adapters, and rows for them, shared by the tests of this room."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from tests.tiny import CONTEXT, VOCABULARY, tiny_model

from loratlas.data.examples import Encoded, EncodeReport, Example

SITES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def encoded(n: int = 24, *, seed: int = 0, longest: int = CONTEXT // 2) -> Encoded:
    """``n`` examples of random tokens, 3 to ``longest`` long, an unlike share of each counted."""
    random = np.random.default_rng(seed)
    examples = []
    for row in range(n):
        length = int(random.integers(3, longest + 1))
        labelled = np.arange(length) >= random.integers(1, length)
        ids = random.integers(3, VOCABULARY, length).astype(np.int32)
        examples.append(Example(input_ids=ids, labelled=labelled, row=row))
    return wrap(examples)


def wrap(examples: list[Example]) -> Encoded:
    """Examples as `encode` returns them."""
    tokens, answers = sum(len(e) for e in examples), sum(int(e.labelled.sum()) for e in examples)
    n = len(examples)
    report = EncodeReport(rows=n, kept=n, cut=0, dropped=0, empty=0, tokens=tokens, answer_tokens=answers)
    digest = f"{zlib.crc32(b''.join(e.input_ids.tobytes() + e.labelled.tobytes() for e in examples)):x}"
    return Encoded(
        examples=tuple(examples), report=report, digest=digest, template="", pad_id=0, source="random"
    )


def adapted(
    kind: str = "llama", *, seed: int = 0, rank: int = 4, dtype: str = "float32", **options: Any
) -> Any:
    """A tiny model that carries adapters at all linear maps of its layers, B drawn too so that all gradients live."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = tiny_model(kind).to(getattr(torch, dtype))
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=SITES[kind],
        init_lora_weights=options.pop("init", True),
        fan_in_fan_out=kind == "gpt2",
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if parameter.requires_grad and ".lora_B." in name:
                    parameter.normal_(std=0.05)
    return peft_model


def weights(model: Any) -> dict[str, Any]:
    """Copies of the trainable parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
