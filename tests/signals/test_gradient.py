"""The gradient signal against whole gradients, and that it never holds one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.adapters import architectures
from tests.signals.brute import batches, by_gradient, examples, gradients, sites_of
from tests.tiny import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from loratlas.anatomy.read import read
from loratlas.data.batches.batching import collate
from loratlas.evaluation.token_losses import token_losses
from loratlas.models.quiet import quiet
from loratlas.signals.gradient import Gradient
from loratlas.signals.measure_signals import measure
from loratlas.signals.site_hooks import one_pass


def measured(model, given, sites, **options):
    signal = Gradient(**options)
    measured = measure(model, sites, given, [signal], token_losses)
    return {name: reading.values for name, reading in measured.readings.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2", "phi3"])
def test_a_sketch_as_large_as_the_matrix_is_exact(kind: str):
    model = tiny_model(kind)
    sites, given = sites_of(model), batches()
    whole = gradients(model, given, sites)
    result = measured(model, given, sites, rank=24)
    for site in sites:
        adam, energy = by_gradient(whole[site.path], 24)
        assert result["gradient_energy"][site.path] == pytest.approx(energy, rel=1e-4), site.path
        # Vectors of nearly equal singular values may turn, so that their ‖u‖₁ differ a little.
        assert result["gradient"][site.path] == pytest.approx(adam, rel=0.02), site.path


def test_a_small_sketch_is_close():
    model = tiny_model("llama")
    sites, given = sites_of(model), batches(32)
    whole = gradients(model, given, sites)
    result = measured(model, given, sites, rank=4)
    ratios = torch.tensor(
        [result["gradient_energy"][s.path] / by_gradient(whole[s.path], 4)[1] for s in sites]
    )
    # Flat spectra are the hardest: what lies beyond the sketch is folded into it.
    assert float(ratios.median()) == pytest.approx(1.2, abs=0.2)
    assert float(ratios.min()) > 0.8
    assert float(ratios.max()) < 2.2


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_stacked_experts_are_read_one_by_one(kind: str):
    model = architectures.model(kind)
    sites = [site for site in read(model.config).adaptable if site.kind == "experts"]
    assert sites, kind
    given = batches(16, packed=kind != "gpt_oss")  # whose attention has sinks, which packing does not know
    before = model.config._experts_implementation
    whole = gradients(model, given, sites)
    result = measured(model, given, sites, rank=24)
    assert model.config._experts_implementation == before
    for site in sites:
        energy = by_gradient(whole[site.path], 24)[1]
        assert result["gradient_energy"][site.path] == pytest.approx(energy, rel=1e-3), site.path


def test_bfloat16_tells_the_same_order():
    model = tiny_model("llama")
    sites, given = sites_of(model), batches(16)
    exact = measured(model, given, sites)["gradient"]
    rounded = measured(model.to(torch.bfloat16), given, sites)["gradient"]
    for path, value in exact.items():
        assert rounded[path] == pytest.approx(value, rel=0.1), path


def test_padded_rows_say_what_packed_ones_say():
    model = tiny_model("llama")
    sites = sites_of(model)
    packed, padded = (measured(model, batches(16, packed=how), sites)["gradient"] for how in (True, False))
    for path, value in packed.items():
        assert padded[path] == pytest.approx(value, rel=1e-3), path


def test_a_matrix_that_serves_several_layers_sums_its_uses():
    model = tiny_model("llama")
    layers = model.model.layers
    layers[1].mlp.up_proj = layers[0].mlp.up_proj  # one module, two uses
    (site,) = [site for site in sites_of(model) if site.path == "model.layers.0.mlp.up_proj.weight"]
    given = batches(8)
    energy = by_gradient(gradients(model, given, [site])[site.path], 24)[1]
    assert measured(model, given, [site], rank=24)["gradient_energy"][site.path] == pytest.approx(
        energy, rel=1e-4
    )


def test_a_matrix_under_several_names_sums_its_uses():
    model = tiny_model("llama")
    layers, name = model.model.layers, "model.layers.{}.mlp.up_proj.weight"
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight  # two modules, one parameter
    (site,) = [site for site in sites_of(model) if site.path == name.format(0)]
    both, given = replace(site, called_as=(name.format(0), name.format(1))), batches(8)
    energy = by_gradient(gradients(model, given, [site])[site.path], 24)[1]
    result = measured(model, given, [both], rank=24)["gradient_energy"]
    assert result == {site.path: pytest.approx(energy, rel=1e-4)}
    assert measured(model, given, [site], rank=24)["gradient_energy"] != result


def test_fisher_is_the_mean_of_single_examples():
    model = tiny_model("llama")
    sites, rows = sites_of(model)[:7], examples(8)
    single = [collate([row], packed=True) for row in rows]
    wanted = {site.path: 0.0 for site in sites}
    for batch in single:
        for path, G in gradients(model, [batch], sites).items():
            wanted[path] += float((G * batch.labelled).square().sum()) / len(rows)
    result = measured(
        model, [collate(rows[:4], packed=True), collate(rows[4:], packed=True)], sites, fisher=True
    )
    for path, value in wanted.items():
        assert result["fisher"][path] == pytest.approx(value, rel=1e-4), path


def test_gains_add_up_to_the_score():
    model = tiny_model("llama")
    sites, given = sites_of(model), batches(16)
    signal = Gradient(rank=4)
    for reading in measure(model, sites, given, [signal], token_losses, ranks=60).readings.values():
        assert reading.gains is not None
        for site in sites:
            gains = reading.gains[site.path]
            assert len(gains) == min(60, site.max_rank)
            assert sum(gains[:4]) == pytest.approx(reading.values[site.path])
            assert min(gains) >= 0


class _Shapes(TorchDispatchMode):
    """Shapes of all results that are not views of the model's weights."""

    def __init__(self, model) -> None:
        super().__init__()
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outcome = func(*args, **(kwargs or {}))
        for result in outcome if isinstance(outcome, (tuple, list)) else (outcome,):
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in self.own:
                self.seen.add(tuple(result.shape))
        return outcome


def test_no_tensor_of_a_weights_size_is_made():
    model = tiny_model("llama", num_key_value_heads=6, intermediate_size=176)
    sites, (batch,) = sites_of(model), batches(4)
    shapes = {site.shape for site in sites} | {site.shape[::-1] for site in sites}
    signal = Gradient(rank=4)
    signal.begin(model, sites)
    with _Shapes(model) as watched:
        one_pass(model, batch, sites, [signal], token_losses)
    assert not watched.seen & shapes
    with _Shapes(model) as control:  # what the test looks for is there where a weight requires a gradient
        gradients(model, [batch], sites)
    assert control.seen & shapes
    # What it keeps between passes: k·d_out + l·d_in numbers a site, k = 2r, l = 3k.
    held = sum(tensor.numel() for tensor in signal.held())
    assert held == sum(8 * site.shape[0] + 24 * site.shape[1] for site in sites)


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama").train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    measured(model, batches(8), sites_of(model))
    assert model.training
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_quantised_bases_are_read_by_their_modules():
    pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is tested in a process of its own, see the Makefile"
    )
    from loratlas.sources import open_model

    with quiet():
        base = open_model("demo:llama-mini", dtype="float32", quantize="4bit")
    plain = open_model("demo:llama-mini", dtype="float32")
    sites = [site for site in sites_of(plain) if site.layer in (3, 4)]
    given = batches(8, vocabulary=8000)
    exact, coarse = (measured(model, given, sites)["gradient"] for model in (plain, base))
    for path, value in exact.items():
        assert coarse[path] == pytest.approx(value, rel=0.5), path
