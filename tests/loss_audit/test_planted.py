"""Planted causes, each made by the real tool where there is one: the audit names the cause and its size."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.loss_audit.trainer_losses import collate, dataset, eval_loss, trainer
from tests.tiny import tiny_model
from tests.training.small import adapted, encoded, wrap

from loratlas.evaluation.forward_condition import Condition
from loratlas.evaluation.token_scorer import measure
from loratlas.loss_audit.audit import definitions, identify
from loratlas.loss_audit.catalogue import catalogue, token_mean
from loratlas.loss_audit.definitions import REFERENCE, Definition, LossEvidence, value
from loratlas.loss_audit.gaps import decompose
from loratlas.loss_audit.regularisers import orthogonality, router_balance
from loratlas.loss_audit.text_units import Texts
from loratlas.loss_audit.token_table import LossTable, align, read_table

END = 2


def ending(data):
    """Every answer ends with the end token."""
    for example in data.examples:
        example.input_ids[-1] = END
    return data


@pytest.fixture
def data():
    return ending(encoded(21))


def sharp(model):
    """Losses far from those of chance, so that nothing is small by accident."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model.eval()


@pytest.fixture
def model():
    return sharp(adapted())


@pytest.fixture
def judge(tmp_path):
    """Tables of a model under named conditions."""

    def run(model, data, everything=False, **conditions):
        tables = {}
        for name, condition in {REFERENCE: Condition(), **conditions}.items():
            folder = measure(
                model,
                data.examples,
                packed=False,
                out=tmp_path / f"tables{len(list(tmp_path.iterdir()))}",
                condition=condition,
                everything=everything,
                special=(1, END),
                uniform=True,
            )
            tables[name] = read_table(folder, condition=condition.words)
        return LossEvidence(tables=tables)

    return run


def named(number, evidence, name, *, among=None, kinds, tolerance=None, **options):
    """The audit finds exactly this definition, explains its whole gap, and by these kinds of terms only."""
    among = among or catalogue(evidence, **options)
    result = identify(number, evidence, among=among, tolerance=tolerance)
    assert result, f"no definition gives {number}"
    best = result[0]
    assert best.definition.name == name, [m.definition.name for m in result]
    assert abs(best.gap.residual) <= 1e-6
    assert {term.kind for term in best.gap.terms if abs(term.nats) > 1e-9} == set(kinds)
    return best


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_trainers_mean_of_batches(model, data, judge, tmp_path, size):
    evidence = judge(model, data)
    number = eval_loss(model, dataset(data), tmp_path / "t", batch_size=size)
    sizes = [b for b in (1, 2, 3, 4, 5, 8, 16) if b == size or size != 1]
    best = named(number, evidence, f"batch_mean_{size}", kinds={"batch"}, among=[
        d for d in catalogue(evidence, batch_sizes=sizes) if d.aggregate == "batch"
    ])  # fmt: skip
    assert best.gap.nats == pytest.approx(number - definitions(evidence)["token_mean"], abs=1e-5)
    assert abs(best.gap.nats) > 1e-3
    if size == 1:  # batches of one are examples
        assert definitions(evidence)["example_mean"] == pytest.approx(number, abs=1e-5)


def test_mean_of_examples_perplexities(model, data, judge):
    """As cal_ppl computes it: the exponential of each row's mean, averaged."""
    evidence = judge(model, data)
    perplexities = []
    with torch.no_grad():
        for row in dataset(data):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            perplexities.append(math.exp(model(input_ids=ids, labels=labels).loss.item()))
    best = named(np.mean(perplexities), evidence, "mean_example_perplexity", kinds={"example", "jensen"})
    jensen = next(term for term in best.gap.terms if term.kind == "jensen")
    assert jensen.nats > 0
    assert jensen.estimate == pytest.approx(jensen.nats, rel=0.5)


