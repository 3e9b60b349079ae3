"""The smaller adapter is the closest one, an ordinary one, and whole or not there."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import PeftModel
from tests.adapters.test_adapter_files import logits, trained
from tests.spectra.test_low_rank_updates import deltas
from tests.tiny import tiny_model

from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import read_adapter
from loratlas.errors import BudgetError, ModelError, OutputError
from loratlas.placement.plan import Plan
from loratlas.spectra.shrink_adapter import check_shrinkable, shrink


def saved(tmp_path, model_type="llama", text="attention:4 + feedforward:3", **more):
    plan, model = trained(model_type, text, **more)
    save_adapter(model, tmp_path / "a", plan_json=plan.to_json())
    return plan, model


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_each_site_is_the_closest_matrix_of_its_rank(tmp_path, model_type, rslora):
    plan, model = saved(tmp_path, model_type, rslora=rslora)
    made = shrink(read_adapter(tmp_path / "a"), tmp_path / "b", budget=plan.trainable // 3)
    whole, small = deltas(model), deltas(load_adapter(tiny_model(model_type), tmp_path / "b"))
    cut = 0.0
    for module, (before, after) in made.ranks.items():
        U, S, Vh = torch.linalg.svd(whole[module].double())
        wanted = U[:, :after] * S[:after] @ Vh[:after]
        got = small[module].double() if after else torch.zeros_like(wanted)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        cut += float((S[after:before] ** 2).sum())
    assert made.after <= plan.trainable // 3
    assert made.kept.total - made.kept.kept == pytest.approx(cut, rel=1e-4)
    assert len({after for _, after in made.ranks.values()}) > 1  # a budget per site would give all the same


def test_with_room_for_everything_it_computes_the_same(tmp_path):
    plan, model = saved(tmp_path)
    made = shrink(read_adapter(tmp_path / "a"), tmp_path / "b", budget=10 * plan.trainable)
    assert made.after == made.before == plan.trainable
    again = load_adapter(tiny_model("llama"), tmp_path / "b")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)


def test_peft_alone_loads_it_without_a_remark_and_left_out_sites_are_bare(tmp_path):
    saved(tmp_path, "llama", "all:2")
    made = shrink(read_adapter(tmp_path / "a"), tmp_path / "b", budget=1500)
    assert any(after == 0 for _, after in made.ranks.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        again = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "b"))
    assert set(deltas(again)) == {module for module, (_, after) in made.ranks.items() if after}
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert isinstance(config["lora_alpha"], int)
    assert config["alpha_pattern"] == {}
    assert isinstance(config["target_modules"], list)


def test_its_plan_is_the_one_of_what_was_kept(tmp_path):
    plan, _ = saved(tmp_path)
    made = shrink(read_adapter(tmp_path / "a"), tmp_path / "b", budget=plan.trainable // 2)
    notes = read_adapter(tmp_path / "b").notes
    smaller = Plan.from_json(notes["plan"])
    assert smaller.trainable == made.after
    assert {row.site.module: row.rank for row in smaller.rows} == {
        module: after for module, (_, after) in made.ranks.items() if after
    }
    assert notes["extra"]["shrunk_from"] == "a"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_is_more_than_a_product_is_refused(tmp_path, change, found):
    saved(tmp_path)
    (tmp_path / "a" / "loratlas.json").unlink()
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=found):
        check_shrinkable(read_adapter(tmp_path / "a"))


def test_too_small_a_budget_and_a_taken_folder_write_nothing(tmp_path):
    saved(tmp_path)
    contents = read_adapter(tmp_path / "a")
    with pytest.raises(BudgetError, match="one direction costs") as caught:
        shrink(contents, tmp_path / "b", budget=5)
    assert not (tmp_path / "b").exists()
    least = int("".join(c for c in caught.value.instead if c.isdigit()))
    shrink(contents, tmp_path / "least", budget=least)  # what the message says works
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("x")
    with pytest.raises(OutputError):
        shrink(contents, tmp_path / "c", budget=5000)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["mine.txt"]


def test_an_adapter_that_did_nothing_is_said_to(tmp_path):
    from loratlas.placement.plan import place

    plan = place(tiny_model("llama"), "q:2")
    save_adapter(plan.attach(tiny_model("llama")), tmp_path / "a", plan_json=plan.to_json())
    with pytest.raises(BudgetError, match="whose update is 0"):
        shrink(read_adapter(tmp_path / "a"), tmp_path / "b", budget=5000)
