"""The commands on real input: their JSON, their tables, their files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

MODEL = "demo:llama-mini"
DATA = "demo:facts-300"

GPT2_MEDIUM = {
    "model_type": "gpt2",
    "n_embd": 1024,
    "n_layer": 24,
    "n_head": 16,
    "n_positions": 1024,
    "vocab_size": 50257,
}


@pytest.fixture(scope="session")
def gpt2_medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config.json with the sizes of GPT-2 medium, as DialoGPT-medium has them."""
    path = tmp_path_factory.mktemp("gpt2-medium") / "config.json"
    path.write_text(json.dumps(GPT2_MEDIUM))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A short run: its folder, its JSON and what it said."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from loratlas.cli import run

    folder = tmp_path_factory.mktemp("train") / "run"
    words = [
        "train",
        MODEL,
        DATA,
        "--placement",
        "attention:4",
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
    ]
    words += ["--eval", DATA, "--max-length", "64", "--samples", "3", "--forgetting", "demo:rules"]
    words += ["--out", str(folder), "--json"]
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(words)
    assert code == 0, err.getvalue()
    return {"folder": folder, "json": json.loads(out.getvalue()), "err": err.getvalue()}


# --- map -------------------------------------------------------------------------------------------------------


def test_map_json_has_every_matrix_once(cli):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from loratlas.demo import base_path

    told = cli("map", MODEL, "--json").json
    assert (told["schema"], told["version"]) == ("loratlas.map", 1)
    assert (told["model"], told["model_type"], told["parameters"]) == (MODEL, "llama", 8_392_960)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_path()))
    named = [n for n, p in model.named_parameters(remove_duplicate=False) if p.dim() >= 2]
    assert sorted(site["path"] for site in told["sites"] + told["unresolved"]) == sorted(named)
    assert {"path", "layer", "scope", "role", "shape", "kind", "experts", "input_group", "tied_to"} <= set(
        told["sites"][0]
    )


def test_map_table(cli, gpt2_medium: Path):
    told = cli("map", gpt2_medium)
    assert told.code == 0
    assert "354,823,168 parameters, 24 layers" in told.out
    assert max(map(len, told.out.splitlines())) <= max(80, len(told.out.splitlines()[0]))
    rows = {line.split()[0]: line for line in told.out.splitlines() if line.startswith(" ") and line.split()}
    assert "3072 × 1024" in rows["attn.qkv"]
    assert "98,304" in rows["attn.qkv"]
    assert "Unresolved: none." in told.out


def test_map_proves_what_it_says(cli, gpt2_medium: Path):
    told = cli("map", gpt2_medium, "--prove")
    assert told.code == 0
    rows = {
        line.split()[0]: line.split()
        for line in told.out.splitlines()
        if line.startswith(" ") and line.split()
    }
    assert rows["attn.qkv"][1:] == ["24", "24", "24", "24", "mixes", "tokens"]
    assert rows["ffn.down"][1:] == ["24", "24", "24", "24", "pointwise"]
    assert "Disputes: none." in told.out
    assert max(len(line) for line in told.out.splitlines()[1:14]) <= 80


def test_map_leaves_with_1_where_readers_contradict_one_another(cli, gpt2_medium: Path, monkeypatch):
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    honest = GPT2MLP.forward
    monkeypatch.setattr(
        GPT2MLP, "forward", lambda self, x: honest(self, x) + honest(self, x).mean(1, keepdim=True)
    )
    told = cli("map", gpt2_medium, "--prove", "--json")
    assert told.code == 1
    assert told.json["proof"]["agreement"]["probe"] == {"agrees": 48, "speaks": 96}
    assert {tuple(one["opinions"]) for one in told.json["proof"]["disputes"]} == {
        (f"names: ffn.{part}", f"trace: ffn.{part}", "probe: mixes tokens") for part in ("up", "down")
    }
    assert len(told.json["unresolved"]) == 48