def test_prompts_counted(model, data, judge, tmp_path):
    evidence = judge(model, data, everything=True)
    number = eval_loss(model, dataset(data, labels="all"), tmp_path / "t", batch_size=21)
    # One batch holds all rows, so that no batch effect is in the number.
    best = named(number, evidence, "prompt_included", kinds={"coverage"})
    assert [term.words for term in best.gap.terms] == ["prompt tokens counted as well"]
    assert best.gap.nats == pytest.approx(number - definitions(evidence)["token_mean"], abs=1e-5)


def test_padding_counted(model, data, judge, tmp_path):
    evidence = judge(model, data, everything=True, padded=Condition(padding="right", batch_size=21))
    collator = collate(mask_padding=False)
    number = eval_loss(model, dataset(data, labels="all"), tmp_path / "t", batch_size=21, collator=collator)
    best = named(number, evidence, "padded_padding_and_prompt_included", kinds={"coverage"})
    sizes = {term.words: term.nats for term in best.gap.terms if term.kind == "coverage"}
    assert set(sizes) == {
        "prompt tokens counted as well",
        "padding tokens that only the second pass sees",
    }
    assert abs(sizes["padding tokens that only the second pass sees"]) > 1e-2
    # Filling at the right changes no token: the condition is rounding.
    assert all(abs(term.nats) < 1e-6 for term in best.gap.terms if term.kind == "condition")


@pytest.mark.filterwarnings("ignore:.*PEFT's own forward pass")
def test_adaloras_orthogonality(data, judge, tmp_path):
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        total_step=10,
        target_modules=["q_proj", "v_proj"],
        orth_reg_weight=0.5,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(tiny_model("llama"), config).eval()
    evidence = judge(model, data)
    number = eval_loss(model, dataset(data), tmp_path / "t", batch_size=21)
    size = orthogonality(model)
    assert size > 0.1
    regularisers = {"orthogonality": size}
    best = named(number, evidence, "orthogonality_included", kinds={"regulariser"}, regularisers=regularisers)
    assert best.gap.terms[0].nats == pytest.approx(number - definitions(evidence)["token_mean"], abs=1e-4)
    assert orthogonality(adapted()) == 0.0


def test_routers_balance_inside_the_loss(data, judge, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
        output_router_logits=True,
        router_aux_loss_coef=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = MixtralForCausalLM(config).eval().requires_grad_(False)
    model.config.use_cache = False
    rows = dataset(data)
    number = eval_loss(model, rows, tmp_path / "t", batch_size=7)
    batches = [collate()(rows[start : start + 7]) for start in range(0, 21, 7)]
    size = router_balance(model, [(b["input_ids"], b["attention_mask"]) for b in batches])
    model.config.output_router_logits = False
    evidence = judge(model, data)
    suspect = Definition(name="balance", regulariser=size, aggregate="batch", batch_size=7)
    best = named(
        number, evidence, "balance", among=[*catalogue(evidence), suspect], kinds={"batch", "regulariser"}
    )
    terms = {term.kind: term.nats for term in best.gap.terms}
    assert terms["regulariser"] == pytest.approx(size)
    assert size > 0.1


def test_dropout_left_on(data, judge):
    model = sharp(adapted(lora_dropout=0.4))
    evidence = judge(model, data, dropout=Condition(dropout=7, padding="right", batch_size=21))
    batch = collate()(dataset(data))
    model.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7 * 1_000_003)  # the seed's first batch
        number = model(**batch).loss.item()
    best = named(number, evidence, "dropout", kinds={"condition"})
    assert "dropout on (seed 7)" in best.gap.terms[0].words
    assert abs(best.gap.nats) > 1e-3


def test_truncation_that_differs(model, data, judge, tmp_path):
    evidence = judge(model, data, cut=Condition(max_length=20))
    rows = [{k: v[:20] for k, v in row.items()} for row in dataset(data)]
    rows = [row for row in rows if any(label != -100 for label in row["labels"][1:])]
    number = eval_loss(model, rows, tmp_path / "t", batch_size=len(rows))
    best = named(number, evidence, "cut", kinds={"coverage"})
    assert {term.words for term in best.gap.terms} == {
        "answer tokens that only the first pass sees",
        "end tokens that only the first pass sees",
    }


