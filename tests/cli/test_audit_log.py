"""audit-log on what tools really write: the Trainer's own files, and files of others made by their formula."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

MODEL = "demo:llama-mini"
DATA = "demo:facts-300"
ROWS = 26
SIZE = 4
SAME = (DATA, "--model", MODEL, "--limit", str(ROWS), "--max-length", "64")


def examples() -> list[Any]:
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.demo import base_path, generate

    rows = generate(DATA, split="eval", rows=ROWS)
    return list(encode(rows, load_tokenizer(base_path()), max_length=64).examples)


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' Trainer and PEFT as people use them: a few steps, evaluations, state and results saved."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from loratlas.demo import base_path

    out = tmp_path_factory.mktemp("trainer")
    rows = [
        {
            "input_ids": torch.tensor(e.input_ids, dtype=torch.long),
            "labels": torch.tensor(e.input_ids, dtype=torch.long).masked_fill(
                ~torch.tensor(e.labelled), -100
            ),
        }
        for e in examples()
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        def filled(name: str, by: int) -> Any:
            return torch.nn.utils.rnn.pad_sequence([b[name] for b in batch], True, by)

        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(b["input_ids"]) for b in batch], True, 0)
        return {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": mask}

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_eval_batch_size=SIZE,
        per_device_train_batch_size=SIZE,
        max_steps=4,
        learning_rate=5e-3,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    made = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    made.train()
    made.save_state()
    made.save_model()
    metrics = made.evaluate()
    made.save_metrics("eval", {**metrics, "perplexity": math.exp(metrics["eval_loss"])})
    return out


@pytest.fixture(scope="session")
def losses(trainer: Path) -> list[dict[str, Any]]:
    """Token losses of every example with that adapter, computed here and by nothing of the audit."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from loratlas.demo import base_path

    base = AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(trainer)).eval()
    listed = []
    for example in examples():
        ids = torch.tensor(example.input_ids, dtype=torch.long)
        with torch.no_grad():
            logp = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        nll = -logp[:-1].gather(1, ids[1:, None])[:, 0]
        listed.append({"nll": nll.numpy(), "labelled": example.labelled[1:]})
    return listed


def numbers(told: Any) -> dict[tuple[str, int | None], dict[str, Any]]:
    return {(n["name"], n["step"]): n for log in told.json["logs"] for n in log["numbers"]}


def test_the_trainer_s_own_state_is_explained(cli, trainer: Path):
    told = cli("audit-log", trainer / "trainer_state.json", *SAME, "--adapter", trainer, "--json")
    assert told.code == 0
    assert (told.json["schema"], told.json["version"]) == ("loratlas.audit-log", 1)
    (log,) = told.json["logs"]
    assert (log["tool"], log["settings"]["eval_batch_size"]) == ("transformers Trainer", [SIZE])
    counts = numbers(told)
    last = counts["eval_loss", 4]
    assert last["verdict"] == "reproduced"
    assert last["matches"][0]["definition"] == f"batch_mean_{SIZE}"
    assert abs(last["matches"][0]["off"]) <= 2e-5 * last["value"]
    (term,) = last["matches"][0]["gap"]["terms"]
    assert term["kind"] == "batch"
    assert term["nats"] == pytest.approx(last["matches"][0]["gap"]["nats"], abs=1e-9)
    assert counts["eval_loss", 2]["verdict"] == "earlier"
    assert counts["loss", 2]["verdict"] == counts["train_loss", 4]["verdict"] == "training"
    assert told.json["passes"] == ["each example alone and whole"], "nothing was left to explain"


def test_results_with_a_perplexity(cli, trainer: Path):
    told = cli("audit-log", trainer / "eval_results.json", *SAME, "--adapter", trainer, "--json")
    counts = numbers(told)
    assert counts["eval_loss", None]["matches"][0]["definition"] == f"batch_mean_{SIZE}"
    assert counts["perplexity", None]["matches"][0]["definition"] == f"batch_mean_{SIZE}_perplexity"