# --- plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "trainable", "of_model", "less_than_full"),
    [
        ("all:16", 6_291_456, 0.0177, 0.0),
        ("attention:16", 2_359_296, 0.0066, 0.6250),
        ("feedforward:8", 1_966_080, 0.0055, 0.375),
        ("c_fc:16", 1_966_080, 0.0055, 0.6875),
        ("c_proj:16", None, None, None),
    ],
)
def test_the_arithmetic(cli, gpt2_medium: Path, placement, trainable, of_model, less_than_full):
    told = cli("plan", gpt2_medium, "--placement", placement, "--json")
    if trainable is None:
        assert told.code == 2  # the end of two kinds of matrices
        return
    plan = told.json
    assert (plan["schema"], plan["version"]) == ("loratlas.plan", 1)
    assert plan["trainable"] == trainable
    assert plan["parameters"] == 354_823_168
    assert plan["of_model"] == pytest.approx(of_model, abs=5e-5)
    assert 1 - plan["of_full_lora"] == pytest.approx(less_than_full, abs=5e-5)
    assert all(set(site) >= {"path", "rank", "alpha"} for site in plan["sites"])
    assert all(site["alpha"] == 2 * site["rank"] for site in plan["sites"])
    assert set(plan["cost"]) == {
        "flops_per_token",
        "adapter_bytes",
        "optimizer_bytes",
        "saved_activation_bytes",
        "peak_bytes",
        "step_seconds",
        "batch_size",
        "max_length",
        "dtype",
    }
    assert plan["cost"]["adapter_bytes"] == 4 * trainable
    assert plan["cost"]["saved_activation_bytes"] < plan["cost"]["peak_bytes"]


def test_the_arithmetic_in_words(cli, gpt2_medium: Path):
    attention = cli("plan", gpt2_medium, "--placement", "attention:16").out
    assert "2,359,296" in attention
    assert "62.50% less than all at equal rank, 6,291,456" in " ".join(attention.split())
    feedforward = cli("plan", gpt2_medium, "--placement", "feedforward:8").out
    assert "99.45% less than full fine-tuning of 354,823,168" in " ".join(feedforward.split())


@pytest.mark.parametrize(
    ("placement", "trainable", "shown"),
    [
        ("attention:16", 2_359_296, 'target_modules=["c_attn", "attn.c_proj"]'),
        ("c_attn:16 + ffn.down:4", 1_572_864 + 24 * 4 * 5120, 'rank_pattern={"mlp.c_proj": 4}'),
        ("attention@top/2:16", 1_179_648, 'target_modules=r"^(?:'),
    ],
)
def test_plan_peft_is_python_that_runs(cli, gpt2_medium: Path, placement, trainable, shown):
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    told = cli("plan", gpt2_medium, "--placement", placement, "--peft")
    assert shown in told.out
    assert max(map(len, told.out.splitlines())) < 2000
    names = {}
    exec(told.out, names)
    assert names["config"].base_model_name_or_path == str(gpt2_medium.parent)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(gpt2_medium.parent))
        adapted = get_peft_model(model, names["config"])
    assert adapted.get_nb_trainable_parameters()[0] == trainable


def test_plan_peft_names_a_base_that_peft_can_load(cli):
    names = {}
    exec(cli("plan", MODEL, "--placement", "q:2", "--peft").out, names)
    assert (Path(names["config"].base_model_name_or_path) / "config.json").is_file()


def test_ranks_are_rounded_on_request(cli):
    words = ("plan", MODEL, "--placement", "all", "--budget", "params=300k", "--json")
    exact, rounded = (cli(*words, *more).json for more in ((), ("--round-ranks",)))
    ranks = [[site["rank"] for site in plan["sites"]] for plan in (exact, rounded)]
    assert any(rank not in (1, 2, 3, 4, 6, 8, 12, 16) for rank in ranks[0])
    assert all(rank in (1, 2, 3, 4, 6, 8, 12, 16) for rank in ranks[1])
    assert all(a >= b for a, b in zip(*ranks, strict=True))
    assert [site["alpha"] for site in rounded["sites"]] == [2 * rank for rank in ranks[1]]
    # What it prints places the same table.
    again = cli("plan", MODEL, "--placement", rounded["text"], "--json").json
    assert again["sites"] == rounded["sites"]


@pytest.mark.parametrize(
    ("budget", "most"), [("params=100k", 100_000), ("params=0.5%", 41_964), ("like=q:8", 32_768)]
)
def test_budgets_hold(cli, budget: str, most: int):
    plan = cli("plan", MODEL, "--placement", "feedforward", "--budget", budget, "--json").json
    assert 0 < plan["trainable"] <= most


