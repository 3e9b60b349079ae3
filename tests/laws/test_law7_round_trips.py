"""Law 7 on all model types: merge ≡ forward; export → load → logits equal; JSON → plan → JSON is the identity."""

from __future__ import annotations

import json

import pytest
from tests.tiny import TYPES, tiny_anatomy, tiny_model

from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.placement.plan import Plan, place


@pytest.mark.parametrize("model_type", TYPES)
def test_save_load_merge(tmp_path, model_type):
    import torch

    plan = place(tiny_anatomy(model_type), "attention@top/2:3 + feedforward:2", rslora=model_type < "h")
    adapted = plan.attach(tiny_model(model_type), seed=2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    tokens = torch.arange(3, 27)[None]

    def logits(model):
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=False).logits

    wanted = logits(adapted)
    assert not torch.allclose(logits(tiny_model(model_type)), wanted, atol=1e-4)
    save_adapter(adapted, tmp_path / "adapter", plan_json=plan.to_json())
    again = load_adapter(tiny_model(model_type), tmp_path / "adapter")
    assert torch.equal(logits(again), wanted)
    torch.testing.assert_close(logits(again.merge_and_unload()), wanted, rtol=1e-4, atol=1e-4)
    written = json.loads((tmp_path / "adapter/loratlas.json").read_text())["plan"]
    assert Plan.from_json(written) == plan
    assert Plan.from_json(written).to_json() == written
