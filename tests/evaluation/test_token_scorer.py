"""The per-token table under every condition, judged by plain loops over the model; streamed, resumed, bounded."""

from __future__ import annotations

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tests.tiny import tiny_model
from tests.training.small import adapted, encoded, wrap

from loratlas.data.examples import Example
from loratlas.errors import DataError, SettingsError
from loratlas.evaluation.forward_condition import Condition
from loratlas.evaluation.result_folder import ResultFolder
from loratlas.evaluation.score import score
from loratlas.evaluation.token_scorer import measure
from loratlas.evaluation.token_statistics import UNIT, error_bound
from loratlas.loss_audit.token_table import PARTS, read_table

PAD = 0


def table(model, data, tmp_path, condition=None, *, packed=False, **options):
    folder = tmp_path / f"t{len(list(tmp_path.iterdir()))}"
    return read_table(
        measure(model, data.examples, packed=packed, out=folder, condition=condition, **options)
    )


def losses(model, ids, mask=None):
    """(ℓ_t, ū_t) of the tokens 1 … of one sequence or batch, in float64 from the model's own logits."""
    ids = torch.as_tensor(np.asarray(ids)).long().reshape(-1, np.asarray(ids).shape[-1])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double()
    logp = torch.log_softmax(logits, -1)
    nll = -logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return nll.numpy(), -logp[:, :-1].mean(-1).numpy()


def as_dict(found, values=None):
    values = found.nll if values is None else values
    return {(int(e), int(p)): v for e, p, v in zip(found.example, found.position, values, strict=True)}


def same(found, wanted):
    found = as_dict(found)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=2e-5), key


@pytest.mark.parametrize("packed", [False, True])
def test_every_token_is_told_with_its_part(packed, tmp_path):
    model, data = adapted(), encoded(7)
    special = (3, 4, 5)
    built = table(model, data, tmp_path, packed=packed, everything=True, special=special, uniform=True)
    wanted, uniform = {}, {}
    for index, example in enumerate(data.examples):
        nll, mean = losses(model, example.input_ids)
        for position in range(1, len(example)):
            wanted[index, position] = nll[0, position - 1]
            uniform[index, position] = mean[0, position - 1]
    same(built, wanted)
    outcome = as_dict(built, built.uniform)
    assert all(outcome[key] == pytest.approx(value, abs=2e-5) for key, value in uniform.items())
    for e, p, part in zip(built.example, built.position, built.part, strict=True):
        example = data.examples[e]
        names = ("special", "end") if example.input_ids[p] in special else ("prompt", "answer")
        assert PARTS[part] == names[int(example.labelled[p])]


def test_counted_tokens_only_equal_score(tmp_path):
    model, data = adapted(), encoded(9)
    found, wanted = table(model, data, tmp_path), score(model, data, packed=True)
    sums = np.bincount(found.example, weights=found.nll)
    np.testing.assert_allclose(sums, wanted.nll, rtol=1e-5)
    assert found.uniform is None


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation(side, tmp_path):
    model, data = tiny_model("llama"), encoded(8)
    built = table(model, data, tmp_path, Condition(max_length=10, side=side), everything=True)
    wanted = {}
    for index, example in enumerate(data.examples):
        n = len(example)
        first = 0 if side == "right" else max(0, n - 10)
        nll, _ = losses(model, example.input_ids[first : first + 10])
        wanted |= {(index, first + position + 1): value for position, value in enumerate(nll[0])}
    same(built, wanted)


@pytest.mark.parametrize("stride", [None, 4, 7])
def test_windows_inside_examples(stride, tmp_path):
    model, data = tiny_model("llama"), encoded(6)
    window, step = 10, stride or 10
    built = table(model, data, tmp_path, Condition(window=window, stride=stride), everything=True)
    wanted = {}
    for index, example in enumerate(data.examples):
        scored = 0
        for start in range(0, len(example), step):
            ids = example.input_ids[start : start + window]
            if start + len(ids) <= scored and start:
                break
            nll, _ = losses(model, ids) if len(ids) > 1 else (np.zeros((1, 0)), None)
            for position in range(1, len(ids)):
                wanted.setdefault((index, start + position), nll[0, position - 1])
            scored = start + len(ids)
            if scored >= len(example):
                break
    same(built, wanted)


