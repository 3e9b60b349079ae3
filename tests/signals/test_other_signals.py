"""Activation, alignment, attention and spectrum against the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.signals.brute import batches, examples, sites_of
from tests.tiny import tiny_model

from loratlas.data.batches.batching import collate
from loratlas.evaluation.token_losses import token_losses
from loratlas.models.quiet import quiet
from loratlas.signals.activation import Activation
from loratlas.signals.alignment import Alignment
from loratlas.signals.attention import Attention, AttentionHeads
from loratlas.signals.measure_signals import measure
from loratlas.signals.spectrum import Spectrum


def values(model, given, sites, signal):
    measured = measure(model, sites, given, [signal], token_losses)
    return {name: reading.values for name, reading in measured.readings.items()}


def recorded(model, given, sites):
    """Path → (all inputs [T, d_in], all output gradients [T, d_out]), padding left out."""
    by_name = {site.path: ([], []) for site in sites}
    for batch in given:
        hooks, real = [], batch.example.reshape(-1) >= 0

        def hook(path, real):
            def keep(module, arguments, output):
                by_name[path][0].append(arguments[0].detach().flatten(0, -2)[real])
                output.register_hook(lambda g: by_name[path][1].append(g.flatten(0, -2)[real]))

            return keep

        for site in sites:
            hooks.append(model.get_submodule(site.module).register_forward_hook(hook(site.path, real)))
        begin = model.get_input_embeddings().register_forward_hook(
            lambda m, a, output: output.requires_grad_(True)
        )
        token_losses(model, batch).sum().backward()
        for one in (*hooks, begin):
            one.remove()
    return {path: (torch.cat(x).double(), torch.cat(g).double()) for path, (x, g) in by_name.items()}


@pytest.mark.parametrize(("kind", "packed"), [("llama", True), ("gpt2", False)])
def test_activation_is_the_explained_variance(kind: str, packed: bool):
    model = tiny_model(kind)
    sites, given = sites_of(model), batches(16, packed=packed)
    numbers = values(model, given, sites, Activation(rank=16))  # k = 48, the width of most matrices
    for path, (x, g) in recorded(model, given, sites).items():
        inputs = torch.linalg.eigvalsh(torch.cov(x.t())).flip(0)
        eigenvalues = torch.linalg.eigvalsh(g.t() @ g).flip(0)
        assert numbers["activation"][path] == pytest.approx(
            float(inputs[:16].sum() / inputs.sum()), rel=0.001 if x.shape[1] <= 48 else 0.15
        )
        assert numbers["activation_gradient"][path] == pytest.approx(
            float(eigenvalues[:16].sum() / eigenvalues.sum()), rel=0.001 if g.shape[1] <= 48 else 0.15
        )


def test_activation_cannot_tell_sites_of_one_input_apart():
    model = tiny_model("llama")
    result = values(model, batches(8), sites_of(model), Activation())["activation"]
    q, k, v = (result[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv")
    assert q == k == v


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_alignment_is_plops_normalised_feature_norm(kind: str):
    model = tiny_model(kind)
    sites, given = sites_of(model), batches(16)
    result = values(model, given, sites, Alignment())["alignment"]
    random = torch.Generator().manual_seed(1)
    for site in sites:
        x, _ = recorded(model, given, [site])[site.path]
        W = model.get_parameter(site.path).double()
        W = W.t() if "transposed" in site.flags else W
        # The published formula: a Gaussian vector of the token's own norm in place of each token.
        z = torch.randn(40, *x.shape, generator=random, dtype=torch.float64)
        z = z / z.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
        wanted = ((x @ W.t()).norm(dim=-1) / (z @ W.t()).norm(dim=-1)).mean()
        assert result[site.path] == pytest.approx(float(wanted), rel=0.08), site.path


def test_padding_is_left_out():
    model = tiny_model("llama")
    sites = sites_of(model)
    for signal in (Alignment(), Activation(), Attention()):
        packed, padded = (values(model, batches(16, packed=how), sites, signal) for how in (True, False))
        for name, by_path in packed.items():
            for path, value in by_path.items():
                assert padded[name][path] == pytest.approx(value, rel=2e-3), (name, path)


def test_entropy_is_that_of_the_models_own_patterns():
    model = tiny_model("llama")
    rows = examples(4)
    with quiet():
        model.set_attn_implementation("eager")
    sums, queries = torch.zeros(3, 6), 0
    for row in rows:
        patterns = model(torch.from_numpy(row.input_ids).long()[None], output_attentions=True).attentions
        sums += torch.stack([torch.special.entr(p[0]).sum((1, 2)) for p in patterns])
        queries += len(row)
    with quiet():
        model.set_attn_implementation("sdpa")
    signal = Attention()
    numbers = values(model, [collate([row], packed=True) for row in rows], sites_of(model), signal)
    for layer in range(3):
        path = f"model.layers.{layer}.self_attn.k_proj.weight"
        assert numbers["attention_entropy"][path] == pytest.approx(
            float(sums[layer].sum()) / queries, rel=1e-4
        )
        assert len(signal.heads(path)["attention"]) == 6
    assert "model.layers.0.mlp.up_proj.weight" not in numbers["attention"]


@pytest.mark.parametrize("window", [None, 3])
def test_movement_is_the_derivative_of_the_pattern(window):
    batch = collate(examples(3), packed=True)
    random = torch.Generator().manual_seed(0)
    tokens = batch.input_ids.shape[1]
    q = torch.randn(1, 4, tokens, 8, generator=random, dtype=torch.float64)
    k, v = (torch.randn(1, 2, tokens, 8, generator=random, dtype=torch.float64) for _ in range(2))
    g = torch.randn(1, tokens, 4, 8, generator=random, dtype=torch.float64)
    moved = AttentionHeads(q, k, v, 0.3, window, batch).movement(g)
    wanted, start = torch.zeros(4, dtype=torch.float64), 0
    for n in batch.lengths:
        here = slice(start, start + n)
        start += n
        keys, vs = (x[0, :, here].repeat_interleave(2, 0) for x in (k, v))
        seen = torch.ones(n, n).tril().bool()
        if window:
            seen &= ~torch.ones(n, n).tril(-window).bool()
        scores = ((q[0, :, here] @ keys.mT) * 0.3).requires_grad_()

        def pattern(s, seen=seen):
            return s.masked_fill(~seen, float("-inf")).softmax(-1)

        loss = ((pattern(scores) @ vs) * g[0, here].transpose(0, 1)).sum()
        (D,) = torch.autograd.grad(loss, scores)
        _, change = torch.func.jvp(pattern, (scores.detach(),), (D,))
        wanted += change.abs().sum((1, 2)) / 2
    assert torch.allclose(moved.double(), wanted, rtol=1e-4)


def test_spectrum_is_numpys():
    model = tiny_model("gpt2")
    sites = sites_of(model)
    numbers = values(model, [], sites, Spectrum())
    for site in sites:
        W = model.get_parameter(site.path).numpy().astype(np.float64)
        sigma = np.linalg.svd(W, compute_uv=False)
        assert numbers["spectrum"][site.path] == pytest.approx(np.log10(np.linalg.cond(W)), rel=1e-3)
        assert numbers["stable_rank"][site.path] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-4)
