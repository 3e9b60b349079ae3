"""Stacks of experts in their several forms, raw parameters that are none, and a second adapter."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tests import zoo
from tests.adapters.test_architectures import randomise

from loratlas.adapters.attach import trainable
from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.anatomy.read import read
from loratlas.errors import AttachError, PlacementError
from loratlas.modeling import zero_dropout
from loratlas.models.meta import model_class
from loratlas.models.quiet import quiet
from loratlas.placement.plan import place

TOKENS = torch.arange(3, 15)[None]


def config(model_type, **changes):
    result = zoo.small(model_type, **changes)
    zero_dropout(result)
    return result


def live(config):
    kind, part = model_class(config)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind._from_config(part, dtype=torch.float32).requires_grad_(False).eval()


# Type → placement: queries and outputs per expert; tables of experts one neuron wide.
FORMS = {
    "jetmoe": ("q,o,kv:2 + moe:3", {}),
    "doge": ("moe:2 + shared,q:3", {"is_moe": True, "num_experts": 16}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", FORMS)
def test_adapters_on_every_form_of_experts_train_save_load_and_merge(model_type, tmp_path):
    text, changes = FORMS[model_type]
    given = config(model_type, num_hidden_layers=2, **changes)  # the ranks of experts and others differ
    plan = place(read(given), text)
    plan.to_peft(given)
    model = plan.attach(live(given), seed=1, dropout=0.1)
    assert trainable(model) == plan.trainable
    randomise(model)
    model(input_ids=TOKENS, use_cache=False).logits.square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_" in n)
    with torch.no_grad():
        wanted = model(input_ids=TOKENS, use_cache=False).logits
        folder = save_adapter(model, tmp_path / "a")
        again = load_adapter(live(given), folder)(input_ids=TOKENS, use_cache=False).logits
        merged = model.merge_and_unload()(input_ids=TOKENS, use_cache=False).logits
    assert (again - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (merged - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    stacked = any(row.site.kind == "experts" for row in plan.rows)
    saved = json.loads((folder / "adapter_config.json").read_text())["lora_dropout"]
    assert saved == (0 if stacked else 0.1)


def test_three_dimensions_are_mapped_and_refused_where_they_are_no_experts():
    anatomy = read(zoo.small("xlnet"))
    site = anatomy.site("transformer.layer.0.rel_attn.q")
    assert (site.role, site.kind, site.experts, site.adaptable) == ("attn.q", "parameter", None, False)
    with pytest.raises(PlacementError, match=r"of no effect there: transformer\.layer\.0\.rel_attn\.q"):
        place(anatomy, "q:2")
    place(anatomy, "feedforward:2")


def test_stacks_that_are_read_outside_their_module_are_mapped_and_refused():
    # PEFT changes a parameter while the module that holds it runs. DBRX cuts its experts out before, and an adapter
    # would be trained for nothing and then be merged.
    anatomy = read(zoo.small("dbrx"))
    stacks = [site for site in anatomy if site.kind == "experts"]
    assert {(site.role, site.experts, site.adaptable) for site in stacks} == {
        ("moe.gate", 4, False),
        ("moe.up", 4, False),
        ("moe.down", 4, False),
    }
    with pytest.raises(PlacementError, match=r"mlp\.w1 \(moe\.gate\) is read outside the module") as refused:
        place(anatomy, "all:2")
    instead = re.findall(r"`([^`]+)`", refused.value.instead)[0]
    assert {row.site.family for row in place(anatomy, instead).rows} == {"attn"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_second_adapter_is_refused_in_words(tmp_path):
    given = config("mixtral", num_hidden_layers=2)
    anatomy = read(given)
    model = place(anatomy, "moe.down@0:2").attach(live(given))
    with pytest.raises(AttachError, match="another set of expert stacks"):
        place(anatomy, "moe.down@1:2").attach(model, adapter_name="second")
    with pytest.raises(AttachError, match="'default' already"):
        place(anatomy, "moe.down@0:2").attach(model, adapter_name="second")
    folder = save_adapter(model, tmp_path / "a")
    with pytest.raises(AttachError, match="'default' already"):
        load_adapter(model, folder)
    assert len(adapted(model)) == 1
