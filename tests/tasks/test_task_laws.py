"""Laws 0, 1, 5, 6 and 7 for classifiers and for models that write a target."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from tests.tasks.bases import CLASSIFIERS, LABELS, TARGETS, TRANSLATORS, base, load, rows
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from loratlas.adapters.attach import trainable
from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.trained_heads import detach_adapters, head_size, is_head
from loratlas.anatomy.read import read
from loratlas.data.batches.batching import collate
from loratlas.errors import AttachError, Interrupted, ModelError
from loratlas.evaluation.score import score
from loratlas.evaluation.token_losses import token_losses
from loratlas.models.heads import new_head
from loratlas.models.task import Task, for_task
from loratlas.placement.plan import place
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

BOTH = [(kind, LABELS) for kind in CLASSIFIERS] + [(kind, TARGETS) for kind in TRANSLATORS]
SOME = [("bert", LABELS), ("llama", LABELS), ("t5", TARGETS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def named(pair):
    return pair if isinstance(pair, str) else pair.name


def with_adapters(path, task, *, seed=0, dtype="float32", text="attention:3 + feedforward:2"):
    """(plan, PeftModel with B drawn, so that all gradients live)."""
    plan = place(read(for_task(path, task, pad_id=0)), text)
    model = plan.attach(load(path, task, dtype=dtype), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return plan, model


def side_by_side(data):
    return collate(data.examples, packed=False, pad_id=data.pad_id)


def summed(model, data):
    """The summed loss as transformers has it: the rows in one padded batch, its own labels and its own mean."""
    batch = side_by_side(data)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    labels = batch.targets[:, 0] if data.task.labels else batch.targets
    with torch.no_grad():
        return float(model(**given, labels=labels).loss) * data.report.answer_tokens


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("model_type", "task"), BOTH, ids=named)
def test_gradients_losses_and_files(folder, tmp_path, model_type, task):
    path = base(folder, model_type)
    data = rows(model_type, task)
    plan, model = with_adapters(path, task)
    plan.to_peft(for_task(path, task, pad_id=0))
    assert trainable(model) == plan.trainable + head_size(model)
    assert bool(head_size(model)) == bool(task.labels)

    losses = token_losses(model, side_by_side(data))
    losses.sum().backward()
    touched = {
        name.removeprefix("base_model.model.").partition(".lora_" if "lora_" in name else ".modules_to_save")[
            0
        ]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert touched == {*adapted(model), *head_modules_of(model)}
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    # One batch, batches of unlike sizes, every row by itself; and transformers' own loss on the same rows.
    alone = score(model, data, packed=False, max_tokens=1).nll
    assert score(model, data, packed=False, max_tokens=70).nll == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert float(losses.detach().double().sum()) == pytest.approx(alone.sum(), rel=1e-6)
    assert summed(model.eval(), data) == pytest.approx(alone.sum(), rel=1e-5)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_head(name):
                parameter.add_(0.01)
    wanted = summed(model, data)
    saved = save_adapter(model, tmp_path / "adapter")
    auto = AutoModelForSequenceClassification if task.labels else AutoModelForSeq2SeqLM
    plain = auto.from_pretrained(path, **({"num_labels": 3, "pad_token_id": 0} if task.labels else {}))
    assert summed(PeftModel.from_pretrained(plain, saved).eval(), data) == wanted
    assert summed(load_adapter(load(path, task), saved), data) == wanted
    assert summed(model.merge_and_unload().eval(), data) == pytest.approx(wanted, rel=1e-4)


def head_modules_of(model):
    inner = model.get_base_model()
    return {name for name, module in inner.named_modules() if type(module).__name__ == "ModulesToSaveWrapper"}


def trained(model, data, tmp=None, *, stop=None, resume=False, **changes):
    settings = Settings(
        **{"steps": 8, "lr": 1e-2, "batch_size": 4, "dtype": "float32", "save_every": 2, **changes}
    )

    def interrupt(event):
        if event.step == stop:
            raise KeyboardInterrupt

    return fit(model, data, settings, out=tmp, resume=resume, on_step=interrupt if stop else None)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("model_type", "task"), SOME, ids=named)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(folder, tmp_path, model_type, task, dtype):
    path, data = base(folder, model_type), rows(model_type, task)
    _, whole = with_adapters(path, task, dtype=dtype)
    start = weights(whole)
    result = trained(whole, data, dtype=dtype)
    assert result.packing == "padded"
    assert not result.diverged
    assert all(not torch.equal(value, start[name]) for name, value in weights(whole).items())
    _, again = with_adapters(path, task, dtype=dtype)
    with pytest.raises(Interrupted):
        trained(again, data, tmp_path, dtype=dtype, stop=5)
    _, resumed = with_adapters(path, task, dtype=dtype)
    assert trained(resumed, data, tmp_path, dtype=dtype, resume=True).train_nll == result.train_nll
    assert same(weights(whole), weights(resumed))
    assert math.isfinite(score(resumed, data, packed=False).token_mean_nll)


@pytest.mark.parametrize(("model_type", "task"), SOME, ids=named)
def test_a_step_is_the_same_in_parts(folder, model_type, task):
    path, data = base(folder, model_type), rows(model_type, task)
    results = []
    for size in (None, 1, 3):
        _, model = with_adapters(path, task)
        trained(model, data, steps=2, micro_batch=size)
        results.append(weights(model))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5)


def test_a_head_is_drawn_by_the_seed_alone_and_the_base_is_given_back(folder):
    path = base(folder, "bert")
    model = load(path, LABELS)
    assert new_head(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    anatomy = read(for_task(path, LABELS))
    heads = []
    for seed, text in ((1, "attention:2"), (1, "feedforward:7"), (2, "attention:2")):
        live = place(anatomy, text).attach(model, seed=seed)
        heads.append({name: p.clone() for name, p in live.named_parameters() if is_head(name)})
        trained(live, rows("bert", LABELS), steps=1)
        model = detach_adapters(live)
        assert before.keys() == model.state_dict().keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert same(heads[0], heads[1])
    assert not same(heads[0], heads[2])
    assert {tuple(value.shape) for value in heads[0].values()} == {(48, 48), (48,), (3, 48), (3,)}


def test_a_head_that_the_base_brings_is_kept_and_one_for_other_labels_is_not(folder, tmp_path):
    path = base(folder, "bert")
    first = load(path, LABELS)
    first.save_pretrained(tmp_path / "classifier")
    model = load(tmp_path / "classifier", LABELS)
    assert not new_head(model)
    live = place(read(model), "attention:2").attach(model, seed=3)
    result = next(p for name, p in live.named_parameters() if is_head(name) and "classifier" in name)
    assert torch.equal(result, first.classifier.weight)
    two = Task(name=LABELS.name, labels=("a", "b"))
    assert new_head(load(tmp_path / "classifier", two))


def test_a_base_without_its_blocks_is_no_base(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = base(folder, "bert")
    kept = {k: v for k, v in load_file(path / "model.safetensors").items() if "layer.1." not in k}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    with pytest.raises(ModelError, match="missing in all"):
        load(tmp_path, LABELS)


def test_the_head_is_no_place_for_an_adapter(folder):
    path = base(folder, "bert")
    anatomy = read(for_task(path, LABELS))
    plan = place(anatomy, '"bert.pooler.dense":2')
    with pytest.raises(AttachError, match="trained whole"):
        plan.attach(load(path, LABELS))
    assert all("pooler" not in row.site.path for row in place(anatomy, "all:2").rows)


@pytest.mark.parametrize("init", ["pissa", "orthogonal"])
def test_an_adapter_that_changes_its_base_leaves_with_its_head(folder, tmp_path, init):
    path, data = base(folder, "bert"), rows("bert", LABELS)
    model = place(read(for_task(path, LABELS)), "all:4").attach(load(path, LABELS), init=init)
    trained(model, data, steps=2)
    saved = save_adapter(model, tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    again = PeftModel.from_pretrained(plain, saved).eval()
    assert summed(again, data) == pytest.approx(summed(model.eval(), data), rel=1e-5)
