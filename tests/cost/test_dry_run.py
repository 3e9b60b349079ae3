"""A dry run against a real step: what it keeps, what it holds at its peak, what it computes."""

from __future__ import annotations

import json

import pytest
import torch
from tests.tiny import tiny_config, tiny_model
from tests.training.small import encoded, wrap

from loratlas.adapters.attach import attach
from loratlas.adapters.layers.lean_lora import lean
from loratlas.anatomy.read import read
from loratlas.cost.calibration import Calibration
from loratlas.cost.dry_run import dry_run, even_rows, typical
from loratlas.cost.recorder import recording, saved
from loratlas.data.batches.batching import training_order
from loratlas.errors import ModelError
from loratlas.placement.plan import place
from loratlas.training.loop import fit
from loratlas.training.master_weights import MasterWeights
from loratlas.training.run_context import training_mode
from loratlas.training.settings import Settings
from loratlas.training.step.gradients import step_loss
from loratlas.training.step.microbatches import microbatches

ROWS = encoded(6, longest=40)

PLACEMENTS = ("all:4", "attention:8", "feedforward@top/2:4", "o@1:4 + down@0:3")


def really_saved(config, plan, settings, *, packed):
    """What autograd keeps in a real step: bytes, each storage once."""
    model = attach(plan.rows, tiny_model(config.model_type).to(getattr(torch, settings.dtype)))
    with lean(model), training_mode(model, checkpointing=settings.checkpointing):
        masters = MasterWeights(model)
        masters.open()
        (batch,) = microbatches(ROWS, range(len(ROWS)), packed=packed)
        step_loss(model, batch)  # tables that attention keeps from step to step exist now
        with saved([*model.parameters(), *masters.lasting()]) as found:
            loss = step_loss(model, batch)
        assert loss.requires_grad
        return sum(found.values())


