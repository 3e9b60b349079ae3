"""Greedy answers: the same as a loop over argmax without a cache, and exact matches counted right."""

from __future__ import annotations

import pytest
import torch

from loratlas.data.encode import load_tokenizer
from loratlas.data.rows import Row, Rows, Turn
from loratlas.demo import base_path
from loratlas.evaluation.generate import samples


@pytest.fixture(scope="module")
def model():
    from loratlas.models.load import load_model

    return load_model(base_path("demo:llama-mini"), dtype="float32")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(base_path("demo:llama-mini"))


def rows(*pairs):
    made = tuple(
        Row(turns=(Turn(role="user", content=q), Turn(role="assistant", content=a)), source_row=i)
        for i, (q, a) in enumerate(pairs)
    )
    return Rows(rows=made, form="prompt", source="test")


def by_hand(model, tokenizer, prompt, most):
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = []
    for _ in range(most):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax())
        answer.append(token)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_greedy_and_exact_match(model, tokenizer):
    prompts = ["Name a colour.", "What is two plus two?"]
    said = [by_hand(model, tokenizer, f"{p}\n\nAnswer:\n", 12) for p in prompts]
    given = rows((prompts[0], said[0]), (prompts[1], "something else entirely"), ("never asked", "x"))
    drawn = samples(model, tokenizer, given, limit=2, max_new_tokens=12)
    assert [sample["answer"] for sample in drawn["samples"]] == said
    assert [sample["exact"] for sample in drawn["samples"]] == [True, False]
    assert (drawn["rows"], drawn["exact"], drawn["exact_match"]) == (2, 1, 0.5)
    assert drawn["samples"][0]["prompt"] == "Name a colour.\n\nAnswer:\n"


def test_rows_without_a_prompt_and_prompts_without_room_are_left_out(model, tokenizer):
    text = Rows(
        rows=(Row(turns=(Turn(role="text", content="alone"),), source_row=0),),
        form="text",
        source="t",
    )
    assert samples(model, tokenizer, text, limit=3)["exact_match"] is None
    assert samples(model, tokenizer, rows(("word " * 1100, "x")), limit=3)["rows"] == 0


def test_an_end_token_that_was_learnt_ends_the_answer(model, tokenizer):
    drawn = samples(model, tokenizer, rows(("Say yes.", "yes")), limit=1, max_new_tokens=3)
    length = len(tokenizer(drawn["samples"][0]["answer"], add_special_tokens=False)["input_ids"])
    assert length <= 3