@pytest.mark.parametrize("stride", [None, 5])
def test_windows_over_examples_that_see_each_other(stride, tmp_path, monkeypatch):
    model, data = tiny_model("llama"), encoded(6)
    window, step = 16, stride or 16
    built = table(
        model, data, tmp_path, Condition(window=window, stride=stride, stream=True), everything=True, chunk=2
    )
    ids = np.concatenate([e.input_ids for e in data.examples])
    names = [(i, p) for i, e in enumerate(data.examples) for p in range(len(e))]
    wanted = {}
    for start in range(0, len(ids), step):
        nll, _ = losses(model, ids[start : start + window])
        for position in range(1, nll.shape[1] + 1):
            wanted.setdefault(names[start + position], nll[0, position - 1])
        if start + window >= len(ids):
            break
    same(built, wanted)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_filling_as_tools_do_it(side, kind, tmp_path):
    """Filling counted as text; at the left with the model's own positions, which count it."""
    model, data = tiny_model(kind), encoded(5)
    built = table(
        model, data, tmp_path, Condition(padding=side, batch_size=2), everything=True, pad_id=PAD, packed=True
    )
    wanted = {}
    for start in range(0, 5, 2):
        group = data.examples[start : start + 2]
        longest = max(len(e) for e in group)
        ids = np.full((len(group), longest), PAD)
        mask = np.zeros_like(ids)
        shift = []
        for row, e in enumerate(group):
            here = slice(0, len(e)) if side == "right" else slice(longest - len(e), longest)
            ids[row, here], mask[row, here] = e.input_ids, 1
            shift.append(0 if side == "right" else longest - len(e))
        nll, _ = losses(model, ids, torch.from_numpy(mask))
        for row in range(len(group)):
            for position in range(1, longest):
                wanted[start + row, position - shift[row]] = nll[row, position - 1]
    same(built, wanted)
    parts = {PARTS[p] for p in built.part}
    assert "padding" in parts


def test_left_padding_moves_learnt_positions_only(tmp_path):
    """Rotary positions know distances only; learnt ones are other vectors."""
    for kind, moves in (("llama", False), ("gpt2", True)):
        model, data = tiny_model(kind), encoded(5)
        right = as_dict(table(model, data, tmp_path, Condition(padding="right", batch_size=5)))
        left = as_dict(table(model, data, tmp_path, Condition(padding="left", batch_size=5)))
        furthest = max(abs(right[key] - left[key]) for key in right)
        assert (furthest > 1e-3) == moves


def test_labels_shifted_twice(tmp_path):
    model, data = tiny_model("llama"), encoded(5)
    for packed in (False, True):
        built = table(model, data, tmp_path, Condition(ahead=2), everything=True, packed=packed)
        wanted = {}
        for index, example in enumerate(data.examples):
            ids = torch.as_tensor(example.input_ids).long()
            with torch.no_grad():
                logp = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)
            wanted |= {(index, t + 2): -float(logp[t, ids[t + 2]]) for t in range(len(ids) - 2)}
        same(built, wanted)


def test_dropout_is_drawn_from_the_seed_and_the_model_comes_back(tmp_path):
    model, data = adapted(lora_dropout=0.5).eval(), encoded(6)
    off, on, again, other = (
        table(model, data, tmp_path, Condition(dropout=seed), packed=True) for seed in (None, 1, 1, 2)
    )
    np.testing.assert_array_equal(on.nll, again.nll)
    assert np.abs(on.nll - off.nll).max() > 1e-3
    assert np.abs(on.nll - other.nll).max() > 1e-3
    assert not model.training
    np.testing.assert_array_equal(off.nll, table(model, data, tmp_path, packed=True).nll)


