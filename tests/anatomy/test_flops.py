"""What arithmetic knows of a plan's price: exactly what PyTorch counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from counted_flops import TOKENS, Counted, agreement
from peft import LoraConfig, get_peft_model
from tests import zoo
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from loratlas.anatomy.flops import cost, shares
from loratlas.anatomy.read import read
from loratlas.anatomy.role_table import in_set
from loratlas.errors import ModelError

ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
BATCH, LENGTH, RANK = 2, 64, 4
SETS = {
    "all": lambda site: site.family in ("attn", "ffn"),
    "attention": lambda site: site.family == "attn",
    "feedforward": lambda site: site.family == "ffn",
    "last feedforward": lambda site: site.family == "ffn" and site.layer == 2,
    "one down": lambda site: site.role == "ffn.down" and site.layer == 1,
    "one up": lambda site: site.role == "ffn.up" and site.layer == 1,
    "values": lambda site: site.role == "attn.v",
    "gates": lambda site: site.role == "ffn.gate",
}


def _attached(case, small, chosen):
    torch.manual_seed(0)
    config = small(case, attention_dropout=0.0)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    anatomy = read(config)
    sites = [site for site in anatomy.adaptable if SETS[chosen](site)]
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=[site.module for site in sites]))
    return anatomy, {site.path: RANK for site in sites}, adapted


@pytest.mark.parametrize("chosen", SETS)
def test_operations_are_what_pytorch_counts(chosen, small):
    anatomy, rows, model = _attached("llama", small, chosen)
    ids = torch.randint(0, 100, (BATCH, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(value for op, value in counted.items() if "attention" not in str(op))
    mine = cost(anatomy, rows, length=0).flops_per_token
    assert mine * BATCH * LENGTH == products


@pytest.mark.parametrize(
    ("model_type", "chosen"),
    [
        ("t5", lambda site: site.scope == "encoder" and site.layer == 3 and site.role == "ffn.up"),
        ("t5", lambda site: in_set("all", site.role)),
        ("t5", lambda site: site.role == "xattn.k" and site.layer == 2),
        ("bert", lambda site: site.role == "attn.o" and site.layer == 1),
        ("mixtral", lambda site: in_set("attention", site.role) and site.layer == 2),
    ],
)
def test_operations_with_adapters_are_counted_in_every_kind_of_model(model_type, chosen):
    counted = Counted(zoo.small(model_type))
    anatomy = read(counted.model.config)
    sites, given = [site for site in anatomy.adaptable if chosen(site)], counted.given
    adapted = get_peft_model(
        counted.model, LoraConfig(r=RANK, target_modules=[site.module for site in sites])
    )
    with FlopCounterMode(display=False) as counter:
        adapted(**given).logits.sum().backward()
    products = sum(counter.get_flop_counts()["Global"].get(op, 0) for op in (aten.mm, aten.addmm))
    mine = cost(anatomy, {site.path: RANK for site in sites}, length=0).flops_per_token
    assert mine * TOKENS == products


@pytest.mark.parametrize(
    "model_type",
    ["gpt2", "phi", "bert", "t5", "mixtral", "deepseek_v3", "jamba"],
)
def test_a_backward_pass_goes_where_pytorch_goes(model_type):
    agreements = agreement(zoo.small(model_type))
    assert agreements.silent == ""
    assert agreements.compared > 50
    assert agreements.differences == []
    assert agreements.forward_differences == {}


def products_of_activations(config):
    """Operations of attention for one token: predicted for causal halves of all pairs, counted."""
    anatomy = read(config)
    predicted = cost(anatomy, {}, length=TOKENS).flops_per_token - cost(anatomy, {}, length=0).flops_per_token
    return predicted, Counted(config).passes([]).activations / TOKENS


@pytest.mark.parametrize(("model_type", "share"), [("llama", 0.5), ("deepseek_v3", 0.5), ("bert", 1.0)])
def test_attention_costs_what_pytorch_counts_or_half_of_it_where_it_is_causal(model_type, share):
    predicted, counted = products_of_activations(zoo.small(model_type))
    assert predicted == share * counted


def test_a_block_that_works_in_place_of_all_layers_is_counted_as_often():
    agreements = agreement(zoo.small("albert"), sets=False)
    assert agreements.forward_differences == {}
    assert agreements.total[0] == pytest.approx(
        agreements.total[1], rel=0.05
    )  # the first run has no gradient below


def test_every_type_that_differs_is_explained_on_the_page():
    page = json.loads((ROOT / "docs" / "results" / "models" / "flop_agreement.json").read_text("utf-8"))
    rows = {row["model_type"]: row for row in page["types"]}
    assert set(rows) == set(zoo.types()) - set(zoo.NEVER)

    def agrees(row):
        predicted, counted = row["total"]
        exact = all(row[name][0] == row[name][1] for name in ("backward", "forward"))
        return not row["does_not_run"] and exact and abs(predicted / counted - 1) <= 0.01

    unexplained = [name for name, row in rows.items() if not row["why"] and not agrees(row)]
    assert unexplained == []


@pytest.mark.parametrize("model_type", ["llama", "mamba2", "qwen3_moe", "jetmoe"])
def test_the_page_says_what_is_counted(model_type):
    page = json.loads((ROOT / "docs" / "results" / "models" / "flop_agreement.json").read_text("utf-8"))
    (row,) = (row for row in page["types"] if row["model_type"] == model_type)
    counted = agreement(zoo.small(model_type))
    assert row["backward"] == [counted.agreeing, counted.compared]
    assert row["total"] == pytest.approx(list(counted.total), rel=1e-3)


def test_an_encoder_is_passed_before_its_decoder():
    anatomy = read(zoo.small("t5"))
    low = cost(anatomy, {"encoder.block.3.layer.1.DenseReluDense.wi.weight": 4})
    high = cost(anatomy, {"decoder.block.0.layer.2.DenseReluDense.wi.weight": 4})
    assert low.flops_per_token > high.flops_per_token


def test_towers_that_text_does_not_pass_cost_nothing():
    anatomy = read(zoo.small("audioflamingo3"))
    text = [site for site in anatomy if site.scope == "decoder" and site.kind == "linear"]
    assert cost(anatomy, {}, length=0).flops_per_token == sum(2 * s.shape[0] * s.shape[1] for s in text)


def test_a_token_passes_few_of_many_experts():
    anatomy = read(zoo.small("mixtral"))
    assert anatomy.active_experts == 2
    one = anatomy.site("model.layers.0.mlp.experts.gate_up_proj")
    assert (one.experts, shares(anatomy)[one.path]) == (8, 2)


def test_the_same_parameters_cost_less_higher_up(small):
    anatomy = read(small("llama"))
    low, high = (cost(anatomy, {f"model.layers.{layer}.mlp.up_proj.weight": 8}) for layer in (0, 2))
    assert low.adapter_bytes == high.adapter_bytes == 8 * (48 + 80) * 4
    assert low.optimizer_bytes == 2 * low.adapter_bytes
    assert high.flops_per_token < low.flops_per_token


def test_in_a_parallel_block_feedforward_does_not_follow_attention(small):
    parallel, serial = (read(small(case)) for case in ("stablelm-parallel", "stablelm"))
    rows = {"model.layers.0.self_attn.o_proj.weight": 4}
    assert cost(parallel, rows).flops_per_token < cost(serial, rows).flops_per_token


@pytest.mark.parametrize("case", ["llama", "gpt2", "phi3", "falcon", "opt"])
def test_every_rank_more_costs_more(case, small):
    anatomy = read(small(case))
    costs = []
    for rank in (1, 2, 5):
        rows = {site.path: rank for site in anatomy.adaptable if site.family in ("attn", "ffn")}
        costs.append(cost(anatomy, rows))
        assert costs[-1].adapter_bytes == 4 * sum(anatomy.site(p).lora_parameters(r) for p, r in rows.items())
    for name in costs[0].to_json():
        values = [getattr(one, name) for one in costs]
        assert values == sorted(set(values)), name


def test_no_plan_costs_the_forward_pass(small):
    anatomy = read(small("llama"))
    bare = cost(anatomy, {}, length=0)
    maps = sum(2 * s.shape[0] * s.shape[1] for s in anatomy if s.kind == "linear")
    assert bare.flops_per_token == maps
    assert bare.adapter_bytes == bare.optimizer_bytes == 0


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ({"model.layers.9.mlp.up_proj.weight": 1}, {}),
        ({"model.layers.0.mlp.up_proj.weight": 1}, {"optimizer": "lion"}),
    ],
)
def test_what_cannot_be_priced_is_an_error(rows, options, small):
    with pytest.raises(ModelError):
        cost(read(small("llama")), rows, **options)


def test_what_carries_no_adapter_is_not_priced(small):
    with pytest.raises(ModelError) as caught:
        cost(read(small("opt")), {"model.decoder.embed_positions.weight": 1})
    assert "carries no adapter" in caught.value.found
