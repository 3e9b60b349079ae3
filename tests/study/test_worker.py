"""One worker, many runs: whatever a run did to the base, the next one starts from the base as it was."""

from __future__ import annotations

import json

import pytest

from loratlas.child_process import LEAN, child_environment
from loratlas.data.encode import encode, load_tokenizer
from loratlas.errors import RunError, SpecError, StorageError
from loratlas.sources import model_source, open_model, open_rows
from loratlas.study.execution.run_records import (
    load_encoded,
    read_curve,
    read_examples,
    read_record,
    save_encoded,
)
from loratlas.study.execution.worker import Worker, checksum, describe
from loratlas.study.execution.worker_pool import rebuilt
from loratlas.study.inputs.match_budgets import plans
from loratlas.study.inputs.prepare import training
from loratlas.study.inputs.row_splits import subset
from loratlas.study.spec.spec_file import parse_spec

SPEC = parse_spec(
    {
        "model": "demo:llama-mini",
        "data": {"train": "demo:facts-300"},
        "arms": {
            "full": "all@top/4:2",
            "pissa": {"placement": "attention@top/4:2", "init": "pissa"},
            "noisy": {"placement": "attention@top/4:2", "dropout": 0.2},
            "dora": {"placement": "attention@top/4:2", "dora": True},
        },
        "reference": "full",
        "steps": 3,
        "batch_size": 4,
        "max_length": 64,
    }
)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """What a coordinator would have written: encoded rows and settings."""
    cache = tmp_path_factory.mktemp("cache")
    source = model_source(SPEC.model)
    rows = encode(open_rows("demo:facts-300"), load_tokenizer(source), max_length=64)
    data = {}
    for name, places in (("train", range(64)), ("tuning", range(64, 72)), ("evaluation", range(72, 84))):
        data[name] = str(cache / f"{name}.npz")
        save_encoded(cache / f"{name}.npz", subset(rows, list(places)))
    return {
        "model": source,
        "dtype": SPEC.dtype,
        "base_dropout": False,
        "packing": "auto",
        "max_length": 64,
        "device": "cpu",
        "data": data,
        "training": training(SPEC),
        "versions": {},
        "revision": None,
    }


