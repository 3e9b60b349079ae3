"""Published rules on examples small enough to be worked out by hand, and what they look at on a real base."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from benchmarks.dynamic.cases import Case, Opened
from benchmarks.oracle import published, statistics
from benchmarks.oracle.published import (
    aletheia,
    dom_lora,
    eva,
    fim_lora,
    gora,
    lora_drop,
    proportional,
    sr_lora,
)

from loratlas.anatomy.sites import Site
from loratlas.evaluation.token_losses import token_losses
from loratlas.scan.plan_from_scores import candidates
from loratlas.signals.site_hooks import one_pass


def site(name: str, *, layer: int = 0, shape: tuple[int, int] = (8, 8)) -> Site:
    return Site(
        path=f"{name}.weight",
        module=name,
        layer=layer,
        scope="decoder",
        role="attn.q",
        shape=shape,
        kind="linear",
    )


A, B, C, D = (site(name, layer=layer) for name, layer in zip("abcd", (0, 0, 1, 1), strict=True))
FOUR = [A, B, C, D]  # a rank costs 16 parameters at each of them


def values(*numbers: float) -> dict[str, float]:
    return {each.path: number for each, number in zip(FOUR, numbers, strict=False)}


def ranks(*numbers: int) -> dict[str, int]:
    return {each.path: rank for each, rank in zip(FOUR, numbers, strict=True) if rank}


def test_proportional_ranks_cost_what_fits():
    assert proportional(values(4, 2, 1, 1), FOUR, 8 * 16) == ranks(4, 2, 1, 1)
    assert proportional(values(1, 1, 1, 1), FOUR, 4 * 16 + 15) == ranks(1, 1, 1, 1)
    assert sum(proportional(values(3, 2, 2, 0), FOUR, 5 * 16).values()) == 5
    assert D.path not in proportional(values(3, 2, 2, 0), FOUR, 5 * 16)


def test_bounds_hold_and_no_matrix_gets_more_than_its_own_size():
    assert proportional(values(9, 1, 1, 1), FOUR, 8 * 16, most=3)[A.path] == 3
    assert proportional(values(1, 0, 0, 0), FOUR, 99 * 16) == ranks(8, 0, 0, 0)
    assert min(proportional(values(9, 1, 0, 0), FOUR, 8 * 16, least=1).values()) == 1


def test_gora_divides_shares_by_the_root_of_the_perimeter():
    wide = site("w", shape=(8, 56))  # √64 = 8, where √16 = 4
    importance = {A.path: 1.0, wide.path: 2.0}
    # a / √(m + n): 1/4 and 2/8 are alike, so are the ranks; together 16 + 64 a rank.
    assert gora(importance, [A, wide], 2 * 80) == {A.path: 2, wide.path: 2}


def test_gora_stays_between_half_and_four_times_the_reference():
    result = gora(values(1000, 1, 1, 1), FOUR, 8 * 16)  # reference 2: from 1 to 8
    assert min(result.values()) >= 1
    assert result[A.path] == 5
    assert gora(values(1000, 1, 1, 1), FOUR, 4 * 16)[A.path] == 4  # reference 1: from 0 to 4


def test_fim_lora_is_in_proportion_to_squared_gradients():
    assert fim_lora(values(3, 3, 1, 1), FOUR, 8 * 16) == ranks(3, 3, 1, 1)


def test_dom_lora_fills_the_dominant_matrix_first():
    assert dom_lora(values(1, 5, 2, 3), FOUR, 8 * 16) == ranks(0, 8, 0, 0)
    assert dom_lora(values(1, 5, 2, 3), FOUR, 10 * 16) == ranks(0, 8, 0, 2)


def test_aletheia_takes_the_half_of_the_layers_with_the_larger_norms():
    # Layer 0: √(9 + 9) = 4.2; layer 1: √(0 + 25) = 5.
    assert aletheia(values(3, 3, 0, 5), FOUR, 4 * 16) == ranks(0, 0, 2, 2)


def test_sr_lora_is_in_proportion_to_stable_ranks():
    assert sr_lora(values(2, 1, 1, 4), FOUR, 8 * 16) == ranks(2, 1, 1, 4)


def test_lora_drop_keeps_nine_tenths_of_the_outputs():
    # 60 + 25 < 90 %, 60 + 25 + 10 ≥ 90 %.
    assert lora_drop(values(60, 25, 10, 5), FOUR, 6 * 16) == ranks(2, 2, 2, 0)


def test_eva_takes_components_in_order_up_to_twice_the_reference():
    shares = {A.path: [0.5, 0.3, 0.15], B.path: [0.4, 0.1], C.path: [0.05], D.path: [0.04]}
    # Reference 1, cap 2: a's third component (0.15) is not taken, though larger than b's second (0.1).
    assert eva(shares, FOUR, 4 * 16) == ranks(2, 2, 0, 0)


def test_plop_takes_the_three_types_with_the_lowest_mean():
    roles = ("attn.q", "attn.k", "ffn.up", "ffn.down")
    sites = [replace(each, role=role) for each, role in zip(FOUR, roles, strict=True)]
    assert published.plop(values(4, 1, 2, 3), sites, 6 * 16) == ranks(0, 2, 2, 2)


def test_kappatune_takes_the_third_with_the_lowest_condition_numbers():
    assert published.kappatune(values(9, 2, 5, 7), FOUR, 4 * 16) == ranks(0, 4, 0, 0)


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened(Case(base="demo:llama-mini", task="sorting", batch=2, held_out=4))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "BATCHES", 2)
    monkeypatch.setattr(statistics, "ROWS", 2)


def test_gradients_are_those_of_the_mean_loss_and_leave_the_base_as_it_was(opened: Opened):
    sites = candidates(opened.anatomy)
    batches = statistics.calibration(opened.train, seed=0, packed=opened.packed)
    result = statistics.gradients(opened.model, sites, batches)
    assert all(len(listed) == len(sites) for listed in result.values())
    assert not any(p.requires_grad and p.grad is not None for p in opened.model.parameters())

    one = opened.model.get_parameter(sites[0].path)
    one.requires_grad_(True)
    total = torch.zeros_like(one, dtype=torch.float32)
    for batch in batches:
        (gradient,) = torch.autograd.grad(token_losses(opened.model, batch).sum() / batch.labelled, one)
        total += gradient.float() / len(batches)
    one.requires_grad_(False)
    assert result["norm"][sites[0].path] == pytest.approx(float(total.norm()), rel=1e-3)
    assert result["importance"][sites[0].path] == pytest.approx(
        float((one.float() * total).abs().mean()), rel=1e-3
    )


class Calibrated:
    """Stands for a calibration batch: its loss is Σ G ⊙ W per labelled token, so that its gradient is G."""

    labelled = 3

    def __init__(self, gradient: list[list[float]]) -> None:
        self.gradient = torch.tensor(gradient)

    def to(self, _: object) -> Calibrated:
        return self


@pytest.mark.parametrize("flags", [frozenset(), frozenset({"transposed"})])
def test_fisher_and_page_of_two_gradients_as_on_paper(flags, monkeypatch: pytest.MonkeyPatch):
    """W = (1 −1; ½ 2), √2 A = (1 0; 1 1), gradients (1 2; 3 4) and (3 0; 1 2), with mean (2 1; 2 3).

    √2 G Aᵀ is (1 3; 3 7) and (3 3; 1 3), of the mean (2 3; 2 5). So fisher is ½ (68/8 + 28/8) = 6, page 42/2 = 21,
    the norm √18, and importance (2 + 1 + 1 + 6)/4.
    """
    turned = "transposed" in flags

    def losses(model: torch.nn.Module, batch: Calibrated) -> torch.Tensor:
        weight = model.get_parameter("a.weight")
        return batch.labelled * batch.gradient * (weight.t() if turned else weight)

    weight = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False)}).requires_grad_(False)
    with torch.no_grad():
        model["a"].weight.copy_(weight.t() if turned else weight)
    monkeypatch.setattr("loratlas.evaluation.token_losses.token_losses", losses)
    monkeypatch.setattr(statistics, "PROJECTED", 2)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[1.0, 0.5], [1.0, 1.0]]))
    one = replace(site("a", shape=(2, 2)), flags=flags)
    batches = [Calibrated([[1.0, 2.0], [3.0, 4.0]]), Calibrated([[3.0, 0.0], [1.0, 2.0]])]
    found = statistics.gradients(model, [one], batches)
    wanted = {"fisher": 6.0, "page": 21.0, "norm": math.sqrt(18), "importance": 2.5}
    assert {name: by_path[one.path] for name, by_path in found.items()} == pytest.approx(wanted)


def test_a_stable_rank_as_on_paper():
    """W = (3 0; 4 5): ‖W‖²_F = 50, WᵀW = (25 20; 20 25) has eigenvalues 45 and 5."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False)})
    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 5.0]]))
    one = site("a", shape=(2, 2))
    assert statistics.stable_ranks(model, [one]) == pytest.approx({one.path: 50 / 45})