def test_plan_text_is_the_plan(cli):
    first = cli("plan", MODEL, "--placement", "q@top/2:4 + ffn.down:2", "--json").json
    again = cli("plan", MODEL, "--placement", first["text"], "--json").json
    assert again["sites"] == first["sites"]


def test_seconds_are_measured_once(cli):
    words = ("plan", MODEL, "--placement", "v@top/2:4", "--batch-size", "1", "--max-length", "16", "--json")
    before = cli(*words).json["cost"]
    assert before["step_seconds"] is None
    timed = cli(*words, "--time")
    assert "operations on this machine" in timed.err
    assert 0 < timed.json["cost"]["step_seconds"] < 60
    assert cli(*words).json["cost"] == timed.json["cost"]
    more = cli(*words[:5], "2", *words[6:]).json["cost"]
    assert more["peak_bytes"] > before["peak_bytes"]


def test_alpha_and_rslora(cli):
    plan = cli("plan", MODEL, "--placement", "q:4", "--alpha", "5", "--rslora", "--json").json
    assert {site["alpha"] for site in plan["sites"]} == {5}
    assert plan["peft"]["use_rslora"] is True


# --- train, eval, export ---------------------------------------------------------------------------------------


def test_train_json(trained: dict):
    told = trained["json"]
    assert (told["schema"], told["version"]) == ("loratlas.train", 1)
    assert told["steps"] == 6
    assert told["tokens"] > told["labelled_tokens"] > 0
    assert 0 < told["train_nll"] < 20
    assert told["tokens_per_second"] >= told["labelled_tokens_per_second"] > 0
    assert told["setup_seconds"] > 0
    assert told["eval"]["perplexity"] == pytest.approx(math.exp(told["eval"]["token_mean_nll"]))
    assert "training: 6/6 steps" in trained["err"]
    assert json.loads((trained["folder"] / "run.json").read_text())["train_nll"] == told["train_nll"]


def test_the_adapter_is_pefts_own(trained: dict):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from loratlas.demo import base_path

    base = AutoModelForCausalLM.from_pretrained(base_path())
    model = PeftModel.from_pretrained(base, trained["json"]["adapter"])
    adapted = {name for name, _ in model.named_modules() if name.endswith("lora_A.default")}
    assert len(adapted) == 4 * 8
    assert all(".self_attn." in name for name in adapted)


def test_the_curve_is_written(trained: dict):
    curve = json.loads((trained["folder"] / "curve.json").read_text())
    assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]
    assert all(0 < point["nll"] < 20 for point in curve)


def test_samples_are_written(trained: dict):
    samples = json.loads((trained["folder"] / "samples.json").read_text())
    assert samples == trained["json"]["samples"]


def test_the_printed_recipe_gives_the_loss_that_was_reported(trained: dict):
    """The base is loaded in the dtype of the training."""
    from loratlas.cli.tables.train_tables import _loading
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.demo import base_path, generate
    from loratlas.evaluation.score import score

    made: dict = {}
    exec("\n".join(_loading(trained["json"])), made)
    model = made["model"].eval()
    assert str(model.get_base_model().dtype) == f"torch.{trained['json']['settings']['dtype']}"
    data = encode(generate(DATA, split="eval"), load_tokenizer(base_path()), max_length=64)
    loss = score(model, data, packed=False).token_mean_nll
    assert loss == pytest.approx(trained["json"]["eval"]["token_mean_nll"], abs=2e-3)


def test_train_measures_forgetting_as_eval_does(cli, trained: dict):
    lost = trained["json"]["forgetting"]
    told = cli("eval", MODEL, DATA, "--limit", "4", "--max-length", "64", "--adapter", trained["folder"],
               "--forgetting", "demo:rules", "--json").json["forgetting"]  # fmt: skip
    assert lost["difference"] == pytest.approx(lost["nll"] - lost["base_nll"])
    assert lost["source"] == told["source"] == "demo:rules"
    assert abs(lost["difference"]) > 1e-3
    assert lost["base_nll"] == pytest.approx(
        cli("eval", MODEL, "demo:rules", "--max-length", "64", "--json", "--dtype",
            trained["json"]["settings"]["dtype"]).json["token_mean_nll"], rel=1e-4
    )  # fmt: skip


