"""Law 0: a step's loss is the summed loss of all its counted tokens over their number, however it is cut."""

from __future__ import annotations

import pytest
import torch
from tests.training.small import adapted, encoded, weights

from loratlas.data.batches.batching import collate
from loratlas.training.loop import fit
from loratlas.training.master_weights import MasterWeights
from loratlas.training.settings import Settings
from loratlas.training.step.gradients import step_loss
from loratlas.training.step.microbatches import microbatches

ROWS = list(range(16))


def gradient(model, data, *, packed, size=None):
    """(mean loss, gradient) of a step, as the loop forms it."""
    masters = MasterWeights(model)
    masters.open()
    batches = list(microbatches(data, ROWS, packed=packed, size=size))
    labelled = sum(batch.labelled for batch in batches)
    total = 0.0
    for batch in batches:
        loss = step_loss(model, batch)
        (loss / labelled).backward()
        masters.collect()
        total += float(loss.detach())
    masters.close()
    return total / labelled, torch.cat([group.master.grad for group in masters.groups])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("packed", "size"), [(True, 1), (True, 5), (False, None), (False, 1), (False, 7)])
def test_parts_add_up_to_the_whole(kind, packed, size):
    data, model = encoded(16), adapted(kind)
    whole_loss, whole = gradient(model, data, packed=True)
    loss, found = gradient(model, data, packed=packed, size=size)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert float((found - whole).norm() / whole.norm()) < 1e-5
    assert float(whole.norm()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_equals_the_loss_of_transformers(kind):
    """Independent arithmetic: every example alone through the model's own loss, weighted by its tokens."""
    data, model = encoded(16), adapted(kind).eval()
    total = 0.0
    for example in data.examples:
        ids = torch.from_numpy(example.input_ids).long()[None]
        labels = torch.where(torch.from_numpy(example.labelled)[None], ids, -100)
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss
        total += float(loss) * int(example.labelled.sum())
    batch = collate(data.examples, packed=True)
    assert step_loss(model, batch).item() == pytest.approx(total, rel=1e-5)


def test_a_mean_of_means_is_something_else():
    """What the law rules out differs by far more than rounding on these rows."""
    data, model = encoded(16), adapted()
    whole, _ = gradient(model, data, packed=True)
    parts = [step_loss(model, b).item() / b.labelled for b in microbatches(data, ROWS, packed=True, size=4)]
    assert abs(sum(parts) / len(parts) - whole) > 1e-3


@pytest.mark.parametrize("cut", [{"micro_batch": 3}, {"packing": "off"}, {"checkpointing": True}], ids=str)
def test_whole_runs_agree(cut):
    data = encoded(24)
    plain, other = adapted(), adapted()
    settings = {"steps": 6, "lr": 1e-2, "batch_size": 8, "dtype": "float32"}
    first = fit(plain, data, Settings(**settings))
    second = fit(other, data, Settings(**settings, **cut))
    assert first.labelled_tokens == second.labelled_tokens
    assert first.packing == "packed"
    for a, b in zip(first.curve, second.curve, strict=True):
        assert b.nll == pytest.approx(a.nll, rel=1e-4)
    weight = weights(other)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weight[name], value, rtol=2e-2, atol=2e-4)
