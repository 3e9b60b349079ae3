"""The embedded tasks: the same rows in every process, the right things disjoint, the answers right."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from loratlas import demo
from loratlas.demo import facts, retrieval, rules
from loratlas.errors import DataError, ModelError


def pairs(task: str, split: str, rows: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    made = demo.generate(task, seed=seed, split=split, rows=rows)
    return [(row.turns[0].content, row.turns[1].content) for row in made.rows]


@pytest.mark.parametrize("task", sorted(demo.TASKS))
def test_rows_have_a_question_and_an_answer(task: str) -> None:
    made = demo.generate(task, split="train", rows=40)
    assert len(made) == 40
    assert [row.source_row for row in made.rows] == list(range(40))
    for row in made.rows:
        assert [turn.role for turn in row.turns] == ["user", "assistant"]
        assert all(turn.content.strip() == turn.content != "" for turn in row.turns)


@pytest.mark.parametrize("task", sorted(demo.TASKS))
def test_a_seed_decides_the_rows(task: str) -> None:
    assert pairs(task, "train", 40, seed=1) == pairs(task, "train", 40, seed=1)
    assert pairs(task, "train", 40, seed=1) != pairs(task, "train", 40, seed=2)


def test_rows_are_the_same_in_every_process() -> None:
    program = (
        "import json; from loratlas import demo; "
        "print(json.dumps({t: demo.generate(t, split=s, rows=50).digest for t in demo.TASKS for s in ['eval']}))"
    )
    seen = set()
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": salt, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    here = {task: demo.generate(task, split="eval", rows=50).digest for task in demo.TASKS}
    assert [json.loads(text) for text in seen] == [here]


@pytest.mark.parametrize("task", sorted(demo.TASKS))
def test_no_question_of_evaluation_occurs_in_training(task: str) -> None:
    train = {question for question, _ in pairs(task, "train")}
    evaluation = [question for question, _ in pairs(task, "eval")]
    assert not train & set(evaluation)


@pytest.mark.parametrize("count", [300, 1000, 3000])
def test_facts_are_the_same_facts_in_other_words(count: int) -> None:
    known = {(fact.subject, fact.relation): fact.value for fact in facts.facts(count, 0)}
    assert len(known) == count
    evaluation = pairs(f"facts-{count}", "eval")
    assert len(evaluation) == count
    assert sorted(answer for _, answer in evaluation) == sorted(known.values())
    train = pairs(f"facts-{count}", "train")
    assert len(train) == count * len(facts.PHRASINGS["train"])
    assert len(set(train)) == len(train), "a fact meets every phrasing once"
    for question, answer in train[:200]:
        asked = [key for key in known if all(part in question.replace("?", " ").split(" ") for part in key)]
        answers = {known[key] for key in known if key[0] in question and key[1] in question}
        assert answer in answers, (question, asked)


def test_training_and_evaluation_phrasings_differ() -> None:
    assert not set(facts.PHRASINGS["train"]) & set(facts.PHRASINGS["eval"])


def test_the_answer_of_retrieval_stands_in_the_prompt_beside_the_name_asked_for() -> None:
    for question, answer in pairs("retrieval", "eval", 100):
        *listing, asked = question.split("\n")
        entries = dict(line.split(": ") for line in listing)
        assert len(entries) == retrieval.PAIRS
        (name,) = (key for key in entries if key in asked)
        assert answer == entries[name]


def test_names_of_retrieval_are_new_in_evaluation() -> None:
    def names(split: str) -> set[str]:
        return {
            line.split(": ")[0]
            for question, _ in pairs("retrieval", split)
            for line in question.split("\n")[:-1]
        }

    assert not names("train") & names("eval")


def test_codes_follow_the_rule_and_every_word_is_trained() -> None:
    table = rules.table(0)
    for question, answer in pairs("rules", "eval", 200):
        message = question.split(": ")[1].split(" ")
        assert answer.split(" ") == [table[word] for word in message]
        assert rules.split_of(message) == "eval"
    seen = {
        word for question, _ in pairs("rules", "train", 400) for word in question.split(": ")[1].split(" ")
    }
    assert seen == set(rules.WORDS)


def test_the_free_word_of_format_is_not_told_by_the_prompt() -> None:
    made = pairs("format", "train", 4000)
    marks = [answer.split("mark: ")[1].split("\n")[0] for _, answer in made]
    assert len(set(marks)) == 8
    # Uniform within 5 standard deviations of a binomial count.
    assert all(abs(marks.count(mark) - 500) < 5 * (4000 / 8 * 7 / 8) ** 0.5 for mark in set(marks))
    frames = {answer.replace(mark, "*") for (_, answer), mark in zip(made, marks, strict=True)}
    assert len(frames) == 1


def test_words_are_one_token_of_the_base() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.base_path())
    long = [word for word in rules.WORDS if len(tokenizer(" " + word).input_ids) != 1]
    assert long == []


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"name": "fact-300"}, "demo:facts-300"),
        ({"name": "demo:rules", "split": "test"}, "train and eval"),
        ({"name": "rules", "rows": 0}, "no row"),
    ],
)
def test_a_wrong_request_says_what_to_write(arguments: dict, found: str) -> None:
    with pytest.raises(DataError) as caught:
        demo.generate(**arguments)
    assert found in str(caught.value)


def test_an_unknown_base_names_the_one_there_is() -> None:
    with pytest.raises(ModelError, match="demo:llama-mini"):
        demo.base_path("demo:llama-maxi")