def test_a_stable_rank_lies_between_one_and_the_matrix_size(opened: Opened):
    sites = candidates(opened.anatomy)[:4]
    result = statistics.stable_ranks(opened.model, sites)
    assert all(1 < result[each.path] < each.max_rank for each in sites)


def test_input_directions_explain_the_whole_input_and_start_eva(opened: Opened):
    sites = candidates(opened.anatomy)[:4]
    (batch, *_) = statistics.calibration(opened.train, seed=0, packed=opened.packed)
    signal = statistics.InputDirections()
    signal.begin(opened.model, sites)
    one_pass(opened.model, batch, sites, [signal], token_losses)
    solved = signal.solved(10_000)
    for shares, directions in solved.values():
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)
        assert shares == sorted(shares, reverse=True)
        assert torch.allclose(directions @ directions.t(), torch.eye(len(directions)), atol=1e-3)

    from loratlas.adapters.attach import attach
    from loratlas.adapters.peft_targets import adapted
    from loratlas.adapters.plan_row import PlanRow
    from loratlas.adapters.trained_heads import detach_adapters

    tuned = attach([PlanRow(site=each, rank=2, alpha=4.0) for each in sites], opened.model)
    statistics.eva_start(tuned, sites, {path: directions for path, (_, directions) in solved.items()})
    for each in sites:
        layer = adapted(tuned)[each.module]
        assert torch.allclose(layer.lora_A["default"].weight.float(), solved[each.path][1][:2], atol=1e-2)
        assert not layer.lora_B["default"].weight.any()
    detach_adapters(tuned)