def test_sixteen_bit_logits(model, data, judge, tmp_path):
    evidence = judge(model, data, bfloat16=Condition(dtype="bfloat16", padding="right", batch_size=21))
    number = eval_loss(
        copy.deepcopy(model), dataset(data), tmp_path / "t", batch_size=21, bf16_full_eval=True
    )
    best = named(number, evidence, "bfloat16", kinds={"condition"}, tolerance=2e-4)
    assert "bfloat16" in best.gap.terms[0].words
    assert 1e-6 < abs(best.gap.nats) < 0.05


@pytest.mark.parametrize("size", [21, 4])
def test_label_smoothing(model, data, judge, tmp_path, size):
    evidence = judge(model, data)
    number = eval_loss(model, dataset(data), tmp_path / "t", batch_size=size, label_smoothing_factor=0.2)
    if size == 21:
        best = named(number, evidence, "smoothed_0.2", kinds={"smoothing"}, smoothing=(0.1, 0.2))
        assert abs(best.gap.nats) > 1e-3
        return
    suspect = Definition(name="both", smoothing=0.2, aggregate="batch", batch_size=4)
    named(number, evidence, "both", among=[*catalogue(evidence), suspect], kinds={"batch", "smoothing"})


def test_examples_that_see_each_other(model, data, judge):
    """Rows laid end to end and cut, without a mask between them."""
    evidence = judge(model, data, packed=Condition(window=48, stream=True))
    rows = dataset(data)
    ids, labels = ([t for row in rows for t in row[name]] for name in ("input_ids", "labels"))
    total = tokens = 0.0
    with torch.no_grad():
        for start in range(0, len(ids), 48):
            window, told = torch.tensor([ids[start : start + 48]]), torch.tensor([labels[start : start + 48]])
            counted = int((told[:, 1:] != -100).sum())
            if counted:
                total += model(input_ids=window, labels=told).loss.item() * counted
                tokens += counted
    best = named(total / tokens, evidence, "packed", kinds={"condition", "coverage"})
    condition = next(term for term in best.gap.terms if term.kind == "condition")
    assert "all examples end to end" in condition.words
    assert abs(condition.nats) > 1e-3


@pytest.mark.parametrize("stride", [8, 16])
def test_windows_with_stride(model, data, judge, stride):
    """The sliding window of the guides: each token once, with what its window holds."""
    evidence = judge(model, data, everything=True, windows=Condition(window=16, stride=stride, stream=True))
    ids = torch.tensor([[t for example in data.examples for t in example.input_ids.tolist()]])
    total, tokens, scored = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + 16, ids.shape[1])
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : scored - begin] = -100
        counted = int((labels[:, 1:] != -100).sum())
        if counted:
            with torch.no_grad():
                total += model(input_ids=window, labels=labels).loss.item() * counted
            tokens, scored = tokens + counted, end
        if end == ids.shape[1]:
            break
    suspect = Definition(name="w", table="windows", covers=("answer", "end", "prompt", "special"))
    best = named(
        total / tokens, evidence, "w", among=[*catalogue(evidence), suspect], kinds={"condition", "coverage"}
    )
    assert "windows of 16 tokens" in best.gap.terms[0].words


def test_pad_is_eos(model, data, judge, tmp_path):
    """The collator for language models masks every token that equals pad, the end token among them."""
    from transformers import DataCollatorForLanguageModeling

    class Tokenizer:
        """What the collator asks of a tokenizer."""

        pad_token_id, pad_token, padding_side, mask_token = END, "</s>", "right", None

        def pad(self, rows, **_):
            longest = max(len(row["input_ids"]) for row in rows)
            fill = [longest - len(row["input_ids"]) for row in rows]
            return {
                "input_ids": torch.tensor(
                    [r["input_ids"] + [END] * n for r, n in zip(rows, fill, strict=True)]
                ),
                "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in fill]),
            }

    collator = DataCollatorForLanguageModeling(Tokenizer(), mlm=False)
    evidence = judge(model, data, everything=True)
    rows = [{"input_ids": example.input_ids.tolist()} for example in data.examples]
    number = eval_loss(model, rows, tmp_path / "t", batch_size=21, collator=collator)
    best = named(number, evidence, "end_excluded_prompt_included", kinds={"coverage"})
    assert {term.words for term in best.gap.terms} == {
        "end tokens not counted",
        "prompt tokens counted as well",
    }


