"""What is measured in a run equals what is worked out beside it."""

from __future__ import annotations

import math

import pytest
import torch
from tests.dynamic.test_controller import SITES, hook, settings
from tests.tiny import HEADS
from tests.training.small import adapted, encoded

from loratlas.adapters.peft_targets import adapted as layers_of
from loratlas.adapters.resize import resize
from loratlas.dynamic.attention_watch import patterns_moved
from loratlas.dynamic.gradient_watch import GradientWatch
from loratlas.dynamic.site_statistics import SiteStatistics
from loratlas.evaluation.token_losses import token_losses
from loratlas.training.loop import fit
from loratlas.training.loss_change import LossChangeAllocation
from loratlas.training.run_hooks import RunHook
from loratlas.training.step.microbatches import microbatches

MODULES = {site.path: site.module for site in SITES}


class Watch(RunHook):
    """Statistics of the first steps, and what they are made of."""

    name = "watch"

    def __init__(self, steps):
        self.steps = steps
        self.statistics = SiteStatistics(MODULES, sensitivity=True)
        self.weights, self.gradients = [], []

    def on_gradient(self, run):
        if not self.weights:
            self.statistics.begin(run, self.steps)
        self.weights.append({name: view.clone() for name, view in run.masters.named()})
        self.gradients.append(
            {
                name: g.clone()
                for group in run.masters.groups
                for name, g in zip(group.names, group.gradients, strict=True)
            }
        )
        self.statistics.on_gradient(run)

    def after_step(self, run, event):
        if event.step == self.steps:
            self.weights.append({name: view.clone() for name, view in run.masters.named()})
            self.measured = self.statistics.measured(run)
            self.directions = self.statistics.directions(run)
            self.spectra = self.statistics.spectra(run)


def factors(path):
    stem = f"base_model.model.{path.removesuffix('.weight')}"
    return f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"


def test_statistics_are_what_their_formulas_say():
    watch = Watch(6)
    descents = LossChangeAllocation()
    fit(adapted(), encoded(20), settings(steps=6), hooks=[watch, descents], packed=True)
    W, G = watch.weights, watch.gradients
    path = SITES[4].path
    a, b = factors(path)
    # energy, with the product written out; the middle is after 3 of 6 steps
    product = [2.0 * (w[b].double() @ w[a].double()) for w in W]
    energy = watch.measured["energy"]
    assert energy.whole[path] == pytest.approx(float((product[6] - product[0]).square().sum()), rel=1e-5)
    assert energy.first[path] == pytest.approx(float((product[3] - product[0]).square().sum()), rel=1e-4)
    assert energy.second[path] == pytest.approx(float((product[6] - product[3]).square().sum()), rel=1e-4)
    steps = [
        {n: (W[t + 1][n] - W[t][n]).double() for n in (a, b)} for t in range(5)
    ]  # those whose end a gradient was taken at
    fell = [-sum(float((G[t + 1][n].double() * steps[t][n]).sum()) for n in (a, b)) for t in range(5)]
    descent = watch.measured["descent"]
    assert descent.whole[path] == pytest.approx(sum(fell[2:]), rel=1e-4)
    assert descent.first[path] == pytest.approx(fell[2] + fell[4], rel=1e-4)
    assert descent.second[path] == pytest.approx(fell[3], rel=1e-4)
    assert sum(fell) == pytest.approx(descents.values()[a] + descents.values()[b], rel=1e-4)
    turned = sum(
        float(((G[t + 1][n] - G[t][n]).double() * steps[t][n]).sum()) for t in range(5) for n in (a, b)
    )
    length = sum(float(steps[t][n].square().sum()) for t in range(5) for n in (a, b))
    assert watch.measured["curvature"].whole[path] == pytest.approx(turned / length, rel=1e-3)
    mean, spread = torch.zeros_like(W[0][a]), torch.zeros_like(W[0][a])
    for w, g in zip(W, G, strict=False):
        value = (w[a] * g[a]).abs()
        mean = 0.85 * mean + 0.15 * value
        spread = 0.85 * spread + 0.15 * (value - mean).abs()
    columns = watch.directions["sensitivity"][path]
    assert len(columns) == 4
    meanB, spreadB = torch.zeros_like(W[0][b]), torch.zeros_like(W[0][b])
    for w, g in zip(W, G, strict=False):
        value = (w[b] * g[b]).abs()
        meanB = 0.85 * meanB + 0.15 * value
        spreadB = 0.85 * spreadB + 0.15 * (value - meanB).abs()
    expected = (mean * spread).mean(1) + (meanB * spreadB).mean(0)
    assert columns == pytest.approx(expected.tolist(), rel=1e-3)
    assert watch.spectra[path] == pytest.approx(torch.linalg.svdvals(product[6])[:4].tolist(), rel=1e-4)