def test_precision_and_adapter(tmp_path):
    model, data = adapted(), encoded(6)
    before = {name: p.clone() for name, p in model.named_parameters()}
    low = table(model, data, tmp_path, Condition(dtype="bfloat16"))
    full = table(model, data, tmp_path)
    assert 0 < np.abs(low.nll - full.nll).max() < 0.5
    assert low.error is not None
    assert full.error is not None
    assert low.error.min() > 10 * full.error.max() > 0
    for name, p in model.named_parameters():
        assert p.dtype == before[name].dtype
        assert torch.equal(p, before[name])
    bare = table(model, data, tmp_path, Condition(adapter=False))
    with model.disable_adapter():
        for index, example in enumerate(data.examples):
            nll, _ = losses(model, example.input_ids)
            wanted = nll[0][np.flatnonzero(example.labelled) - 1]
            np.testing.assert_allclose(bare.nll[bare.example == index], wanted, atol=2e-5)
    assert np.abs(bare.nll - full.nll).max() > 1e-3
    with pytest.raises(SettingsError, match="without an adapter"):
        table(tiny_model("llama"), data, tmp_path, Condition(adapter=False))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 300),
    st.floats(0.1, 60),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_the_bound_holds_against_float64(seed, vocabulary, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(40, vocabulary, dtype=torch.float64, generator=generator) * scale
    targets = torch.randint(0, vocabulary, (40,), generator=generator)
    rounded = exact.to(dtype).float()
    outcome = -torch.log_softmax(rounded, -1).gather(1, targets[:, None])[:, 0]
    wanted = -torch.log_softmax(exact, -1).gather(1, targets[:, None])[:, 0]
    bound = error_bound(rounded.clone(), targets[:, None], UNIT[dtype], 1, outcome)
    assert bool(((outcome.double() - wanted).abs() <= bound.double()).all())


def test_the_bound_is_reached():
    """Logits rounded the worst way fill most of it: it is no loose one."""
    z = torch.tensor([[64.0, 60.0, 60.0]])
    low = torch.tensor([[64 * (1 - 2.0**-9), 60 * (1 + 2.0**-9), 60 * (1 + 2.0**-9)]])
    outcome, worst = (-torch.log_softmax(x.double(), -1)[:, 0] for x in (z, low))
    bound = error_bound(z.clone(), torch.tensor([[0]]), 2.0**-9, 1, outcome.float())
    assert float(worst - outcome) == pytest.approx(float(bound), rel=0.02)


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    model, data = adapted(lora_dropout=0.3), encoded(20)
    options = {"packed": True, "condition": Condition(dropout=3), "chunk": 4, "max_tokens": 64}
    whole = read_table(measure(model, data.examples, out=tmp_path / "whole", **options))
    calls, right = [], ResultFolder.write

    def dies(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(ResultFolder, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(model, data.examples, out=tmp_path / "cut", **options)
    assert not (tmp_path / "cut" / "tokens.parquet").exists()
    again = read_table(measure(model, data.examples, out=tmp_path / "cut", **options))
    assert len(calls) == 3 + 3  # the two whole parts were not scored again
    for name in ("example", "position", "part", "nll"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "digests.json",
        "examples.parquet",
        "tokens.parquet",
    ]
    assert parquet.ParquetFile(tmp_path / "cut" / "tokens.parquet").num_row_groups == 5


def test_other_rows_or_weights_begin_anew(tmp_path, monkeypatch):
    model, data, other = adapted(), encoded(8), encoded(8, seed=1)
    right = ResultFolder.write

    def begin(model, data):
        calls = []

        def dies(*arguments):
            calls.append(None)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return right(*arguments)

        monkeypatch.setattr(ResultFolder, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            measure(model, data.examples, packed=True, out=tmp_path / "x", chunk=4)
        monkeypatch.setattr(ResultFolder, "write", right)

    for new_model, new_data in ((model, other), (adapted(seed=5), data)):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        begin(model, data)
        result = read_table(measure(new_model, new_data.examples, packed=True, out=tmp_path / "x", chunk=4))
        wanted = table(new_model, new_data, tmp_path, packed=True)
        np.testing.assert_allclose(result.nll, wanted.nll, atol=1e-6)


def test_memory_does_not_grow_with_the_examples(tmp_path):
    """No more than one chunk of examples is alive at a time, however many there are."""
    most = 0

    class Ids(np.ndarray):
        pass

    def stream():
        nonlocal most
        random = np.random.default_rng(0)
        for row in range(60):
            ids = random.integers(3, 90, 6).astype(np.int32).view(Ids)
            weakref.finalize(ids, live.discard, row)
            live.add(row)
            most = max(most, len(live))
            yield Example(input_ids=ids, labelled=np.arange(6) > 2, row=row)

    live: set[int] = set()
    gc.collect()
    measure(tiny_model("llama"), stream(), packed=True, out=tmp_path, chunk=5)
    assert len(read_table(tmp_path)) == 60 * 3
    assert most <= 2 * 5 + 1


def test_nothing_to_score(tmp_path):
    with pytest.raises(DataError, match="no examples"):
        measure(tiny_model("llama"), [], packed=True, out=tmp_path)
    silent = Example(input_ids=np.arange(3, 8, dtype=np.int32), labelled=np.zeros(5, dtype=bool), row=0)
    with pytest.raises(DataError, match="no answer tokens"):
        measure(tiny_model("llama"), wrap([silent]).examples, packed=True, out=tmp_path)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"window": 0}, "window 0"),
        ({"stride": 4}, "no window"),
        ({"window": 4, "stride": 5}, "stride 5"),
        ({"padding": "left"}, "batch_size None"),
        ({"padding": "left", "batch_size": 2, "window": 8}, "two ways"),
    ],
)
def test_conditions_that_make_no_sense(fields, word):
    with pytest.raises(SettingsError, match=word):
        Condition(**fields)


def test_a_type_that_is_none(tmp_path):
    with pytest.raises(SettingsError, match="no type of numbers"):
        table(tiny_model("llama"), encoded(2), tmp_path, Condition(dtype="int8"))