@pytest.mark.parametrize("text", PLACEMENTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_kept_is_what_autograd_keeps(kind, text):
    config = tiny_config(kind)
    plan, settings = place(config, text), Settings(dtype="bfloat16")
    recorded = dry_run(config, plan.rows, ROWS.examples, settings, packed=True)
    assert recorded.saved_bytes == really_saved(config, plan, settings, packed=True)


# Norms at both ends of a block, parallel branches, a softcap, attention that no fused kernel serves.
@pytest.mark.parametrize("kind", ["gemma2", "gpt_neox", "phi", "bloom", "mpt", "opt"])
def test_other_architectures_are_no_special_case(kind):
    config = tiny_config(kind)
    plan, settings = place(config, "all@1..3:4"), Settings(dtype="float32")
    recorded = dry_run(config, plan.rows, ROWS.examples, settings)
    assert recorded.saved_bytes == pytest.approx(
        really_saved(config, plan, settings, packed=recorded.packed), rel=0.02
    )


@pytest.mark.parametrize(
    "more", [{}, {"dropout": 0.1}, {"micro_batch": 2}, {"checkpointing": True}, {"loraplus": 4.0}], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_the_allocators(dtype, more):
    config = tiny_config("llama")
    plan = place(config, "all@top/2:4 + attention@0:2")
    settings = Settings(steps=2, batch_size=len(ROWS), dtype=dtype, **more)
    model = attach(plan.rows, tiny_model("llama").to(getattr(torch, dtype)), dropout=settings.dropout)
    real = fit(model, ROWS, settings, packed=True).peak_bytes
    (order,) = training_order(len(ROWS), steps=1, batch_size=len(ROWS), seed=0)
    examples = [ROWS.examples[row] for row in order]  # micro-batches as the run cut them
    recorded = dry_run(config, plan.rows, examples, settings, packed=True)
    assert recorded.peak_bytes == pytest.approx(real, rel=0.03)
    assert recorded.lasting_bytes < recorded.peak_bytes


def test_a_run_that_sees_its_rows_again_keeps_what_the_layers_below_make_of_them():
    config = tiny_config("llama")
    plan = place(config, "all@top/2:4")
    settings = Settings(steps=4, batch_size=4, dtype="float32", compile="off")
    model = attach(plan.rows, tiny_model("llama"))
    data = wrap(list(even_rows(8, 24)))
    result = fit(model, data, settings, packed=True)
    assert result.kept_layers > 0
    recorded = dry_run(
        config, plan.rows, even_rows(4, 24), settings, packed=True, repeated_tokens=data.report.tokens
    )
    assert recorded.peak_bytes == pytest.approx(result.peak_bytes, rel=0.03)
    whole = dry_run(config, plan.rows, even_rows(4, 24), settings, packed=True)
    assert recorded.saved_bytes == whole.saved_bytes
    assert recorded.lasting_bytes > whole.lasting_bytes
    assert sum(recorded.calls.values()) < sum(whole.calls.values())


def test_placement_matters():
    config = tiny_config("llama")

    def of(text):
        return dry_run(config, place(config, text).rows, even_rows(2, 32), Settings())

    down, up, top = of("ffn.down:2"), of("ffn.up:2"), of("ffn.down@2:2")
    assert top.saved_bytes < down.saved_bytes
    assert top.peak_bytes < down.peak_bytes
    assert up.saved_bytes != down.saved_bytes
    assert sum(top.calls.values()) < sum(down.calls.values())


def test_products_are_those_that_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    config = tiny_config("llama")
    plan = place(config, "all:4")
    recorded = dry_run(config, plan.rows, ROWS.examples, Settings(dtype="float32"), packed=True)
    counted = 0
    for call, times in recorded.calls.items():
        if call.func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            args, _ = call.arguments(torch.device("cpu"))
            out = call.func(*args) if call.func.overloadpacket is not torch.ops.aten.mm else args[0] @ args[1]
            counted += times * flop_registry[call.func.overloadpacket](*args, out_val=out)
    model = attach(plan.rows, tiny_model("llama"))
    with lean(model), training_mode(model, checkpointing=False):
        (batch,) = microbatches(ROWS, range(len(ROWS)), packed=True)
        with FlopCounterMode(display=False) as counter:
            step_loss(model, batch).backward()
    names = ("mm", "addmm", "bmm")
    real = sum(
        value
        for op, value in counter.get_flop_counts()["Global"].items()
        if str(op).rpartition(".")[2] in names
    )
    assert counted == real > 0


def test_a_dry_run_leaves_no_trace():
    """Tables made without numbers must not be found by a real step."""
    config = tiny_config("llama")
    plan, settings = place(config, "all:4"), Settings(steps=2, batch_size=6, dtype="bfloat16")

    def losses():
        model = attach(plan.rows, tiny_model("llama").to(torch.bfloat16))
        return [point.nll for point in fit(model, ROWS, settings, packed=True).curve]

    before = losses()
    dry_run(config, plan.rows, ROWS.examples, settings, packed=True)
    assert losses() == before


def test_what_is_no_causal_model_is_said():
    from transformers import BertConfig

    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=96
    )
    with pytest.raises(ModelError, match="no causal language model"):
        dry_run(config, place(read(config), "all:2").rows, even_rows(1, 8), Settings())


def test_live_bytes_follow_storages_and_not_tensors():
    with recording() as recorder:
        whole = torch.empty(100, dtype=torch.float32)
        assert recorder.live == 400
        part = whole[10:20].view(2, 5)
        del whole
        assert recorder.live == 400
        del part
        assert recorder.live == 0
        assert recorder.peak == 400
        assert bool((torch.ones(3) > 0).all())
        assert not bool((torch.ones(3) > 0).any())
        assert recorder.free == 3


def test_typical_rows_stand_for_all():
    examples = encoded(40, longest=60).examples
    chosen = typical(examples, 8)
    assert len(chosen) == 8
    mean = sum(map(len, examples)) / 40
    assert sum(map(len, chosen)) / 8 == pytest.approx(mean, rel=0.1)
    assert len(typical(examples[:3], 8)) == 8


def test_seconds_are_learnt_once_and_kept(tmp_path):
    config = tiny_config("llama")
    rows = place(config, "attention@2:4").rows
    step = dry_run(config, rows, even_rows(2, 16), Settings(dtype="float32"))
    known = Calibration(tmp_path)
    assert known.seconds(step) is None
    assert known.learn([step]) > 0
    seconds = known.seconds(step)
    assert seconds is not None
    assert 0 < seconds < 10
    again = Calibration(tmp_path)
    assert again.learn([step]) == 0
    assert again.seconds(step) == seconds
    wider = dry_run(config, rows, even_rows(2, 24), Settings(dtype="float32"))
    assert again.seconds(wider) is None
    known._known.file.write_text(json.dumps({"version": 0}))
    assert Calibration(tmp_path).seconds(step) is None
    known._known.file.write_text("{")
    assert Calibration(tmp_path).seconds(step) is None
