"""What `train` says first: the loss before and after, the rate that it chose, and answers side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loratlas.demo import base_path
from loratlas.training.learning_rate import HIGHEST, LOWEST, default_rate

MODEL, DATA = "demo:llama-mini", "demo:facts-300"


def test_losses_before_and_after_and_answers_side_by_side(cli, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    made = [{"prompt": f"Say {i}:", "completion": f" {i}"} for i in range(12)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    words = (
        "--placement",
        "q_proj:2",
        "--steps",
        "3",
        "--max-length",
        "32",
        "--dtype",
        "float32",
        "--eval",
        rows,
    )
    told = cli("train", MODEL, rows, *words, "--samples", "2", "--out", tmp_path / "run")
    assert told.code == 0, told.err
    base = cli("eval", MODEL, rows, "--max-length", "32", "--dtype", "float32", "--json").json[
        "token_mean_nll"
    ]
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert run["loss_before"] == pytest.approx(base, abs=1e-5)
    assert run["eval"]["token_mean_nll"] < base
    lines = {" ".join(line.split()[:-1]): line.split()[-1] for line in told.out.splitlines() if line.split()}
    assert lines["evaluation loss of the base"] == f"{base:.4f}"
    assert lines["difference"].startswith("−")
    heading = next(line.split() for line in told.out.splitlines() if "wanted" in line)
    assert heading == ["prompt", "base", "with", "the", "adapter", "wanted"]
    assert all({"base", "answer", "wanted"} <= set(sample) for sample in run["samples"]["samples"])
    # Without --lr the base and the batch decide, and the run says so.
    assert run["settings"]["lr"] == default_rate(width=256, batch_size=16).rate == 0.01
    assert "learning rate 0.01, chosen for a base of width 256 with 16 examples per step" in told.words
    # What did not happen is not reported.
    assert not run["compiled"]
    assert "torch.compile" not in told.err


def test_how_steps_were_computed_is_said_on_request(cli, tmp_path: Path):
    words = ("--placement", "q:2", "--steps", "1", "--limit", "8", "--max-length", "32", "--lr", "1e-4")
    told = cli("train", MODEL, DATA, *words, "-v", "--out", tmp_path / "run")
    assert told.code == 0, told.err
    assert "torch.compile:" in told.err
    assert "chosen for a base" not in told.err
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["settings"]["lr"] == 1e-4


def test_rates_fall_with_width_and_with_small_batches():
    rates = [default_rate(width=width, batch_size=16).rate for width in (128, 576, 2048, 4096, 8192)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= HIGHEST
    assert default_rate(width=576, batch_size=16).rate == 0.005
    assert default_rate(width=576, batch_size=2).rate < 1e-3
    assert default_rate(width=576, batch_size=64).rate == 0.01
    assert default_rate(width=10**6, batch_size=1).rate == LOWEST


def test_rates_are_tried_in_the_head_and_python_agrees(cli, tmp_path: Path):
    made = [{"prompt": f"Say {i}:", "completion": f" {i}"} for i in range(12)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    words = ("--placement", "q_proj:2", "--steps", "50", "--batch-size", "2", "--max-length", "32")
    told = cli("train", MODEL, rows, *words, "--dtype", "float32", "--out", tmp_path / "run")
    assert told.code == 0, told.err
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    rates = run["rates"]
    assert run["settings"]["lr"] == rates["chosen"]
    assert 0 < rates["set_aside"] <= 5
    assert "take at most 5 steps (10% of the run)" in told.words
    assert f"learning rate {rates['chosen']:g}, {rates['reason']}" in told.words
    import loratlas

    settings = loratlas.Settings(dtype="float32")
    same = {"placement": "q_proj:2", "steps": 50, "batch_size": 2, "max_length": 32, "settings": settings}
    python = loratlas.train(MODEL, made, lr="auto", **same)
    assert python.numbers["rates"] == rates
    assert python.numbers["train_nll"] == run["train_nll"]


def test_what_is_printed_loads_the_adapter_also_of_a_real_base(cli, tmp_path: Path, monkeypatch):
    """transformers knows no ``real:``; the embedded base stands for the real one here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATLAS_REAL_BASES", str(tmp_path))
    (tmp_path / "smollm2-135m").symlink_to(base_path())
    few = ("--steps", "1", "--lr", "0.01", "--batch-size", "2", "--limit", "8", "--max-length", "32")
    done = cli("train", "real:smollm2-135m", "demo:facts-300", "--placement", "q:1", *few, "--out", "run")
    assert done.code == 0, done.err
    scope: dict = {}
    exec("\n".join(line[2:] for line in done.out.partition("Load it with:\n")[2].splitlines()), scope)
    assert scope["model"].peft_config["default"].r == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # that DoRA's layers run PEFT's own pass
def test_dora_from_plan_to_adapter(cli, tmp_path):
    drawn = cli("plan", MODEL, "--placement", "q:4", "--dora")
    assert "DoRA: every row of an adapted matrix trains its length as well" in drawn.out
    plan = cli("plan", MODEL, "--placement", "q:4", "--dora", "--json").json
    assert plan["dora"] is True
    assert plan["peft"]["use_dora"] is True
    assert plan["trainable"] == sum(4 * sum(site["shape"]) + site["shape"][0] for site in plan["sites"])
    assert plan["cost"]["adapter_bytes"] == 4 * plan["trainable"]
    words = (
        "--placement",
        "q:4",
        "--dora",
        "--steps",
        "2",
        "--lr",
        "0.01",
        "--limit",
        "8",
        "--out",
        tmp_path / "run",
    )
    run = cli("train", MODEL, "demo:facts-300", *words, "--json").json
    assert run["trainable"] == plan["trainable"]
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["use_dora"] is True


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            ("train", MODEL, "demo:facts-300", "--placement", "auto", "--steps", "8"),
            "changes ranks as it goes",
        ),
        (("plan", MODEL, "--placement", "q", "--budget", "time=0.5"), "a price of ranks"),
        (("plan", MODEL, "--placement", "auto", "--scores", "nowhere"), "scores of what low-rank changes do"),
    ],
)
def test_where_dora_is_refused_nothing_is_written(cli, tmp_path, words, found):
    out = ("--out", tmp_path / "run") if words[0] == "train" else ()
    failed = cli(*words, "--dora", *out, "--json")
    assert failed.code == 2
    assert found in failed.json["error"]["found"]
    assert not (tmp_path / "run").exists()
