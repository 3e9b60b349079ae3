"""Logs of other tools: every form is read, what is missing is listed, and the definition behind a number is found."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loratlas.errors import DataError
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, value
from loratlas.loss_audit.log_numbers import Log, Number
from loratlas.loss_audit.match_logs import by_example, explain
from loratlas.loss_audit.read_logs import read_log, read_logs
from loratlas.loss_audit.text_units import Texts
from loratlas.loss_audit.token_table import PARTS, LossTable

STATE = {
    "best_metric": None,
    "epoch": 1.0,
    "eval_steps": 3,
    "global_step": 6,
    "log_history": [
        {"epoch": 0.5, "grad_norm": 0.8, "learning_rate": 0.004, "loss": 8.1626, "step": 3},
        {"epoch": 0.5, "eval_loss": 7.071999549865723, "eval_runtime": 2.0, "step": 3},
        {
            "epoch": 1.0,
            "eval_loss": 6.436965465545654,
            "eval_runtime": 0.8453,
            "eval_samples_per_second": 35.49,
            "eval_steps_per_second": 9.464,
            "step": 6,
        },
        {"epoch": 1.0, "step": 6, "train_loss": 7.27, "train_runtime": 3.0, "train_steps_per_second": 2.0},
    ],
    "max_steps": 6,
    "train_batch_size": 4,
}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def evidence(rows: int = 23, seed: int = 0) -> LossEvidence:
    """A made-up table: prompts are easier than answers, long answers easier than short ones."""
    random = np.random.default_rng(seed)
    columns: dict[str, list] = {"example": [], "position": [], "part": [], "nll": []}
    for example in range(rows):
        prompt, answer = int(random.integers(3, 9)), int(random.integers(2, 30))
        level = 3 - answer / 15 + random.normal(0, 0.3)
        parts = ["special", *["prompt"] * prompt, *["answer"] * answer, "end"]
        for position, part in enumerate(parts):
            columns["example"].append(example)
            columns["position"].append(position)
            columns["part"].append(PARTS.index(part))
            columns["nll"].append(abs(random.normal(1.0 if part == "prompt" else level, 0.5)))
    made = {name: np.array(column) for name, column in columns.items()}
    table = LossTable(**made, tokens=np.ones(len(made["nll"]), dtype=np.int64), uniform=made["nll"] + 4.0)
    sizes = np.bincount(made["example"][made["part"] == 0])
    return LossEvidence(
        tables={REFERENCE: table}, texts=Texts(bytes=5 * sizes, characters=4 * sizes, words=sizes)
    )


def number(given: float, *, kind: str = "loss", rounding: float = 0.0) -> Log:
    made = Number(name="eval_loss", value=given, kind=kind, where="/eval_loss", rounding=rounding)  # type: ignore[arg-type]
    return Log(tool="transformers Trainer", path=Path("x.json"), numbers=(made,))


# --- reading ---------------------------------------------------------------------------------------------------


def test_trainer_state(tmp_path):
    log = read_log(write(tmp_path / "trainer_state.json", STATE))
    assert log.tool == "transformers Trainer"
    assert [(n.name, n.step, n.training) for n in log.numbers] == [
        ("loss", 3, True),
        ("eval_loss", 3, False),
        ("eval_loss", 6, False),
        ("train_loss", 6, True),
    ]
    assert log.numbers[2].where == "/log_history/2/eval_loss"
    assert log.numbers[2].rounding == 0
    assert log.numbers[0].rounding == pytest.approx(5e-5)
    # 35.49 · 0.8453 = 30 rows, 9.464 · 0.8453 = 8 steps: batches of 4, which is not in the list of what is missing.
    assert log.batch_sizes == (4,)
    assert "per_device_eval_batch_size" not in {setting.name for setting in log.missing}


def test_results_without_rates_do_not_say_the_batch_size(tmp_path):
    log = read_log(write(tmp_path / "all_results.json", {"eval_loss": 2.25, "perplexity": 9.487735836358526}))
    assert [(n.name, n.kind) for n in log.numbers] == [("eval_loss", "loss"), ("perplexity", "perplexity")]
    assert log.batch_sizes == ()
    told = {setting.name: setting.effect for setting in log.missing}
    assert "changes with the batch size" in told["per_device_eval_batch_size"]
    assert {"label_smoothing_factor", "packing", "number of processes", "compute_loss"} <= set(told)


@pytest.mark.parametrize(
    ("rows", "batch", "fit"), [(30, 4, [4]), (1000, 8, [8]), (1000, 64, [63, 64, 65, 66]), (3, 8, None)]
)
def test_batch_sizes_follow_from_the_rates(tmp_path, rows, batch, fit):
    seconds = 7.3219
    rates = {
        "eval_loss": 1.5,
        "eval_runtime": seconds,
        "eval_samples_per_second": round(rows / seconds, 3),
        "eval_steps_per_second": round(-(-rows // batch) / seconds, 3),
    }
    sizes = read_log(write(tmp_path / "eval_results.json", rates)).batch_sizes
    assert list(sizes) == (fit if fit is not None else [3])
    assert min(batch, rows) in sizes


def test_llama_factory_s_log(tmp_path):
    lines = [
        {
            "current_steps": 5,
            "total_steps": 10,
            "loss": 2.5001,
            "lr": 5e-05,
            "epoch": 0.5,
            "percentage": 50.0,
        },
        {"current_steps": 10, "total_steps": 10, "eval_loss": 2.25, "epoch": 1.0, "elapsed_time": "0:00:10"},
    ]
    log = read_log(write(tmp_path / "trainer_log.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert log.tool == "LLaMA-Factory"
    assert [(n.name, n.step, n.training, n.where) for n in log.numbers] == [
        ("loss", 5, True, "line 1, loss"),
        ("eval_loss", 10, False, "line 2, eval_loss"),
    ]


def test_cal_ppl_s_list(tmp_path):
    log = read_log(write(tmp_path / "ppl.json", [2.0, 4.0, 9.0]))
    assert log.tool == "LLaMA-Factory cal_ppl"
    assert (log.numbers[0].value, log.numbers[0].kind) == (5.0, "perplexity")
    assert log.settings == {"examples": 3}
    assert {"train_on_prompt", "cutoff_len"} <= {setting.name for setting in log.missing}


def test_axolotl_s_summary(tmp_path):
    text = "metric,training,validation\nloss,2.01,2.2512345678901\nruntime,3.1,1.2\n"
    log = read_log(write(tmp_path / "eval_summary.csv", text))
    assert log.tool == "axolotl"
    assert [(n.name, n.value) for n in log.numbers] == [
        ("training loss", 2.01),
        ("validation loss", 2.2512345678901),
    ]


def test_a_printed_log(tmp_path):
    text = (
        "[2025-01-01 10:00:00] [INFO] [axolotl.train] starting\n"
        "{'loss': '2.501', 'grad_norm': '0.8', 'learning_rate': '5e-05', 'epoch': '0.5'}\n"
        " 50%|#####     | 5/10 {'eval_loss': 2.2513, 'eval_runtime': 1.25, 'epoch': 1.0}\n"
        "{'not': a dictionary}\n"
    )
    log = read_log(write(tmp_path / "debug.log", text))
    assert log.tool == "axolotl"
    assert [(n.name, n.value, n.rounding) for n in log.numbers] == [
        ("loss", 2.501, 0.0005),
        ("eval_loss", 2.2513, pytest.approx(5e-5)),
    ]


def test_a_printed_log_of_transformers_5(tmp_path):
    """Numbers are texts, some without a point; epochs follow one another; a terminal wraps; losses may be nan."""
    text = (
        "{'loss': 2.01, 'grad_norm': nan, 'epoch': 0.5}\n"
        "{'eval_loss': '9.500', 'eval_runtime': '2.001', 'eval_samples_per_second': '11.99', "
        "'eval_steps_per_second': '2.998', 'epoch': '1'}\n"
        "{'eval_loss': '5.908', 'eval_runtime': '2', 'eval_samples_per_second':   \n"
        "  '12', 'eval_steps_per_second': '3', 'epoch': '2'}\n"
        "{'eval_loss': '6', 'eval_entropy': -inf, 'epoch': '3'}\n"
        "{'eval_loss': nan, 'eval_ru\nntime': 2.0, 'epoch': 4.0}\n"
    )
    log = read_log(write(tmp_path / "train.log", text))
    assert [(n.name, n.value, n.rounding, n.epoch, n.where) for n in log.numbers[:4]] == [
        ("loss", 2.01, pytest.approx(0.005), 0.5, "line 1, loss"),
        ("eval_loss", 9.5, pytest.approx(0.0005), 1.0, "line 2, eval_loss"),
        ("eval_loss", 5.908, pytest.approx(0.0005), 2.0, "line 3, eval_loss"),
        ("eval_loss", 6.0, 0.5, 3.0, "line 5, eval_loss"),
    ]
    assert log.batch_sizes == (4,)
    assert math.isnan(log.numbers[4].value)
    told = explain(log, evidence())
    assert [one.verdict for one in told] == ["training", "earlier", "earlier", "earlier", "not a number"]
    assert "after 3 epochs; the last evaluation of this log was after 4" in told[3].could_be[0]
    assert "without a counted token" in told[4].could_be[0]


def test_nan_in_a_state_is_said(tmp_path):
    state = '{"log_history": [{"eval_loss": NaN, "step": 10, "epoch": 1.0}, {"loss": 2.0, "step": 10}]}'
    log = read_log(write(tmp_path / "trainer_state.json", state))
    assert [one.verdict for one in explain(log, evidence())] == ["not a number", "training"]


def test_a_batch_size_that_the_log_says_is_believed(tmp_path):
    said = {"eval_loss": 2.5, "args": {"per_device_eval_batch_size": 6}}
    assert read_log(write(tmp_path / "eval_results.json", said)).batch_sizes == (6,)
    state = {"log_history": [{"eval_loss": 2.5, "step": 1}], "per_device_eval_batch_size": 3}
    assert read_log(write(tmp_path / "trainer_state.json", state)).batch_sizes == (3,)


def test_the_harness_s_results(tmp_path):
    results = {
        "results": {
            "wikitext": {
                "alias": "wikitext",
                "word_perplexity,none": 37.37,
                "word_perplexity_stderr,none": "N/A",
                "byte_perplexity,none": 1.968,
                "bits_per_byte,none": 0.9768,
            },
            "arc_easy": {"acc,none": 0.5},
        },
        "config": {"model": "hf", "model_args": "pretrained=gpt2", "batch_size": 8},
        "n-samples": {"wikitext": {"original": 62, "effective": 62}},
    }
    log = read_log(write(tmp_path / "results_2025.json", results))
    assert log.tool == "lm-evaluation-harness"
    assert [(n.name, n.kind) for n in log.numbers] == [
        ("wikitext word_perplexity", "word_perplexity"),
        ("wikitext byte_perplexity", "byte_perplexity"),
        ("wikitext bits_per_byte", "bits_per_byte"),
    ]
    assert log.settings["model_args"] == "pretrained=gpt2"


def test_a_folder_is_all_its_logs(tmp_path):
    write(tmp_path / "trainer_state.json", STATE)
    write(tmp_path / "eval_results.json", {"eval_loss": 2.0})
    write(tmp_path / "config.json", {"model_type": "llama"})
    assert [log.path.name for log in read_logs(tmp_path)] == ["trainer_state.json", "eval_results.json"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("nothing.json", {"accuracy": 0.5}, "no loss and no perplexity"),
        ("broken.json", '{"eval_loss": 2.0', "broken JSON"),
        ("broken.jsonl", '{"eval_loss": 2.0}\n{"eval', "line 2"),
        ("words.log", "nothing of the kind", "no loss and no perplexity"),
        ("other.csv", "a,b\n1,2\n", "columns a, b"),
        ("empty.csv", "", "(none)"),
        ("list.json", ["a", "b"], "no loss and no perplexity"),
        ("none.json", [2.0, math.nan], "example 1 has the perplexity nan"),
        ("many.json", [2.0, math.inf, math.inf], "(2 such)"),
    ],
)
def test_what_is_no_log_is_refused_in_words(tmp_path, name, content, word):
    with pytest.raises(DataError) as caught:
        read_logs(write(tmp_path / name, content))
    assert word in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_log_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_logs(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"trainer_state\.json"):
        read_logs(tmp_path)


# --- explaining ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "counted"),
    [
        (Definition(name="token_mean"), "answers"),
        (Definition(name="example_mean", aggregate="example"), "answers"),
        (Definition(name="batch_mean_4", aggregate="batch", batch_size=4), "answers"),
        (Definition(name="median", aggregate="median"), "answers"),
        (Definition(name="prompt", covers=("answer", "end", "prompt", "tail")), "prompts too"),
        (Definition(name="end", covers=("answer",), aggregate="batch", batch_size=8), "answers without their end"),
        (Definition(name="smooth", smoothing=0.1), "answers"),
    ],
)  # fmt: skip
def test_a_loss_finds_its_definition(definition, counted):
    known = evidence()
    (told,) = explain(number(value(definition, known)), known)
    assert told.verdict == "reproduced"
    best = told.matches[0].definition
    assert (best.aggregate, best.covers, best.smoothing) == (
        definition.aggregate,
        definition.covers,
        definition.smoothing,
    )
    assert best.batch_size in (definition.batch_size, None)
    assert told.matches[0].counted == counted
    assert told.to_json(known)["matches"][0]["gap"]["residual"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        (Definition(name="p", exponential=True), "perplexity"),
        (Definition(name="m", aggregate="log_mean_exp", exponential=True), "perplexity"),
        (Definition(name="w", unit="nats_per_word", exponential=True), "word_perplexity"),
        (Definition(name="b", unit="bits_per_byte"), "bits_per_byte"),
        (Definition(name="b", unit="bits_per_byte", covers=("answer",)), "bits_per_byte"),
    ],
)
def test_a_perplexity_finds_its_definition(definition, kind):
    known = evidence()
    (told,) = explain(number(value(definition, known), kind=kind), known)
    assert told.verdict == "reproduced"
    best = told.matches[0].definition
    assert (best.aggregate, best.covers, best.unit) == (
        definition.aggregate,
        definition.covers,
        definition.unit,
    )


def test_byte_perplexity_is_two_to_the_bits_per_byte():
    known = evidence()
    bits = value(Definition(name="b", unit="bits_per_byte"), known)
    (told,) = explain(number(2**bits, kind="byte_perplexity"), known)
    assert told.verdict == "reproduced"
    assert told.matches[0].value == pytest.approx(2**bits)


def test_few_printed_digits_allow_more_than_one():
    known = evidence()
    given = value(Definition(name="token_mean"), known)
    (exact,) = explain(number(given), known)
    (rounded,) = explain(number(round(given, 1), rounding=0.05), known)
    assert len(rounded.matches) > len(exact.matches) >= 1


def test_what_none_gives_is_told_with_what_it_could_be(tmp_path):
    known = evidence()
    log = read_log(write(tmp_path / "all_results.json", {"eval_loss": 0.123456789}))
    (told,) = explain(log, known)
    assert (told.verdict, told.matches) == ("not reproduced", ())
    assert len(told.nearest) == 3
    assert abs(told.nearest[0].value - 0.123456789) <= abs(told.nearest[1].value - 0.123456789)
    words = " ".join(told.could_be)
    assert "changes with the batch size" in words
    assert "another checkpoint" in words
    assert "which tokens are labels" not in words, "that was tried"


def test_evaluations_of_earlier_checkpoints_are_told_apart(tmp_path):
    log = read_log(write(tmp_path / "trainer_state.json", STATE))
    told = {(one.number.name, one.number.step): one for one in explain(log, evidence())}
    assert told["eval_loss", 3].verdict == "earlier"
    assert "after 3 steps" in told["eval_loss", 3].could_be[0]
    assert told["eval_loss", 6].verdict == "not reproduced"
    assert told["loss", 3].verdict == told["train_loss", 6].verdict == "training"


def test_a_pass_in_sixteen_bits_may_be_further_off():
    """By as much as its rounding moved the loss from that of float32."""
    known = evidence()
    reference = known.tables[REFERENCE]
    given = value(Definition(name="token_mean"), known) * 1.00045
    rounded = replace(reference, nll=reference.nll * 1.0004, uniform=None)
    both = LossEvidence(tables={**known.tables, "bfloat16": rounded}, texts=known.texts)
    assert explain(number(given), known, batch_sizes=[23])[0].verdict == "not reproduced"
    assert explain(number(given), both, batch_sizes=[23])[0].verdict == "not reproduced"
    (told,) = explain(number(given), both, batch_sizes=[23], rough=["bfloat16"])
    assert told.verdict == "reproduced"
    assert told.matches[0].definition.table == "bfloat16"


def test_infinite_losses_are_said_with_token_and_example():
    known = evidence()
    table = known.tables[REFERENCE]
    table.nll[np.flatnonzero(table.part == 0)[5]] = np.inf
    with pytest.raises(DataError, match=r"token \d+ of example 0 has log-probability −inf"):
        explain(number(2.0), known)


def test_a_list_of_perplexities_is_held_against_every_example(tmp_path):
    known = evidence()
    table = known.tables[REFERENCE]
    counted = table.covered(("answer", "end", "prompt"))
    means = np.bincount(table.example, table.nll * counted) / np.bincount(table.example, counted)
    wrong = np.exp(means)
    wrong[7] *= 1.5
    log = read_log(write(tmp_path / "ppl.json", wrong.tolist()))
    told = by_example(log, known)
    assert told is not None
    assert (told.reproduced, told.of, told.counted, told.worst) == (22, 23, "prompts too", 7)
    assert told.listed == pytest.approx(1.5 * told.computed)
    assert by_example(read_log(write(tmp_path / "short.json", [2.0, 3.0])), known) is None


def test_numbers_that_are_none(tmp_path):
    huge = write(tmp_path / "eval_results.json", '{"eval_loss": %s, "perplexity": 3.5}' % ("9" * 400))
    assert [number.name for number in read_log(huge).numbers] == ["perplexity"]
    dots = write(tmp_path / "x.log", "Average perplexity is 1.1.1.1")
    with pytest.raises(DataError, match="no loss and no perplexity"):
        read_log(dots)
    said = write(tmp_path / "y.log", "Average perplexity is 12.25.")
    assert [number.value for number in read_log(said).numbers] == [12.25]


def test_a_table_of_evaluations_and_a_tracker_s_export(tmp_path):
    table = write(
        tmp_path / "metrics.csv", "epoch,step,train_loss,val_loss\n0,3,3.2,\n0,3,,2.5125\n1,6,,2.25001\n"
    )
    log = read_log(table)
    assert [(n.name, n.value, n.step, n.epoch, n.training) for n in log.numbers] == [
        ("train_loss", 3.2, 3, 0.0, True),
        ("val_loss", 2.5125, 3, 0.0, False),
        ("val_loss", 2.25001, 6, 1.0, False),
    ]
    lines = json.dumps({"_step": 4, "eval/loss": 2.25001, "train/loss": 3.2, "eval/runtime": 1.0})
    log = read_log(write(tmp_path / "history.jsonl", lines))
    assert [(n.name, n.training) for n in log.numbers] == [("eval/loss", False), ("train/loss", True)]
    with pytest.raises(DataError, match="columns a, b"):
        read_log(write(tmp_path / "other.csv", "a,b\n1,2\n"))
    with pytest.raises(DataError, match="no table"):
        read_log(write(tmp_path / "long.csv", "eval_loss\n" + "x" * 200_000 + "\n"))