def test_eval_of_the_adapter_is_the_runs_own(cli, trained: dict):
    told = cli("eval", MODEL, DATA, "--adapter", trained["folder"], "--max-length", "64", "--json").json
    assert (told["schema"], told["version"]) == ("loratlas.eval", 1)
    assert told["token_mean_nll"] == pytest.approx(trained["json"]["eval"]["token_mean_nll"], abs=2e-3)
    assert told["dtype"] == told["trained_dtype"] == trained["json"]["settings"]["dtype"]
    assert abs(told["residual"]) <= 1e-6
    assert told["definitions"]["token_mean"] == pytest.approx(told["token_mean_nll"])
    assert all(set(gap) >= {"term", "nats"} for gap in told["gaps"])


def test_eval_of_the_bare_base_is_another(cli, trained: dict, tmp_path: Path):
    told = cli("eval", MODEL, DATA, "--max-length", "64", "--out", tmp_path / "losses", "--json").json
    assert told["token_mean_nll"] > trained["json"]["eval"]["token_mean_nll"]
    assert {path.name for path in (tmp_path / "losses").iterdir()} >= {"examples.parquet", "tokens.parquet"}
    from loratlas.evaluation.score import read_scores

    scores = read_scores(tmp_path / "losses")
    assert scores.token_mean_nll == pytest.approx(told["token_mean_nll"])
    assert scores.tokens is not None
    assert len(scores.tokens.nll) == scores.n.sum() == told["labelled_tokens"]
    from loratlas.loss_audit.token_table import read_table

    table = read_table(tmp_path / "losses")
    assert table.error is not None
    assert (table.error > 0).all(), "how far rounding may have moved each loss"


def test_eval_tells_every_definition_and_explains_it(cli):
    words = ("eval", MODEL, DATA, "--max-length", "64", "--limit", "20", "--dtype", "float32")
    told = cli(*words, "--batch-size", "3", "--batch-size", "5", "--smoothing", "0.2", "--json").json
    values = told["definitions"]
    assert {"batch_mean_3", "batch_mean_5", "smoothed_0.2", "prompt_included", "end_excluded"} <= set(values)
    assert {"bits_per_byte", "word_perplexity", "mean_example_perplexity", "median"} <= set(values)
    assert "batch_mean_8" not in values
    assert set(told["about"]) == set(values)
    assert all(about["used_by"] for about in told["about"].values())
    for name in ("batch_mean_3", "prompt_included", "end_excluded", "bits_per_byte", "smoothed_0.2"):
        terms = [gap["nats"] for gap in told["gaps"] if (gap["from"], gap["to"]) == ("token_mean", name)]
        assert values["token_mean"] + sum(terms) == pytest.approx(values[name], abs=1e-9)
    assert values["perplexity"] == pytest.approx(math.exp(values["token_mean"]))


def test_eval_prints_a_few_lines_and_its_tables_on_request(cli):
    words = ("eval", MODEL, DATA, "--max-length", "64", "--limit", "20", "--dtype", "float32")
    told = cli(*words)
    assert told.code == 0
    assert len(told.out.splitlines()) <= 5
    assert "nats per token, perplexity" in told.out
    assert "computed in float32" in told.out
    assert "--definitions" in told.out
    more = cli(*words, "--definitions")
    assert more.out.splitlines()[0] == told.out.splitlines()[0]
    assert "why they differ" in more.out
    assert "left unexplained" in more.out
    for each in (told, more):
        assert max(map(len, each.out.splitlines())) <= 80


def test_eval_says_where_it_computes_otherwise_than_training_did(cli, trained: dict, tmp_path: Path):
    """By default as the adapter was trained, whatever this machine prefers; another dtype is obeyed, and said."""
    from loratlas.adapters.stored.adapter_files import save_adapter
    from loratlas.adapters.stored.load_adapter import load_adapter
    from loratlas.demo import base_path
    from loratlas.models.load import load_model, native_dtype

    own = native_dtype()
    dtype = {"bfloat16": "float32", "float32": "bfloat16"}[own]
    model = load_adapter(load_model(base_path(), dtype=dtype), trained["json"]["adapter"])
    adapter = save_adapter(model, tmp_path / "adapter", extra={"settings": {"dtype": dtype}})
    words = ("eval", MODEL, DATA, "--limit", "8", "--max-length", "64", "--adapter", adapter)
    assert f"computed in {dtype}, as the adapter was trained" in cli(*words).out
    told = cli(*words, "--dtype", own)
    assert f"computed in {own}; the adapter was trained in {dtype}" in " ".join(told.out.split())


