"""DoRA, rsLoRA, LoRA+, PiSSA and OLoRA as training options: the numbers of PEFT's own layers under the Trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.adapters.peft_alone import collate
from tests.tiny import tiny_anatomy, tiny_model
from tests.training.small import encoded, weights

from loratlas.adapters.layers.lean_lora import lean
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.errors import AttachError, Interrupted
from loratlas.files import jsonable
from loratlas.placement.plan import Plan, place
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # that DoRA's layers run PEFT's own pass

VARIANTS = {
    "dora": ({"dora": True}, {}),
    "dora with rslora": ({"dora": True, "rslora": True}, {}),
    "dora with lora+": ({"dora": True}, {"loraplus": 4.0}),
    "dora with pissa": ({"dora": True}, {"init": "pissa"}),
    "rslora": ({"rslora": True}, {}),
    "lora+": ({}, {"loraplus": 4.0}),
    "pissa": ({}, {"init": "pissa"}),
    "olora": ({}, {"init": "olora"}),
}
"""Options of a plan, and of its training."""


def planned(text: str = "q,v:4 + ffn.down:2", **options) -> Plan:
    return place(tiny_anatomy("llama"), text, **options)


def settings(**changes) -> Settings:
    plain = {"schedule": "constant", "warmup": 0.0, "clip": None, "dtype": "float32"}
    return Settings(steps=6, lr=5e-3, batch_size=8, **{**plain, **changes})


def rows_of(data) -> list[dict]:
    return [{"ids": e.input_ids.tolist(), "counted": e.labelled.tolist()} for e in data.examples]


def job_of(options, training) -> dict:
    """What PEFT alone is asked for: fields of the plan's config that differ from PEFT's defaults."""
    from peft import LoraConfig

    own, asked = (
        planned(**options).to_peft(tiny_model("llama"), init=training.get("init", True)),
        settings(**training),
    )
    bare = LoraConfig()
    fields = {
        f.name: getattr(own, f.name)
        for f in dataclasses.fields(own)
        if f.init and getattr(own, f.name) != getattr(bare, f.name)
    }
    return {
        "config": jsonable(fields), "rows": rows_of(encoded(8)), "seed": asked.seed, "steps": asked.steps,
        "lr": asked.lr, "loraplus": asked.loraplus,
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Every variant trained by PEFT and transformers alone, in one process that never imports this library."""
    folders = {name: tmp_path_factory.mktemp("alone") for name in VARIANTS}
    for name, (options, training) in VARIANTS.items():
        tiny_model("llama").save_pretrained(folders[name] / "base")
        (folders[name] / "job.json").write_text(json.dumps(job_of(options, training)))
    script = Path(__file__).with_name("peft_alone.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONWARNINGS", None)
    subprocess.run([sys.executable, str(script), *map(str, folders.values())], check=True, env=environment)
    return folders


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_gradients_and_steps_are_those_of_peft_under_the_trainer(alone, name):
    options, training = VARIANTS[name]
    asked, data, folder = settings(**training), encoded(8), alone[name]
    wanted = json.loads((folder / "result.json").read_text())
    assert wanted["foreign"] == []
    model = planned(**options).attach(tiny_model("llama"), seed=asked.seed, init=asked.drawn)
    batch = collate(rows_of(data))
    with lean(model):
        output = model(**batch)
        output.loss.backward()
    assert float(output.loss) == pytest.approx(wanted["loss"], rel=1e-6)
    gradients = load_file(folder / "gradients.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == gradients.keys()
    for parameter, value in gradients.items():
        torch.testing.assert_close(trained[parameter].grad, value, rtol=1e-4, atol=1e-6, msg=parameter)
    model.zero_grad()
    result = fit(model, data, asked)
    assert [point.nll for point in result.curve] == pytest.approx(wanted["losses"], rel=1e-4)
    with torch.no_grad():
        logits = load_file(folder / "logits.safetensors")["logits"]
        torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-3, atol=1e-3)


def test_a_plan_with_dora_is_another_plan_and_counts_its_lengths():
    plain, dora = planned(), planned(dora=True)
    assert dora.digest != plain.digest
    assert "dora" not in plain.to_json()
    assert Plan.from_json(dora.to_json()) == dora
    lengths = sum(row.site.shape[0] for row in dora.rows)
    assert dora.trainable == plain.trainable + lengths
    model = dora.attach(tiny_model("llama"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == dora.trainable


def test_a_budget_of_parameters_counts_dora_s_lengths():
    allowed = planned("all:2", dora=True).trainable
    solved = planned("all", budget=f"params={allowed}", dora=True)
    assert set(solved.ranks.values()) == {2}
    assert planned("all", budget=f"params={allowed}").trainable <= allowed
    assert max(planned("all", budget=f"params={allowed}").ranks.values()) > 2


@pytest.mark.parametrize("stop", [1, 4])
def test_dora_interrupted_and_resumed_ends_bit_for_bit(tmp_path, stop):
    data = encoded(20)
    asked = settings(dropout=0.1, loraplus=4.0, save_every=2)

    def model():
        return planned(dora=True).attach(tiny_model("llama"), dropout=0.1)

    def interrupt(event):
        if event.step == stop:
            raise KeyboardInterrupt

    whole, resumed = model(), model()
    fit(whole, data, asked)
    with pytest.raises(Interrupted):
        fit(model(), data, asked, out=tmp_path, on_step=interrupt)
    fit(resumed, data, asked, out=tmp_path, resume=True)
    other = weights(resumed)
    assert any("lora_magnitude_vector" in name for name in other)
    assert all(torch.equal(value, other[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize(
    "options", [{"dora": True}, {"dora": True, "rslora": True}, {}], ids=["dora", "dora with rslora", "lora"]
)
@pytest.mark.parametrize("init", [True, "pissa", "olora"])
def test_what_was_trained_is_handed_back_for_the_base_as_it_was_published(tmp_path, options, init):
    """PiSSA and OLoRA as the ordinary adapter of twice the rank; the magnitudes stay; merged it is the same map."""
    plan, data = planned(**options), encoded(8)
    model = plan.attach(tiny_model("llama"), init=init)
    fit(model, data, settings(init=init))
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        save_adapter(model, tmp_path / "adapter", plan_json=plan.to_json())
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["use_dora"] == bool(options.get("dora"))
        assert config["init_lora_weights"] is True
        assert config["r"] == (4 if init is True else 8)
        loaded = load_adapter(tiny_model("llama"), tmp_path / "adapter")
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(tiny_model("llama")(ids).logits, wanted, atol=1e-2)


def test_an_adapter_that_is_no_dora_is_not_taken_for_one(tmp_path):
    model = planned().attach(tiny_model("llama"))
    save_adapter(model, tmp_path / "adapter", plan_json=planned(dora=True).to_json())
    from loratlas.errors import ModelError

    with pytest.raises(
        ModelError, match=r"LoRA at model\.layers\.0\.self_attn\.q_proj where the plan has DoRA"
    ):
        load_adapter(tiny_model("llama"), tmp_path / "adapter")


def test_dora_at_some_sites_of_a_plan_alone_is_refused():
    plan = planned()
    rows = [dataclasses.replace(row, dora=index == 0) for index, row in enumerate(plan.rows)]
    with pytest.raises(AttachError, match="PEFT has it at all or none"):
        dataclasses.replace(plan, rows=tuple(rows)).attach(tiny_model("llama"))