def test_the_table_fits_and_says_it(cli, trainer: Path):
    told = cli("audit-log", trainer, *SAME, "--adapter", trainer)
    assert told.code == 0
    assert f"mean of batches of {SIZE}; answers" in told.out
    assert "of earlier checkpoints" in told.out
    drawn = [line for line in told.out.splitlines() if "  " in line]
    assert max(map(len, drawn)) <= 80


def test_an_adapter_beside_the_log_that_was_not_given_is_pointed_out(cli, trainer: Path):
    """Its number cannot be reproduced without it; and an evaluation that was logged twice is told once."""
    told = cli("audit-log", trainer / "eval_results.json", *SAME)
    assert told.code == 1
    assert f"--adapter {trainer} takes it" in " ".join(told.out.split())
    twice = json.loads((trainer / "trainer_state.json").read_text())
    assert [entry.get("eval_loss") for entry in twice["log_history"][-2:]] != [None, None]
    with_it = cli("audit-log", trainer / "trainer_state.json", *SAME, "--adapter", trainer)
    assert "takes it" not in with_it.out
    assert with_it.out.count("eval_loss, step 4") == 1


def test_an_adapter_that_was_not_active_is_named(cli, trainer: Path, tmp_path: Path):
    """The number of the bare base, told as the adapter's."""
    bare = cli(
        "eval", MODEL, DATA, "--limit", ROWS, "--max-length", "64", "--dtype", "float32", "--json"
    ).json
    log = tmp_path / "eval_results.json"
    log.write_text(json.dumps({"eval_loss": bare["definitions"]["batch_mean_8"]}))
    told = cli("audit-log", log, *SAME, "--adapter", trainer, "--batch-size", "8", "--json")
    best = numbers(told)["eval_loss", None]["matches"][0]
    assert best["condition"] == "adapter off"
    assert {term["kind"] for term in best["gap"]["terms"]} == {"condition", "batch"}
    assert told.json["passes"][-1] == "without the adapter"


def test_which_of_several_adapters_it_was(cli, trainer: Path, tmp_path: Path):
    other = shutil.copytree(trainer, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 24}))
    words = ("--adapter", other, "--adapter", trainer, "--json")
    told = cli("audit-log", trainer / "eval_results.json", *SAME, *words)
    assert numbers(told)["eval_loss", None]["matches"][0]["condition"] == f"adapter {trainer}"


def test_llama_factory_s_cal_ppl(cli, trainer: Path, losses: list[dict[str, Any]], tmp_path: Path):
    """A list of exp of every example's mean, prompts counted: train_on_prompt."""
    log = tmp_path / "ppl.json"
    log.write_text(json.dumps([math.exp(one["nll"].mean()) for one in losses]))
    told = cli("audit-log", log, *SAME, "--adapter", trainer, "--json")
    result = numbers(told)["average perplexity", None]
    assert (result["matches"][0]["averaged"], result["matches"][0]["counted"]) == (
        "mean of the examples' perplexities",
        "prompts too",
    )
    assert told.json["logs"][0]["examples"]["reproduced"] == ROWS
    assert told.json["logs"][0]["examples"]["counted"] == "prompts too"


def test_a_list_of_other_rows_is_noticed(cli, trainer: Path, losses: list[dict[str, Any]], tmp_path: Path):
    log = tmp_path / "ppl.json"
    log.write_text(json.dumps([math.exp(one["nll"][one["labelled"]].mean()) for one in losses[:-3]]))
    words = [DATA, "--model", MODEL, "--limit", "8", "--max-length", "64", "--adapter", trainer]
    told = cli("audit-log", log, *words, "--json")
    assert told.code == 1
    (one,) = told.json["logs"]
    assert one["remarks"] == [f"{ROWS - 3} examples in the list, 8 rows here: not the same rows."]
    assert one["numbers"][0]["verdict"] == "not reproduced"
    assert any("other rows" in words for words in one["numbers"][0]["could_be"])