def test_eval_shows_answers_without_and_with_the_adapter(cli, trained: dict):
    words = ("eval", MODEL, DATA, "--limit", "8", "--max-length", "64", "--adapter", trained["folder"])
    told = cli(*words, "--samples", "2", "--json").json
    bare = cli("eval", MODEL, DATA, "--limit", "8", "--max-length", "64", "--dtype", told["dtype"],
               "--samples", "2", "--json").json  # fmt: skip
    base = [sample["answer"] for sample in bare["samples"]["samples"]]
    assert [sample["base"] for sample in told["samples"]["samples"]] == base
    assert "base" not in bare["samples"]["samples"][0]
    shown = cli(*words, "--samples", "2").out
    assert all(heading in shown for heading in ("prompt", "base", "with the adapter", "wanted"))


def test_eval_measures_forgetting(cli, trained: dict):
    other = ("demo:rules", "--max-length", "64", "--limit", "8", "--json")
    words = ("eval", MODEL, DATA, "--limit", "8", "--max-length", "64", "--adapter", trained["folder"])
    lost = cli(*words, "--forgetting", other[0], "--json").json["forgetting"]
    dtype = trained["json"]["settings"]["dtype"]
    base = cli("eval", MODEL, *other, "--dtype", dtype).json["token_mean_nll"]
    after = cli("eval", MODEL, *other, "--adapter", trained["folder"]).json["token_mean_nll"]
    assert lost["base_nll"] == pytest.approx(base, rel=1e-5)
    assert lost["nll"] == pytest.approx(after, rel=1e-5)
    assert lost["difference"] == pytest.approx(after - base, abs=1e-4)
    assert "forgetting: " in cli(*words, "--forgetting", other[0]).out
    refused = cli("eval", MODEL, DATA, "--forgetting", other[0])
    assert refused.code == 2
    assert "--adapter" in refused.words


def test_train_goes_on_from_an_adapter(cli, trained: dict, tmp_path: Path):
    words = ["train", MODEL, DATA, "--from", trained["folder"], "--steps", "2", "--max-length", "64"]
    told = cli(*words, "--out", tmp_path / "more", "--json").json
    assert told["steps"] == 2
    assert told["train_nll"] < 9


def test_train_of_a_finished_run_again_is_refused_without_resume(cli, trained: dict):
    before = sorted(path.name for path in trained["folder"].rglob("*"))
    words = ["train", MODEL, DATA, "--placement", "attention:4", "--steps", "6", "--out", trained["folder"]]
    told = cli(*words)
    assert told.code == 2
    assert "--resume" in told.words
    assert sorted(path.name for path in trained["folder"].rglob("*")) == before


def test_train_table_ends_with_how_to_load(cli, tmp_path: Path):
    words = [
        "train",
        MODEL,
        DATA,
        "--placement",
        "q:1",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--max-length",
        "64",
    ]
    told = cli(*words, "--out", tmp_path / "run")
    assert told.code == 0, told.err
    assert f'PeftModel.from_pretrained(base, "{tmp_path / "run" / "adapter"}")' in told.out


def test_a_rate_that_explodes_is_told(cli, tmp_path: Path):
    words = [
        "train",
        MODEL,
        DATA,
        "--placement",
        "all:8",
        "--steps",
        "60",
        "--max-length",
        "64",
        "--batch-size",
        "4",
    ]
    words += [
        "--lr",
        "1e30",
        "--warmup",
        "0",
        "--clip",
        "0",
        "--dtype",
        "float32",
        "--out",
        tmp_path / "run",
        "--json",
    ]
    told = cli(*words)
    assert told.code == 3
    assert told.json["error"]["code"] == "diverged"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["diverged"] is True
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("target", ["peft", "merged"])
def test_export(cli, trained: dict, tmp_path: Path, target: str):
    told = cli("export", trained["folder"], "--for", target, "--out", tmp_path / target, "--json")
    assert told.code == 0, told.err
    assert told.json["check"] <= 1e-3
    assert (tmp_path / target).is_dir()
    assert any((tmp_path / target).glob("*.safetensors"))
    assert "| learning rate |" in (tmp_path / target / "README.md").read_text()
