"""What is made once more equals what was there, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch
from tests.signals.brute import batches, sites_of
from tests.tiny import tiny_model

from loratlas.evaluation.token_losses import token_losses
from loratlas.signals.rematerialize import Rematerialize


def seen(model, rematerialize: Rematerialize) -> dict[str, tuple[bool, torch.Tensor, torch.Tensor]]:
    """Role → (whether it was remade, what was there, what was made in the backward pass), of layer 1."""
    by_name = {}
    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.detach().requires_grad_())
    ]

    def watch(site):
        def hook(module, arguments, output):
            make = rematerialize(site.path, arguments[0])
            there = arguments[0].detach().clone()
            output.register_hook(
                lambda g: by_name.update(
                    {site.role: (rematerialize._proven[site.path], there, make().detach())}
                )
            )

        return hook

    for site in sites_of(model):
        if site.layer == 1:
            hooks.append(model.get_submodule(site.module).register_forward_hook(watch(site)))
    token_losses(model, batches(4)[0]).sum().backward()
    for hook in hooks:
        hook.remove()
    return by_name


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        ("llama", {"attn.o"}),
        ("gpt2", {"attn.o"}),
        ("opt", {"attn.o"}),
        ("gemma2", {"attn.o"}),
        ("gpt_neox", {"attn.o"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_gates_are_remade(kind, held, dtype):
    model, rematerialize = tiny_model(kind).to(dtype), Rematerialize()
    for _ in range(2):  # proven at the first pass, taken for granted at the second
        result = seen(model, rematerialize)
        assert {role for role, (remade, _, _) in result.items() if not remade} == held
        for role, (_, there, made) in result.items():
            off = float((made.float() - there.float()).norm() / there.float().norm())
            assert off <= (1e-2 if dtype == torch.bfloat16 else 1e-6), role


def test_what_comes_out_otherwise_is_held(monkeypatch):
    from loratlas.signals import rematerialize as room

    wrong = dict.fromkeys(room._STEPS, lambda node, depth: lambda: torch.zeros(3))
    monkeypatch.setattr(room, "_STEPS", wrong)
    result = seen(tiny_model("llama"), Rematerialize())
    assert not any(remade for remade, _, _ in result.values())
    assert all(torch.equal(there, made) for _, there, made in result.values())