def test_the_harness_on_raw_text(cli, tmp_path: Path):
    """Words, bytes and bits of whole texts, each after the end token, as lm-evaluation-harness scores them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from loratlas.demo import base_path

    texts = [f"Ara and {name} went to the market, and then home again." for name in ("Bo", "Cy", "Dag", "Ed")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    model = AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32).eval()
    total = words = size = 0.0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([[opening, *ids]])).logits[0].double().log_softmax(-1)
        total -= float(logp[:-1].gather(1, torch.tensor(ids)[:, None]).sum())
        words += len(re.split(r"\s+", text))
        size += len(text.encode())
    metrics = {
        "alias": "mine",
        "word_perplexity,none": math.exp(total / words),
        "word_perplexity_stderr,none": "N/A",
        "byte_perplexity,none": math.exp(total / size),
        "bits_per_byte,none": total / size / math.log(2),
    }
    log = tmp_path / "results_2025-01-01.json"
    log.write_text(json.dumps({"results": {"mine": metrics}, "config": {"model": "hf", "batch_size": 1}}))
    told = cli("audit-log", log, tmp_path / "rows.jsonl", "--model", MODEL, "--json")
    assert told.code == 0
    for number in told.json["logs"][0]["numbers"]:
        assert number["verdict"] == "reproduced"
        assert number["matches"][0]["counted"] == "answers without their end", "the harness adds no end token"


def test_axolotl_s_summary_and_its_training_rows(cli, trainer: Path, tmp_path: Path):
    value = json.loads((trainer / "eval_results.json").read_text())["eval_loss"]
    log = tmp_path / "eval_summary.csv"
    log.write_text(f"metric,training,validation\nloss,1.25,{value}\nruntime,1.0,1.0\n")
    told = cli("audit-log", log, *SAME, "--adapter", trainer, "--batch-size", SIZE, "--json")
    counts = numbers(told)
    assert counts["validation loss", None]["verdict"] == "reproduced"
    assert counts["training loss", None]["verdict"] == "not reproduced"


def test_a_log_that_says_too_little_is_told_what_is_missing(cli, trainer: Path, tmp_path: Path):
    log = tmp_path / "all_results.json"
    log.write_text(json.dumps({"eval_loss": 1.2345678901, "epoch": 1.0}))
    told = cli("audit-log", log, *SAME, "--adapter", trainer)
    assert told.code == 1, "no number of an evaluation was reproduced"
    words = " ".join(told.out.split())
    assert "It does not say: per_device_eval_batch_size" in words
    assert "eval_loss could still be:" in words
    assert "label_smoothing_factor: eval_loss is smoothed" in words
    assert "nothing that was tried" in words
    assert told.err.count("Pass ") >= 5, "every further pass was tried"


def test_a_template_that_goes_on_behind_the_end_token(cli, tmp_path: Path):
    """The real TRL counts the line break that a template writes behind the end token of an answer."""
    pytest.importorskip("trl")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from loratlas.demo import base_path, generate

    tokenizer = AutoTokenizer.from_pretrained(base_path())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + '<|endoftext|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    base = tmp_path / "base"
    tokenizer.save_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32).save_pretrained(base)
    rows = [
        {
            "prompt": [{"role": "user", "content": row.turns[0].content}],
            "completion": [{"role": "assistant", "content": row.turns[-1].content}],
        }
        for row in generate(DATA, split="eval", rows=ROWS).rows
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"),
        per_device_eval_batch_size=SIZE,
        max_length=512,
        report_to=[],
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    made = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    made.save_metrics("eval", made.evaluate())
    log = tmp_path / "out" / "eval_results.json"
    told = cli("audit-log", log, tmp_path / "rows.jsonl", "--model", base, "--json")
    best = numbers(told)["eval_loss", None]["matches"][0]
    assert (best["averaged"], best["counted"]) == (
        f"mean of batches of {SIZE}",
        "answers and what follows their end",
    )
    assert {term["kind"] for term in best["gap"]["terms"]} == {"coverage", "batch"}


@pytest.mark.parametrize("trained", [False, True])
def test_a_classifier_s_log(cli, tmp_path: Path, trained: bool):
    """Compared with the loss per row of a classifier; refused where the head was never trained."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from loratlas.demo import base_path

    texts = ["good film", "bad film", "a fine evening", "a long and dull evening", "good", "dull"]
    labels = [1, 0, 1, 0, 1, 0]
    rows = [{"text": t, "label": ["NEGATIVE", "POSITIVE"][i]} for t, i in zip(texts, labels, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        base_path(), dtype=torch.float32, num_labels=2, id2label=names,
        label2id={v: k for k, v in names.items()}, pad_token_id=tokenizer.eos_token_id,
    ).eval()  # fmt: skip
    base = base_path()
    if trained:
        base = tmp_path / "base"
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
    with torch.no_grad():
        losses = [
            float(
                torch.nn.functional.cross_entropy(
                    model(input_ids=torch.tensor([tokenizer(t)["input_ids"]])).logits, torch.tensor([i])
                )
            )
            for t, i in zip(texts, labels, strict=True)
        ]
    log = tmp_path / "trainer_state.json"
    entry = {"eval_loss": sum(losses) / len(losses), "step": 5}
    log.write_text(json.dumps({"log_history": [entry], "global_step": 5}))
    told = cli("audit-log", log, tmp_path / "rows.jsonl", "--model", base, "--json")
    if not trained:
        assert told.code == 2
        assert "no trained head" in told.json["error"]["found"]
        return
    assert told.code == 0, told.err
    assert told.json["task"]["name"] == "classification"
    assert told.json["passes"] == ["the label of each row"]
    assert numbers(told)["eval_loss", 5]["verdict"] == "reproduced"


def test_printed_digits_that_prove_nothing(cli, trainer: Path, tmp_path: Path):
    value = json.loads((trainer / "eval_results.json").read_text())["eval_loss"]
    log = tmp_path / "train.log"
    log.write_text(f"{{'eval_loss': '{value:.0f}', 'epoch': '1'}}\n{{'eval_loss': nan, 'epoch': '1'}}\n")
    told = cli("audit-log", log, *SAME, "--adapter", trainer)
    assert told.code == 1
    words = " ".join(told.out.split())
    assert "perhaps: " in words
    assert "to prove one" in words
    assert "not a number" in words


def test_a_long_silence_is_broken(capsys):
    import time

    from loratlas.cli.progress import heartbeat

    with heartbeat("audit-log", every=0.02):
        while capsys.readouterr().err.count("audit-log: at work for") < 1:
            time.sleep(0.005)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "it ends with its context"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("vocabulary", "is token"),
        ("added", "adds '<extra>'"),
    ],
)
def test_another_tokenizer_beside_the_adapter_is_an_error(cli, trainer: Path, tmp_path: Path, change, word):
    from loratlas.demo import base_path

    adapter = shutil.copytree(trainer, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_path() / name, adapter / name)
    assert cli("eval", MODEL, DATA, "--limit", "4", "--adapter", adapter).code == 0, "the same one is fine"
    kept = json.loads((adapter / "tokenizer.json").read_text())
    vocabulary = kept["model"]["vocab"]
    if change == "vocabulary":
        one, two = [token for token in vocabulary if token.isalpha()][-2:]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    else:
        kept["added_tokens"].append(
            {"id": len(vocabulary) + 9, "content": "<extra>", "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        )
    (adapter / "tokenizer.json").write_text(json.dumps(kept))
    for words in (
        ("eval", MODEL, DATA, "--limit", "4", "--adapter", adapter),
        ("audit-log", trainer / "eval_results.json", *SAME, "--adapter", adapter),
    ):
        told = cli(*words, "--json")
        assert told.code == 2
        assert told.json["error"]["code"] == "model"
        assert word in told.json["error"]["found"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit-log", "nowhere.json", *SAME], ["nowhere.json", "no such file"]),
        (["audit-log", ".", *SAME], ["trainer_state.json"]),
        (["audit-log", "x.json", DATA], ["--model"]),
        (["audit-log", "x.json", *SAME, "--adapter", "nowhere"], ["nowhere", "no such directory"]),
        (["audit-log", "x.json", *SAME, "--stride", "4"], ["--stride", "--window"]),
        (["audit-log", "x.json", "nowhere.jsonl", "--model", MODEL], ["nowhere.jsonl"]),
    ],
)
def test_wrong_requests(cli, tmp_path: Path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_text('{"eval_loss": 2.5}')
    if words[1] == ".":
        (tmp_path / "x.json").unlink()
    told = cli(*words)
    assert told.code == 2
    assert all(word in told.words for word in said)