def test_the_sketch_sees_the_gradient_of_the_weight_itself():
    """At a site with an adapter and at one without: leading directions and size of ∂L/∂W, taken by autograd."""
    model = adapted()
    gone = SITES[5].path
    resize(model, {gone: 0})
    watch = GradientWatch(tuple(SITES), MODULES, seed=3)
    (batch,) = microbatches(encoded(20), range(8), packed=True)
    base = model.get_base_model()
    kept = {path: base.get_submodule(MODULES[path]) for path in (gone, SITES[9].path)}
    weights = {
        path: layer.base_layer.weight if hasattr(layer, "base_layer") else layer.weight
        for path, layer in kept.items()
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    for _ in range(2):
        watch.attach(model)
        model.zero_grad()
        (token_losses(model, batch).sum() / batch.labelled).backward()
        watch.detach()
    assert not any(module._forward_hooks for module in base.modules())
    measured = watch.measured()
    assert measured is not None
    for path, weight in weights.items():
        U, sigma, Vt = torch.linalg.svd(weight.grad.double())
        exact = float((sigma[:2] * U[:, :2].abs().sum(0)).sum())
        assert measured.whole[path] == pytest.approx(exact, rel=0.25)
        assert measured.first[path] == pytest.approx(measured.second[path], rel=1e-3)
        result = watch.directions()[path]
        assert abs(float(result[0] @ Vt[0])) > 0.9
    sketch = sum(2 * (4 + 12) * sum(site.shape) for site in SITES)  # k = 4 columns, l = 12 rows
    step = sum(4 * site.shape[0] * site.shape[1] for site in SITES)
    assert sketch / step / watch.every <= 0.03 < sketch / step / (watch.every - 1)


def test_patterns_move_by_as_much_as_they_differ():
    """Two layers' patterns, written out from eager attention with and without the adapters."""
    model = adapted()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(10)
    (batch,) = microbatches(encoded(20), range(3), packed=False)
    moved, _ = patterns_moved(model, [batch])
    base = model.get_base_model()
    base.config._attn_implementation = "eager"

    def patterns():
        with torch.no_grad():
            return model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True
            ).attentions

    now = patterns()
    with model.disable_adapter():
        before = patterns()
    for layer in range(3):
        for row, n in enumerate(batch.lengths):
            gone = (now[layer][row, :, :n, :n] - before[layer][row, :, :n, :n]).abs().sum((0, 2)).mean() / 2
            assert moved[f"model.layers.{layer}.self_attn"][row] == pytest.approx(float(gone), rel=1e-3)
    assert len(layers_of(model)) == 21


@pytest.mark.parametrize("packed", [False, True])
def test_entropy_of_heads_where_every_pattern_is_known(packed):
    """Queries of zero look at all tokens so far alike: ln t at the t-th, whatever the keys. Adapters look closer."""
    model = adapted()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "q_proj.base_layer" in name:
                p.zero_()
            if "lora_B" in name:
                p.mul_(30)
    batches = list(microbatches(encoded(20), range(6), packed=packed, size=4))
    _, entropy = patterns_moved(model, batches)
    lengths = [
        len(encoded(20).examples[row]) for row in range(6)
    ]  # what fills a packed batch up is none of them
    expected = sum(math.log(t) for n in lengths for t in range(1, n + 1)) / sum(lengths)
    assert list(entropy) == [f"model.layers.{layer}.self_attn" for layer in range(3)]
    for heads in entropy.values():
        assert heads["base"] == pytest.approx([expected] * HEADS, rel=1e-5)
        assert len(heads["adapted"]) == HEADS
        assert max(heads["adapted"]) < expected
        assert len(set(heads["adapted"])) == HEADS


def test_a_decision_by_attention_keeps_the_entropy_of_every_head():
    controller = hook("attention")
    fit(adapted(), encoded(20), settings(), hooks=[controller], packed=True)
    (decision,) = controller.decisions
    kept = decision.to_json()["head_entropy"]
    assert list(kept) == [f"model.layers.{layer}.self_attn" for layer in range(3)]
    assert {len(heads[which]) for heads in kept.values() for which in ("base", "adapted")} == {HEADS}
    assert all(heads["base"] != heads["adapted"] for heads in kept.values())
    other = hook("random")
    fit(adapted(), encoded(20), settings(), hooks=[other], packed=True)
    assert "head_entropy" not in other.decisions[0].to_json()