def test_special_tokens_counted_or_not(model, data, judge):
    evidence = judge(model, data)
    table = evidence.tables[REFERENCE]
    kept = table.nll[table.part == 0]
    best = named(kept.mean(), evidence, "end_excluded", kinds={"coverage"})
    assert best.gap.terms[0].words == "end tokens not counted"


def test_left_padding_with_the_positions_of_the_edge(data, judge, tmp_path):
    model = sharp(tiny_model("gpt2"))
    evidence = judge(model, data, left=Condition(padding="left", batch_size=7))
    number = eval_loss(model, dataset(data), tmp_path / "t", batch_size=7, collator=collate("left"))
    suspect = Definition(name="left_7", table="left", aggregate="batch", batch_size=7)
    best = named(
        number, evidence, "left_7", among=[*catalogue(evidence), suspect], kinds={"condition", "batch"}
    )
    condition = best.gap.terms[0]
    assert "padded at the left" in condition.words
    assert abs(condition.nats) > 1e-3


def test_labels_shifted_twice(model, data, judge, tmp_path):
    evidence = judge(model, data, shifted=Condition(ahead=2))
    rows = [row | {"labels": [*row["labels"][1:], -100]} for row in dataset(data)]
    number = eval_loss(model, rows, tmp_path / "t", batch_size=21)
    best = named(
        number,
        evidence,
        "shifted",
        kinds={"condition", "coverage"} if _first_answered(data) else {"condition"},
    )
    assert "labels shifted 2 times" in best.gap.terms[0].words


def _first_answered(data):
    """Whether some answer begins at place 1, which nothing two places before it predicts."""
    return any(example.labelled[1] for example in data.examples)


def test_duplicates_of_the_distributed_sampler(model, data, judge):
    from torch.utils.data import DistributedSampler

    evidence = judge(model, data)
    samplers = [DistributedSampler(range(21), num_replicas=4, rank=r, shuffle=False) for r in range(4)]
    total = tokens = 0.0
    rows = dataset(data)
    for sampler in samplers:
        for index in sampler:
            row = rows[index]
            counted = sum(label != -100 for label in row["labels"][1:])
            with torch.no_grad():
                loss = model(
                    input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])
                ).loss
            total, tokens = total + loss.item() * counted, tokens + counted
    best = named(total / tokens, evidence, "sampler_4", kinds={"coverage"}, world_sizes=(2, 4, 8))
    assert all("repeated examples counted again" in term.words for term in best.gap.terms)


def test_capped_and_skipped_batches(data, judge):
    """exp(min(20, loss)), and batches of no finite loss left out."""
    model = tiny_model("llama")
    evidence = judge(model, data)
    table = evidence.tables[REFERENCE]
    steep = LossEvidence(tables={REFERENCE: LossTable(
        example=table.example, position=table.position, part=table.part, tokens=table.tokens, nll=table.nll * 10
    )})  # fmt: skip
    best = named(20.0, steep, "capped_20", kinds={"cap"})
    assert best.gap.nats == pytest.approx(20.0 - definitions(steep)["token_mean"])
    # A tool in which batch 1 of 7 rows overflowed, and whose loop goes on without it.
    kept = [row for row in range(21) if not 7 <= row < 14]
    rows = np.isin(table.example, kept)
    means = [table.nll[rows & np.isin(table.example, kept[k : k + 7])].mean() for k in (0, 7)]
    suspect = Definition(
        name="skips", times=tuple((row, 0) for row in range(7, 14)), aggregate="batch", batch_size=7
    )
    best = named(
        np.mean(means), evidence, "skips", among=[*catalogue(evidence), suspect], kinds={"coverage", "batch"}
    )
    assert any("not counted" in term.words for term in best.gap.terms)