def job(folder, arm, *, seed=1, phase="evaluation", lr=3e-3):
    from loratlas.anatomy.read import read

    return {
        "key": {"phase": phase, "arm": arm, "lr": lr, "seed": seed},
        "identity": {},
        "digest": folder.name,
        "folder": str(folder),
        "arm": SPEC.arms[arm].model_dump(mode="json"),
        "plan": plans(SPEC, read(model_source(SPEC.model)))[0][arm].to_json(),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # that DoRA's layers run PEFT's own pass
def test_a_run_does_not_depend_on_the_runs_before_it(setup, tmp_path):
    worker = Worker(setup, lambda message: None)
    worker.run(job(tmp_path / "pissa", "pissa"))  # moves a part of the base into the adapter
    worker.run(job(tmp_path / "noisy", "noisy"))
    worker.run(job(tmp_path / "dora", "dora"))
    worker.run(job(tmp_path / "after", "full"))
    assert checksum(worker._model) == checksum(open_model(SPEC.model, dtype="float32"))
    fresh = Worker(setup, lambda message: None)
    fresh.run(job(tmp_path / "alone", "full"))
    assert (read_examples(tmp_path / "after")[2] == read_examples(tmp_path / "alone")[2]).all()
    assert (read_curve(tmp_path / "after")["nll"] == read_curve(tmp_path / "alone")["nll"]).all()


@pytest.mark.filterwarnings("ignore::UserWarning")  # that DoRA's layers run PEFT's own pass
def test_runs_side_by_side_equal_the_runs_alone(setup, tmp_path):
    def jobs(folder):
        names = ("full", "noisy", "pissa", "dora")
        listed = [job(folder / f"{index}-{name}", name, seed=index) for index, name in enumerate(names)]
        return [{**one, "checkpoint": str(folder / "kept" / one["digest"])} for one in listed]

    messages = []
    worker = Worker(setup, messages.append)
    worker.run_all(jobs(tmp_path / "together"))
    assert [m["index"] for m in messages if m["event"] == "finished"] == [0, 1, 2, 3]
    assert {m["index"] for m in messages if m["event"] == "step"} == {0, 1, 2, 3}
    for one in jobs(tmp_path / "alone"):
        worker.run(one)
    trained = []
    for together in jobs(tmp_path / "together"):
        alone = tmp_path / "alone" / together["digest"]
        trained.append(read_record(tmp_path / "together" / together["digest"])["trained"])
        listed, wanted = (read_examples(f)[2] for f in (tmp_path / "together" / together["digest"], alone))
        assert listed == pytest.approx(wanted, rel=1e-5)
        assert read_record(alone)["trained"] == "alone"
    pissa = "alone: init pissa changes the base, which a fleet shares"
    dora = "alone: DoRA rescales the rows of the base's matrices, which a fleet shares"
    assert trained == ["in a fleet of 2", "in a fleet of 2", pissa, dora]
    assert checksum(worker._model) == checksum(open_model(SPEC.model, dtype="float32"))


def test_phases_judge_on_their_own_rows_and_seeds_differ(setup, tmp_path):
    messages = []
    worker = Worker(setup, messages.append)
    worker.run(job(tmp_path / "tuning", "full", phase="tuning"))
    worker.run(job(tmp_path / "one", "full"))
    worker.run(job(tmp_path / "two", "full", seed=2))
    assert len(read_examples(tmp_path / "tuning")[0]) == 8
    assert len(read_examples(tmp_path / "one")[0]) == 12
    assert (read_examples(tmp_path / "one")[2] != read_examples(tmp_path / "two")[2]).any()
    assert {message["event"] for message in messages} == {"step"}
    record = read_record(tmp_path / "one")
    _, n, nll = read_examples(tmp_path / "one")
    assert record["nll"] == pytest.approx(nll.sum() / n.sum())
    assert record["steps"] == 3
    assert not list(tmp_path.glob(".*"))  # nothing half-written


def test_a_diverged_run_has_a_record_and_no_losses(setup, tmp_path):
    worker = Worker({**setup, "training": {**setup["training"], "clip": None}}, lambda message: None)
    worker.run(job(tmp_path / "wild", "full", lr=1e30))
    record = read_record(tmp_path / "wild")
    assert record["diverged"]
    assert record["nll"] is None
    assert not (tmp_path / "wild" / "examples.parquet").exists()
    json.loads((tmp_path / "wild" / "record.json").read_text(), parse_constant=pytest.fail)


def test_the_checksum_sees_one_bit(setup):
    model = open_model(SPEC.model, dtype="bfloat16")
    before = checksum(model)
    weight = model.model.layers[3].mlp.up_proj.weight
    value = weight.data[5, 7].clone()
    weight.data[5, 7] = value * 1.01
    assert checksum(model) != before
    weight.data[5, 7] = value
    assert checksum(model) == before
    # Two rows swapped keep every sum.
    weight.data[[0, 1]] = weight.data[[1, 0]]
    assert checksum(model) != before


def test_encoded_rows_survive_the_file(setup, tmp_path):
    rows = load_encoded(setup["data"]["evaluation"])
    save_encoded(tmp_path / "again.npz", rows)
    again = load_encoded(tmp_path / "again.npz")
    assert (again.digest, again.report, again.template) == (rows.digest, rows.report, rows.template)
    for one, other in zip(rows.examples, again.examples, strict=True):
        assert (one.input_ids == other.input_ids).all()
        assert (one.labelled == other.labelled).all()
        assert one.row == other.row


def test_errors_travel_from_worker_to_coordinator():
    result = rebuilt(describe(SpecError(given="a", found="b", instead="c")))
    assert isinstance(result, SpecError)
    assert (result.given, result.found, result.instead) == ("a", "b", "c")
    full = rebuilt(describe(OSError(28, "No space left on device")))
    assert isinstance(full, StorageError)
    assert "No space left" in full.found
    assert isinstance(rebuilt(describe(ZeroDivisionError("x"))), RunError)


def matched(arms, **changes):
    from loratlas.anatomy.read import read

    spec = parse_spec({**SPEC.model_dump(mode="json"), "arms": arms, "match": "params", **changes})
    return plans(spec, read(model_source(SPEC.model)))


@pytest.mark.parametrize("dora", ["full", "half"])
def test_arms_with_dora_are_matched_by_all_that_they_train(dora):
    arms = {"full": {"placement": "all@top/4:4"}, "half": {"placement": "attention@top/4"}}
    arms[dora] |= {"dora": True}
    solved, matches = matched(arms)
    assert solved[dora].dora
    assert solved["half"].trainable <= solved["full"].trainable
    assert (matches["half"].got, matches["half"].wanted) == tuple(
        solved[n].trainable for n in ("half", "full")
    )
    assert abs(matches["half"].relative) < 0.05


def test_an_arm_without_dora_is_the_arm_that_it_was():
    assert "dora" not in SPEC.arms["full"].model_dump(mode="json")
    assert SPEC.arms["dora"].model_dump(mode="json")["dora"] is True


def test_a_process_of_our_own_keeps_few_kernels_unless_told_otherwise(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    assert child_environment()[name] == LEAN[name]
    monkeypatch.setenv(name, "1024")
    assert child_environment()[name] == "1024"
