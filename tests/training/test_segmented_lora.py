"""The parts of a step, each against plain arithmetic: loss, masters, optimiser, micro-batches, memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.small import adapted, encoded, weights

from loratlas.training.master_weights import MasterWeights
from loratlas.training.optimizer import Optimizer
from loratlas.training.settings import Settings
from loratlas.training.step.memory import allocations, kept_pages, without_lines
from loratlas.training.step.microbatches import FILLER, ROUND, buckets, microbatches


def test_updates_equal_torchs_adamw():
    """Clipping, decay, LoRA+ and schedule on flat vectors against torch's optimiser on the parameters."""
    model, twin = adapted(), adapted()
    chosen = Settings(lr=1e-2, steps=5, clip=0.5, weight_decay=0.1, loraplus=3.0, warmup=0.4, dtype="float32")
    masters = MasterWeights(model, loraplus=3.0)
    masters.open()
    optimizer = Optimizer(masters, chosen, steps=5)
    theirs = [(n, p) for n, p in twin.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in theirs if (".lora_B." in n) == b], "ratio": 3.0 if b else 1.0}
        for b in (False, True)
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.1)
    random = torch.Generator().manual_seed(0)
    for step in range(5):
        masters.zero()
        ours = dict(model.named_parameters())
        for name, parameter in theirs:
            parameter.grad = torch.randn(parameter.shape, generator=random)
            ours[name].grad = parameter.grad.clone()
        masters.collect()
        lr = optimizer.update(step, float(masters.norm()))
        torch.nn.utils.clip_grad_norm_([p for _, p in theirs], 0.5)
        for group in reference.param_groups:
            group["lr"] = lr * group["ratio"]
        reference.step()
    masters.close()
    weight = weights(model)
    for name, parameter in theirs:
        torch.testing.assert_close(weight[name], parameter.detach(), rtol=1e-5, atol=1e-6)


def test_closed_masters_leave_parameters_of_their_own():
    model = adapted(dtype="bfloat16")
    before = weights(model)
    masters = MasterWeights(model)
    masters.open()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    masters.close()
    weight = weights(model)
    for name, value in before.items():
        assert torch.equal(weight[name], value)
    storages = {p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad}
    assert len(storages) == len(before)


def test_what_is_no_plain_factor_stays_float32():
    model = adapted(dtype="bfloat16", use_dora=True)
    masters = MasterWeights(model)
    masters.open()
    kinds = {name.split(".")[-1 if "magnitude" not in name else -2]: p.dtype for name, p in model.named_parameters()
             if p.requires_grad and "magnitude" in name}  # fmt: skip
    assert set(kinds.values()) == {torch.float32}
    masters.close()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=7),
    most=st.none() | st.integers(1, 7),
    call=st.integers(0, 80),
)
def test_buckets_are_the_cheapest_split(lengths, most, call):
    def cost(parts):
        return sum(len(part) * max(lengths[i] for i in part) + call for part in parts)

    result = buckets(lengths, most=most, call=call)
    assert sorted(itertools.chain(*result)) == list(range(len(lengths)))
    assert all(len(part) <= (most or 7) for part in result)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    n = len(order)
    best = float("inf")
    for cuts in itertools.product([False, True], repeat=n - 1):
        ends = [i + 1 for i, c in enumerate(cuts) if c] + [n]
        parts = [order[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        if all(len(part) <= (most or n) for part in parts):
            best = min(best, cost(parts))
    assert cost(result) == best


@pytest.mark.parametrize("packed", [True, False])
def test_every_example_of_a_step_comes_once(packed):
    data = encoded(12)
    rows = [3, 3, 11, 0, 7, 1]
    batches = list(microbatches(data, rows, packed=packed, size=4))
    assert sorted(row for batch in batches for row in batch.rows if row != FILLER) == sorted(rows)
    assert sum(batch.tokens for batch in batches) == sum(len(data.examples[row]) for row in rows)
    assert sum(batch.labelled for batch in batches) == sum(
        int(data.examples[row].labelled.sum()) for row in rows
    )
    assert all(sum(row != FILLER for row in batch.rows) <= 4 for batch in batches)


def test_packed_batches_have_few_sizes_and_fillers_are_no_example():
    data = encoded(40)
    sizes = set()
    for start in range(0, 40, 8):
        (batch,) = microbatches(data, range(start, start + 8), packed=True)
        sizes.add(batch.input_ids.shape[1] % ROUND)
        real = np.array([row != FILLER for row in batch.rows])[batch.example[0].numpy()]
        assert real.sum() == batch.tokens
        assert real[batch.where.numpy()].all()
    assert sizes == {0}


def test_allocations_are_counted_in_order():
    with allocations() as changes:
        a = torch.empty(1000)
        b = a.sin()
        del a
        c = torch.empty(10)
    assert changes == [4000, 4000, -4000, 40]
    del b, c


def test_a_profiler_that_runs_already_is_left_alone():
    with torch.autograd.profiler.profile() as profile:
        with allocations() as changes:
            torch.ones(10)
        torch.ones(20)
    assert changes == []
    assert len(profile.function_events) > 0


def test_only_the_named_lines_of_standard_error_are_held_back(capfd):
    import os

    with without_lines(b"noise"):
        os.write(2, b"first\nsome noise here\nlast")
    assert capfd.readouterr().err == "first\nlast"


def test_within_kept_pages_a_freed_block_is_not_asked_for_again():
    """Blocks of 8 MiB, made and freed as activations are: the kernel gives their pages once."""
    resource = pytest.importorskip("resource")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            blocks = [torch.zeros(2**21) for _ in range(6)]
            del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with kept_pages() as outcome:
        if not outcome:
            pytest.skip("this allocator cannot be told")
        faults()
        assert faults() < 1000  # of 49,152 pages of 4 KiB
