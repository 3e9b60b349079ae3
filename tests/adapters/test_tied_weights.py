"""A matrix under several names: one adapter serves all of them, is saved as copies, and is merged once."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests import zoo
from tests.adapters.test_architectures import randomise

from loratlas.adapters.attach import trainable
from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.anatomy.read import read
from loratlas.errors import AttachError, PlacementError, SettingsError
from loratlas.placement.plan import place

TOKENS = torch.arange(3, 19)[None]


@cache
def anatomy():
    return read(zoo.small("zamba2"))


def zamba2():
    from transformers import Zamba2ForCausalLM

    from loratlas.models.quiet import quiet

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            Zamba2ForCausalLM._from_config(zoo.small("zamba2"), dtype=torch.float32)
            .requires_grad_(False)
            .eval()
        )


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def test_a_site_lists_every_name_under_which_it_is_called():
    copies = [f"model.layers.{layer}.shared_transformer.self_attn.q_proj.weight" for layer in (1, 3)]
    first, second = (anatomy().site(path) for path in copies)
    assert first.called_as == tuple(copies)
    assert second.tied_to == copies[0]
    assert second.called_as == ()
    assert anatomy().site("lm_head").called_as == ()  # tied as well, but another role
    assert type(first).from_json(first.to_json()) == first


def test_copies_are_one_row_of_a_plan_whichever_of_them_is_meant():
    plan = place(anatomy(), "attention:2")
    assert [row.site.layer for row in plan.rows] == [1] * 4
    assert place(anatomy(), "attention@3..4:2").ranks == plan.ranks
    assert place(anatomy(), '"model.layers.3.shared_transformer.self_attn.*":2').ranks == plan.ranks


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_adapter_serves_all_copies_and_is_saved_and_merged_as_one(tmp_path, dora):
    config = zoo.small("zamba2")
    plan = place(anatomy(), "attention:2 + feedforward.down:3", dora=dora)
    plan.to_peft(config)
    live = plan.attach(zamba2(), seed=1)
    assert trainable(live) == plan.trainable == sum(row.trainable for row in plan.rows)
    randomise(live)
    copies = [layer for name, layer in adapted(live).items() if name.endswith("q_proj")]
    assert len(copies) == 2
    assert copies[0].lora_A["default"] is copies[1].lora_A["default"]
    live(input_ids=TOKENS, use_cache=False).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in live.parameters() if p.requires_grad)
    wanted, bare = logits(live), logits(zamba2())
    assert (wanted - bare).abs().max() > 1e-3
    save_adapter(live, tmp_path / "adapter")
    again = load_adapter(zamba2(), tmp_path / "adapter", trainable=True)
    assert trainable(again) == plan.trainable
    assert torch.equal(logits(again), wanted)
    live.merge_adapter()
    assert (logits(live) - wanted).abs().max() < 1e-5
    live.unmerge_adapter()
    assert (logits(live) - wanted).abs().max() < 1e-5
    merged = live.merge_and_unload()
    assert (logits(merged) - wanted).abs().max() < 1e-5
    first, second = (
        merged.model.layers[layer].shared_transformer.self_attn.q_proj.weight for layer in (1, 3)
    )
    assert first is second


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_copies_with_different_adapters_are_refused_on_loading(tmp_path):
    from safetensors.torch import load_file, save_file

    live = place(anatomy(), "attention:2").attach(zamba2())
    folder = save_adapter(live, tmp_path / "adapter")
    state = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in state if "layers.3" in name and "lora_A" in name)
    save_file(
        state | {name: state[name] + 1}, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    (folder / "loratlas.json").unlink()  # it knows what was written
    with pytest.raises(AttachError, match="two different adapters"):
        load_adapter(zamba2(), folder)


def test_an_initialisation_that_takes_from_the_base_would_take_once_per_copy():
    with pytest.raises(SettingsError, match="2 names"):
        place(anatomy(), "attention:2").attach(zamba2(), init="pissa")


@pytest.mark.parametrize("tied", [True, False])
def test_the_shared_table_of_t5_is_never_a_site_of_its_own(tied):
    result = read(zoo.small("t5", tie_word_embeddings=tied))
    shared = result.site("shared.weight")
    assert "inert" in shared.flags
    assert not shared.adaptable
    with pytest.raises(PlacementError, match=r"shared"):
        place(result, "embed:2")
    assert all(row.site.role != "embed" for row in place(result, "all:2").rows)