def test_gora_starts_along_the_gradient_within_the_rows_of_its_factor(opened: Opened):
    """As on paper: A = (1, 0), Ḡ = (3, 4), s = 2, d_in = 2, r = 1 give ΔW = −0.05 · √2 · (3, 0)."""
    from loratlas.adapters.attach import attach
    from loratlas.adapters.peft_targets import adapted
    from loratlas.adapters.plan_row import PlanRow
    from loratlas.adapters.trained_heads import detach_adapters

    sites = candidates(opened.anatomy)[:4]
    batches = statistics.calibration(opened.train, seed=0, packed=opened.packed)
    means = statistics.mean_gradients(opened.model, sites, batches)
    tuned = attach([PlanRow(site=each, rank=2, alpha=8.0) for each in sites], opened.model)
    again = statistics.mean_gradients(opened.model, sites, batches)
    statistics.gora_start(tuned, sites, again)
    for each in sites:
        assert torch.allclose(means[each.path], again[each.path], rtol=1e-3, atol=1e-6)
        layer = adapted(tuned)[each.module]
        A = layer.lora_A["default"].weight.detach().float()
        change = layer.scaling["default"] * layer.lora_B["default"].weight.detach().float() @ A
        orthonormal = torch.linalg.qr(A.t()).Q
        projected = means[each.path] @ orthonormal @ orthonormal.t()
        wanted = -statistics.GORA_STEP * math.sqrt(each.shape[1] / 2) * projected
        assert torch.allclose(change, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
    detach_adapters(tuned)
    layer = SimpleNamespace(
        lora_A={"default": torch.nn.Linear(2, 1, bias=False)},
        lora_B={"default": torch.nn.Linear(1, 1, bias=False)},
        scaling={"default": 2.0},
    )
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.tensor([[1.0, 0.0]]))
    statistics.put_gora(layer, torch.tensor([[3.0, 4.0]]))
    assert layer.lora_B["default"].weight.item() == pytest.approx(-0.05 * math.sqrt(2) * 3 / 2)


def test_outputs_are_those_of_the_adapters(opened: Opened):
    from loratlas.adapters.attach import attach
    from loratlas.adapters.peft_targets import adapted
    from loratlas.adapters.plan_row import PlanRow
    from loratlas.adapters.trained_heads import detach_adapters

    sites = candidates(opened.anatomy)[:2]
    batches = statistics.calibration(opened.train, seed=0, packed=opened.packed)
    tuned = attach([PlanRow(site=each, rank=1, alpha=2.0) for each in sites], opened.model)
    assert set(statistics.outputs(tuned, sites, batches).values()) == {0.0}
    layer = adapted(tuned)[sites[0].module]
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)
    once = statistics.outputs(tuned, sites, batches)
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.2)
    twice = statistics.outputs(tuned, sites, batches)
    assert once[sites[0].path] > 0
    assert once[sites[1].path] == 0
    assert twice[sites[0].path] == pytest.approx(4 * once[sites[0].path], rel=0.05)
    detach_adapters(tuned)


def test_every_rule_spends_the_budget(opened: Opened):
    sites = candidates(opened.anatomy)
    budget = published.parameters(opened.anatomy, "like=all:2")
    numbers = {each.path: 1 + math.sin(index) for index, each in enumerate(sites)}
    shares = {path: [number / 2**rank for rank in range(8)] for path, number in numbers.items()}
    for name, rule in published.RULES.items():
        result = rule(shares if name == "eva" else numbers, sites, budget)
        spent = sum(each.lora_parameters(result.get(each.path, 0)) for each in sites)
        assert 0.95 * budget < spent <= budget, name
