"""A study whose arms TRL trains on pairs of answers: DPO, judged by preference accuracy and margin."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from loratlas.adapters.trained_heads import detach_adapters
from loratlas.data.encode import load_tokenizer
from loratlas.data.preferences import encode_pairs, preference_rows, split_pairs
from loratlas.errors import DataError, SpecError
from loratlas.evaluation.preference_losses import answer_gaps, judge_preferences
from loratlas.placement.plan import place
from loratlas.report.page import build as build_page
from loratlas.sources import model_source, open_model, read
from loratlas.study.inputs.preference_pairs import check_preferences
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec
from loratlas.training.settings import Settings
from loratlas.training.trl_preferences import fit_preferences

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BASE = "demo:llama-mini"


def pairs(count: int, start: int = 2) -> list[dict[str, str]]:
    return [
        {"prompt": f"{i} plus {i} is", "chosen": f" {2 * i}", "rejected": f" {3 * i + 1}"}
        for i in range(start, start + count)
    ]


def spec_of(tmp_path, **changes):
    for name, rows in (("train", pairs(24)), ("eval", pairs(8, 40))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "preferences",
        "model": BASE,
        "trainer": "dpo",
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "arms": {"full": "all@top/4:1", "attention": "attention@top/4:1"},
        "reference": "full",
        "learning_rates": [1e-2],
        "tuning": {"seeds": 1, "rows": 4, "extensions": 0},
        "evaluation": {"seeds": 2, "rows": 8},
        "steps": 2,
        "batch_size": 4,
        "max_length": 48,
        "demonstration": True,
    }
    return parse_spec(values | changes, folder=tmp_path)


@pytest.fixture(scope="module")
def encoded():
    tokenizer = load_tokenizer(model_source(BASE))
    return encode_pairs(*preference_rows(pairs(8)), tokenizer, max_length=48), tokenizer


def test_pairs_are_encoded_as_any_answer_and_dropped_whole(encoded):
    whole, tokenizer = encoded
    chosen, rejected = split_pairs(whole)
    assert len(whole) == len(chosen) == len(rejected) == 8
    assert tokenizer.decode(chosen.examples[3].input_ids[chosen.examples[3].labelled]).startswith(" 10")
    assert tokenizer.decode(rejected.examples[3].input_ids[rejected.examples[3].labelled]).startswith(" 16")
    long = [*pairs(2), {"prompt": "1", "chosen": " 2", "rejected": " 3" * 60}]
    assert len(encode_pairs(*preference_rows(long), tokenizer, max_length=32)) == 2
    renamed = [{"question": "1", "good": "2", "bad": "3"}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert len(encode_pairs(*preference_rows(renamed, mapping=columns), tokenizer, max_length=32)) == 1
    with pytest.raises(DataError, match="prompt, chosen, rejected"):
        preference_rows(renamed, mapping={"completion": "good"})
    with pytest.raises(DataError):
        preference_rows([{"prompt": "1", "chosen": "2"}])


def test_losses_margins_and_accuracies_are_those_of_trl(encoded, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    whole, tokenizer = encoded
    base = open_model(BASE, dtype="float32")
    bare = answer_gaps(base, whole, packed=False)
    before = judge_preferences(bare, bare, beta=0.3)
    assert before.accuracy == 0.5
    assert np.allclose(before.scores.nll, math.log(2))
    model = place(read(BASE), "q,v:2").attach(base, seed=1)

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    chosen, rejected = split_pairs(whole)
    rows = []
    for first, second in zip(chosen.examples, rejected.examples, strict=True):
        at = int(first.labelled.argmax())
        ids = (first.input_ids[:at], first.input_ids[at:], second.input_ids[at:])
        rows.append(
            dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), (i.tolist() for i in ids), strict=True))
        )
    trainer = Prepared(
        model=model,
        args=DPOConfig(output_dir=str(tmp_path), beta=0.3, per_device_eval_batch_size=8, use_cpu=True, bf16=False,
                       report_to="none", disable_tqdm=True, max_length=None),
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForPreference(pad_token_id=0), processing_class=tokenizer,
    )  # fmt: skip
    # Afterwards: TRL keeps a copy of the adapter that it is given as the reference.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    ours = judge_preferences(answer_gaps(model, whole, packed=False), bare, beta=0.3)
    theirs = trainer.evaluate()
    assert abs(ours.margin).min() > 1e-4
    assert theirs["eval_loss"] == pytest.approx(ours.scores.nll.mean(), abs=1e-5)
    assert theirs["eval_rewards/margins"] == pytest.approx(ours.margin.mean(), abs=1e-5)
    assert theirs["eval_rewards/accuracies"] == pytest.approx(ours.accuracy)


def test_a_run_repeats_itself_and_leaves_the_base_as_it_was(encoded):
    whole, tokenizer = encoded
    base = open_model(BASE, dtype="float32")
    forward, plan = base.forward, place(read(BASE), "q,v:2")
    settings = Settings(steps=3, lr=2e-2, batch_size=4, warmup=0.0, dtype="float32", seed=3, loraplus=4.0)
    ends = []
    for change in ({}, {}, {"micro_batch": 2}):
        events = []
        model = plan.attach(base, seed=3)
        result = fit_preferences(
            model, whole, tokenizer, replace(settings, **change), beta=0.1, on_step=events.append
        )
        assert [event.step for event in events] == [1, 2, 3]
        assert [round(point.lr, 6) for point in result.curve] == [0.02, 0.015, 0.005]
        assert result.curve[0].nll == pytest.approx(math.log(2), abs=1e-5)
        ends.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        base = detach_adapters(model)
        assert "forward" not in vars(base) or base.forward == forward
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[2][name], rtol=1e-2, atol=1e-4)
    assert any(tensor.abs().max() > 0 for name, tensor in ends[0].items() if "lora_B" in name)


def test_a_diverged_run_is_said_to_be_one(encoded):
    whole, tokenizer = encoded
    model = place(read(BASE), "q,v:2").attach(open_model(BASE, dtype="float32"), seed=3)
    settings = Settings(steps=3, lr=1e-3, batch_size=4, dtype="float32")

    def spoil(event):
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "lora_B.default" in name).fill_(math.nan)

    result = fit_preferences(model, whole, tokenizer, settings, beta=0.1, on_step=spoil)
    assert (result.diverged, result.diverged_at, result.steps) == (True, 2, 1)


def test_a_study_of_preferences_end_to_end(tmp_path):
    result = run_study(spec_of(tmp_path), tmp_path / "out", workers=1)
    data = result.to_json()
    assert result.complete
    assert data["task"] == {"name": "preference", "unit": "nats per pair"}
    assert [finding["versus"] for finding in data["findings"]] == ["full"]
    for arm in data["arms"]:
        names = [metric["name"] for metric in arm["metrics"]]
        assert names == ["preference_accuracy", "margin"]
        assert 0 < arm["nll"] < 1
        assert all(run["tokens"] > 0 for run in arm["runs"] if "tokens" in run)
    page = build_page(data, tmp_path / "page.html")
    assert "nats per pair" in page.read_text(encoding="utf-8")


REFUSED = {
    "task": {"task": "causal"},
    "data.loss": {"data": {"train": "train.jsonl", "eval": "eval.jsonl", "loss": "all"}},
    "metric": {"metric": "exact_match"},
    "forgetting": {"forgetting": "demo:rules"},
    "packing": {"packing": "on"},
    "compile": {"compile": "on"},
    "micro_batch: 3": {"micro_batch": 3},
    "arms.full: auto": {"steps": 60, "arms": {"full": "auto", "attention": "attention"}},
    "arms.full.init": {"arms": {"full": {"placement": "all:1", "init": "pissa"}, "attention": "attention"}},
    "arms.attention.init": {
        "arms": {"full": "all:1", "attention": {"placement": "q:1", "init": "orthogonal"}}
    },
    "site_rates": {
        "arms": {"full": {"placement": "all:1", "site_rates": "curvature"}, "attention": "attention"}
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_apply_is_refused(name, tmp_path):
    with pytest.raises(SpecError, match=name):
        check_preferences(spec_of(tmp_path, **REFUSED[name]))


def test_the_word_is_read_and_left_out_where_it_is_not_given(tmp_path):
    spec = spec_of(tmp_path)
    assert spec.trainer is not None
    assert (spec.trainer.name, spec.trainer.beta) == ("dpo", 0.1)
    assert spec_of(tmp_path, trainer={"name": "dpo", "beta": 0.2}).digest != spec.digest
    assert "trainer" not in spec_of(tmp_path, trainer=None).to_json()
    with pytest.raises(SpecError, match="trainer"):
        spec_of(tmp_path, trainer="ppo")