def test_base_of_the_logarithm_and_words(model, data, judge):
    evidence = judge(model, data)
    texts = Texts.of([" ".join("word" for _ in range(1 + len(e) // 3)) for e in data.examples])
    evidence = LossEvidence(tables=evidence.tables, texts=texts)
    table = evidence.tables[REFERENCE]
    mean, total = table.nll.mean(), table.nll.sum()
    named(mean / math.log(2), evidence, "bits", kinds={"unit"})
    named(mean / math.log(10), evidence, "digits", kinds={"unit"})
    named(math.exp(total / texts.words.sum()), evidence, "word_perplexity", kinds={"unit"})
    named(total / texts.bytes.sum() / math.log(2), evidence, "bits_per_byte", kinds={"unit"})
    named(total / texts.characters.sum() / math.log(2), evidence, "bits_per_character", kinds={"unit"},
          among=[d for d in catalogue(evidence) if d.name != "bits_per_byte"])  # fmt: skip


def test_an_adapter_that_was_not_active(model, data, judge, tmp_path):
    evidence = judge(model, data, off=Condition(adapter=False))
    with model.disable_adapter():
        number = eval_loss(model, dataset(data), tmp_path / "t", batch_size=21)
    best = named(number, evidence, "off", kinds={"condition"})
    assert "adapter off" in best.gap.terms[0].words
    assert abs(best.gap.nats) > 1e-3


def test_the_running_training_loss(data, judge, tmp_path):
    """Trainer's train_loss: the mean over steps, each of the model as it was before that step."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback

    model = adapted(lora_dropout=0.0)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            folder = measure(model, data.examples, packed=False, out=tmp_path / f"step{state.global_step}")
            table = read_table(folder)
            batch = np.arange(state.global_step * 7, state.global_step * 7 + 7)
            rows = np.isin(table.example, batch)
            seen.append(
                [getattr(table, name)[rows] for name in ("example", "position", "part", "tokens", "nll")]
            )

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(range(21))

    made = trainer(model, dataset(data), tmp_path / "t", batch_size=7, num_train_epochs=1, learning_rate=1e-2)
    running = InOrder(model=model, args=made.args, train_dataset=dataset(data), data_collator=collate())
    running.add_callback(Watch())
    number = running.train().training_loss
    names = ("example", "position", "part", "tokens", "nll")
    columns = {name: np.concatenate([s[k] for s in seen]) for k, name in enumerate(names)}
    after = judge(model, data)
    evidence = LossEvidence(
        tables={**after.tables, "running": LossTable(**columns, condition="the model while it learnt")}
    )
    suspect = Definition(name="train_loss", table="running", aggregate="batch", batch_size=7)
    best = named(
        number, evidence, "train_loss", among=[*catalogue(evidence), suspect], kinds={"condition", "batch"}
    )
    assert "the model while it learnt" in best.gap.terms[0].words
    assert best.gap.terms[0].nats > 1e-3


def test_another_checkpoint_and_another_split(data, judge, tmp_path):
    right, other = adapted(seed=0).eval(), adapted(seed=3).eval()
    evidence = judge(right, data)
    wrong = judge(other, data).tables[REFERENCE]
    more = encoded(9, seed=5)
    split = judge(right, more).tables[REFERENCE]
    split = replace(split, example=split.example + 1000)
    tables = {**evidence.tables, "checkpoint": wrong, "split": split}
    evidence = LossEvidence(tables=tables)
    number = eval_loss(other, dataset(data), tmp_path / "t", batch_size=21)
    named(number, evidence, "checkpoint", kinds={"condition"})
    number = eval_loss(right, dataset(more), tmp_path / "t", batch_size=9)
    best = named(number, evidence, "split", kinds={"coverage"})
    assert {
        "only the first pass sees" in t.words or "only the second pass sees" in t.words
        for t in best.gap.terms
    } == {True}


def test_masks_drawn_anew(data):
    """A masked model judged twice with masks of two seeds: tokens in both, and tokens in one only."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    model = BertForMaskedLM(config).eval().requires_grad_(False)

    def judged(seed):
        random = np.random.default_rng(seed)
        columns, sums = [], []
        for index, example in enumerate(data.examples):
            drawn = random.random(len(example)) < 0.3
            if not drawn.any():
                continue
            ids = torch.as_tensor(example.input_ids).long()
            masked = torch.where(torch.from_numpy(drawn), 4, ids)
            labels = torch.where(torch.from_numpy(drawn), ids, -100)
            with torch.no_grad():
                out = model(input_ids=masked[None], labels=labels[None])
            nll = -torch.log_softmax(out.logits[0].double(), -1).gather(1, ids[:, None])[:, 0].numpy()
            sums.append((float(out.loss) * drawn.sum(), int(drawn.sum())))
            for place in np.flatnonzero(drawn):
                columns.append((index, place, nll[place]))
        e, p, nll = (np.array(c) for c in zip(*columns, strict=True))
        ones = np.ones(len(e), dtype=np.int64)
        table = LossTable(example=e, position=p, part=np.zeros(len(e), dtype=np.int8), tokens=ones, nll=nll,
                      condition=f"masks of seed {seed}")  # fmt: skip
        return table, sum(s for s, _ in sums) / sum(n for _, n in sums)

    (one, _), (two, number) = judged(1), judged(2)
    evidence = LossEvidence(tables={REFERENCE: one, "masks": two})
    best = named(number, evidence, "masks", kinds={"condition", "coverage"})
    assert "masks of seed 2" in best.gap.terms[0].words


def test_tokens_merged_across_the_boundary(judge, tmp_path):
    """Prompt and answer tokenised as one text: other tokens at the boundary, and the losses after it."""
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.examples import Example
    from loratlas.demo import base_path
    from loratlas.models.load import load_model

    tokenizer, model = load_tokenizer(base_path()), load_model(base_path(), dtype="float32")
    pairs = [
        ("The weather is un", "happy today"),
        ("Two and two are n", "ot five"),
        ("The sun", "shine is warm"),
    ]

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    apart, whole = [], []
    for row, (prompt, answer) in enumerate(pairs):
        p, a = ids(prompt), ids(answer)
        apart.append(
            Example(
                input_ids=np.array(p + a, dtype=np.int32), labelled=np.arange(len(p + a)) >= len(p), row=row
            )
        )
        joint = ids(prompt + answer)
        common = next((k for k, (x, y) in enumerate(zip(p, joint, strict=False)) if x != y), len(p))
        whole.append(
            Example(
                input_ids=np.array(joint, dtype=np.int32), labelled=np.arange(len(joint)) >= common, row=row
            )
        )
    assert any(len(a) != len(w) for a, w in zip(apart, whole, strict=True)), "no pair merges"
    one, two = (judge(model, wrap(rows)).tables[REFERENCE] for rows in (apart, whole))
    two = align(two, [e.input_ids for e in whole], [e.input_ids for e in apart])
    number = eval_loss(model, dataset(wrap(whole)), tmp_path / "t", batch_size=len(pairs))
    evidence = LossEvidence(tables={REFERENCE: one, "merged": two})
    best = named(number, evidence, "merged", kinds={"condition", "coverage"})
    words = {term.words for term in best.gap.terms}
    assert {
        "answer tokens that only the first pass sees",
        "answer tokens that only the second pass sees",
    } <= words


def test_two_tokenizers_per_token(judge):
    """The same text in other tokens: means per token differ where bits per byte compare."""
    long, short = encoded(12), encoded(12, seed=1, longest=16)
    one, two = (
        judge(tiny_model("llama"), long).tables[REFERENCE],
        judge(tiny_model("gpt2"), short).tables[REFERENCE],
    )
    texts = Texts.of(["text " * (index + 3) for index in range(12)])
    named_one, named_two = (
        LossTable(
            example=t.example, position=t.position, part=t.part, tokens=t.tokens, nll=t.nll, tokenizer=name
        )
        for t, name in ((one, "a"), (two, "b"))
    )
    evidence = LossEvidence(tables={REFERENCE: named_one, "other": named_two}, texts=texts)
    best = named(two.nll.mean(), evidence, "other", kinds={"condition", "coverage"})
    n, m = len(one), len(two)
    tokens = next(term for term in best.gap.terms if term.kind == "coverage")
    assert tokens.nats == pytest.approx(one.nll.mean() * (n / m - 1))
    assert f"{m} tokens instead of {n}" in tokens.words
    bytes_ = Definition(name="b", table="other", unit="bits_per_byte")
    assert value(bytes_, evidence) == pytest.approx(two.nll.sum() / texts.bytes.sum() / math.log(2))


@pytest.mark.parametrize("completion_only", [True, False])
def test_trls_eval_loss(judge, tmp_path, completion_only):
    """TRL's own tokenisation and loss: a mean of batches, with or without the prompts."""
    trl = pytest.importorskip("trl", reason="needs trl, which the extra 'dev' installs")
    from datasets import Dataset

    from loratlas.data.encode import load_tokenizer
    from loratlas.data.examples import Example
    from loratlas.demo import base_path
    from loratlas.models.load import load_model

    tokenizer, model = load_tokenizer(base_path()), load_model(base_path(), dtype="float32")
    pairs = [
        {"prompt": f"Write a line about {thing}.\n", "completion": " ".join(["Some"] * n) + f" {thing}."}
        for n, thing in enumerate(["rain", "bread", "a very old wooden ship", "trees", "the sea", "snow"])
    ]
    options = trl.SFTConfig(
        output_dir=str(tmp_path / "t"),
        per_device_eval_batch_size=4,
        completion_only_loss=completion_only,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        eos_token=tokenizer.eos_token,
    )
    rows = Dataset.from_list(pairs)
    tool = trl.SFTTrainer(
        model=model, args=options, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    number = tool.evaluate()["eval_loss"]

    def counted(row):
        told = row["completion_mask"] if "completion_mask" in row else np.asarray(row["labels"]) != -100
        return np.asarray(told, dtype=bool) & (np.arange(len(row["input_ids"])) > 0)

    examples = [
        Example(input_ids=np.asarray(row["input_ids"], dtype=np.int32), labelled=counted(row), row=index)
        for index, row in enumerate(tool.eval_dataset)
    ]
    evidence = judge(model, wrap(examples), everything=True)
    suspect = Definition(
        name="both", covers=("answer", "end", "prompt", "special"), aggregate="batch", batch_size=4
    )
    among = [*catalogue(evidence, batch_sizes=(1, 2, 4, 8)), suspect]
    if completion_only:
        named(number, evidence, "batch_mean_4", among=among, kinds={"batch"})
    else:
        best = named(number, evidence, "both", among=among, kinds={"coverage", "batch"})
        assert abs(best.gap.largest.nats) > 1e-2


def test_nothing_matches_a_number_that_no_definition_gives(model, data, judge):
    assert identify(123.456, judge(model, data)) == []


def test_two_tools_explained_against_each_other(model, data, judge, tmp_path):
    """From a smoothed mean of batches to a mean of perplexities over prompts as well: any two."""
    evidence = judge(model, data, everything=True)
    first = Definition(name="a", smoothing=0.2, aggregate="batch", batch_size=4, regulariser=0.3)
    second = Definition(
        name="b", covers=("answer", "end", "prompt"), aggregate="log_mean_exp", exponential=True
    )
    gap = decompose(first, second, evidence)
    assert [term.kind for term in gap.terms] == [
        "coverage",
        "example",
        "batch",
        "jensen",
        "smoothing",
        "regulariser",
    ]
    assert abs(gap.residual) <= 1e-9
    back = decompose(second, first, evidence)
    assert gap.nats == pytest.approx(-back.nats)
    assert decompose(token_mean(), token_mean(), evidence).terms == ()
