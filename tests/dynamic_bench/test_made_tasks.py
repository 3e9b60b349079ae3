"""The bench's made-up tasks: the same rows every time, right answers, no prompt in both splits."""

from __future__ import annotations

import json

import pytest
from benchmarks.common.further_tasks import DAYS, KINDS
from benchmarks.common.later_tasks import MEANS
from benchmarks.common.made_tasks import GENERATORS, VERBS, generate, split_of


@pytest.mark.parametrize("task", GENERATORS)
def test_rows_depend_on_the_seed_alone_and_splits_share_no_prompt(task: str):
    train = generate(task, split="train", rows=300)
    assert train == generate(task, split="train", rows=300)
    assert train != generate(task, split="train", rows=300, seed=1)
    held_out = generate(task, split="eval", rows=100)
    assert all(split_of(row["prompt"]) == "train" for row in train)
    assert all(split_of(row["prompt"]) == "eval" for row in held_out)
    assert all(row["completion"] for row in train)


def test_what_somebody_holds_is_where_the_second_sentence_says():
    for row in generate("lookup-twice", split="train", rows=50):
        *facts, question = row["prompt"].replace("?", ".").split(". ")
        asked = question.split()[2]
        (thing,) = [fact.split()[-1] for fact in facts if fact.startswith(f"{asked} holds")]
        (place,) = [fact for fact in facts if fact.startswith(f"The {thing} is")]
        words = place.split()
        assert row["completion"] == f"{words[3]} {thing}, {words[-1]}"


def test_sorting_sorts():
    for row in generate("sorting", split="train", rows=50):
        assert row["completion"].split() == sorted(row["prompt"].removeprefix("Sort: ").split())


def test_every_total_of_arithmetic_is_right():
    for row in generate("arithmetic", split="train", rows=50):
        words = row["prompt"].removesuffix(" =").split()
        total, totals = int(words[0]), []
        for sign, number in zip(words[1::2], words[2::2], strict=True):
            total += int(number) if sign == "+" else -int(number)
            totals.append(" ".join(str(total)))
        assert row["completion"] == " , ".join(totals)
        assert "-" not in row["completion"]


def test_style_keeps_what_was_said():
    for row in generate("style", split="train", rows=50):
        words = row["prompt"].rstrip(".").split()
        day, who, verb, what, where = words[2], words[4], words[5], " ".join(words[7:9]), words[-1]
        said = row["completion"]
        assert f"near the {where} the {what} was {VERBS[verb]} by the {who}, day {day}." in said


def test_long_copy_copies_what_follows_the_name():
    for row in generate("long-copy", split="train", rows=50):
        text, question = row["prompt"].split("\n")
        words = text.split()
        start = words.index(question.removeprefix("After ").rstrip(":")) + 1
        following = [word for word in words[start:] if word.islower()]
        assert row["completion"].split() == following[:8]


def test_table_to_text_says_every_field_but_the_age_in_numbers():
    for row in generate("table-to-text", split="train", rows=50):
        fields = dict(field.split(": ") for field in row["prompt"].split(" | "))
        age = int(fields.pop("age"))
        assert all(value in row["completion"] for value in fields.values())
        assert ("young" if age < 25 else "old" if age > 60 else "seasoned") in row["completion"]


def test_counting_counts_every_kind():
    for row in generate("counting", split="train", rows=50):
        words = row["prompt"].removeprefix("Count: ").split()
        counted = dict(reversed(part.split()) for part in row["completion"].split(", "))
        assert {kind: int(count) for kind, count in counted.items()} == {
            kind: sum(word in members for word in words) for kind, members in KINDS.items()
        }


def test_reversal_reverses():
    for row in generate("reversal", split="train", rows=50):
        assert row["completion"].split()[::-1] == row["prompt"].removeprefix("Backwards: ").split()


def test_a_message_in_code_says_what_the_prompt_explains():
    for row in generate("code", split="train", rows=50):
        explained, sent = row["prompt"].split(". Read: ")
        means = dict(pair.split(" is ") for pair in explained.split(", "))
        assert row["completion"] == " ".join(means[word] for word in sent.split())


def test_editing_exchanges_one_thing_everywhere_and_nothing_else():
    for row in generate("editing", split="train", rows=50):
        text, rule = row["prompt"].removesuffix(":").rsplit(" Write ", 1)
        new, old = rule.split(" for ")
        assert f" {old} " in text
        before, after = text.split(), row["completion"].split()
        assert [new if word == old else word for word in before] == after


def test_the_calendar_goes_on_from_the_day_it_reached():
    for row in generate("calendar", split="train", rows=50):
        day, *spans = row["prompt"].removesuffix(":").split(", then ")
        number, reached = DAYS.index(day), []
        for span in spans:
            number += int(span.split()[0])
            reached.append(DAYS[number % 7])
        assert row["completion"] == ", ".join(reached)


def test_a_record_holds_what_the_sentence_says():
    for row in generate("record", split="train", rows=50):
        fields = json.loads(row["completion"])
        assert list(fields) == ["age", "animal", "food", "name", "place", "trade"]
        assert all(str(value) in row["prompt"] for value in fields.values() if value is not None)
        assert ("fond of" in row["prompt"]) == (fields["food"] is not None)
        assert (" with a " in row["prompt"]) == (fields["animal"] is not None)


def test_merging_takes_turns_the_second_list_first():
    for row in generate("merging", split="train", rows=50):
        first, second = (part.split(": ")[1].split() for part in row["prompt"].split(". ")[:2])
        merged = row["completion"].split()
        assert (merged[::2], merged[1::2]) == (second, first)


def test_a_speaker_said_what_stands_behind_the_name():
    for row in generate("speaker", split="train", rows=50):
        *said, question = row["prompt"].split(". ")
        asked = question.split()[2]
        kept = [words for person, words in (line.split(": ") for line in said) if person == asked]
        assert row["completion"].split(", ") == kept


def test_the_way_back_ends_where_it_began():
    east = {"east": 1j, "west": -1j, "north": 1, "south": -1, "up": 100, "down": -100}
    for row in generate("return", split="train", rows=50):
        legs = row["prompt"].removesuffix(". Back:").split(" ", 3)[3].split(", ")
        there = [int(leg.split()[0]) * east[leg.split()[1]] for leg in legs]
        back = [int(leg.split()[0]) * east[leg.split()[1]] for leg in row["completion"].split(", ")]
        assert back == [-leg for leg in reversed(there)]


def test_the_invented_language_has_a_word_of_its_own_for_each():
    assert len(set(MEANS.values())) == len(MEANS)
    for row in generate("language", split="train", rows=50):
        words = row["prompt"].rstrip(".").split()
        who, verb, colour, whom, place = words[1], words[2], words[4], words[5], words[8]
        said = row["completion"].rstrip(".").split()
        wanted = [MEANS[place], "an", MEANS[who], "el", MEANS[whom], MEANS[colour]]
        assert said[:-1] == wanted
        assert said[-1] not in MEANS.values()
        assert verb not in said


def test_a_ledger_has_a_line_for_each_purchase():
    for row in generate("ledger", split="train", rows=50):
        told = row["prompt"].rstrip(".").split(". ")
        for sentence, line in zip(told, row["completion"].split("\n"), strict=True):
            day, who, thing, price = line.split("; ")
            words = sentence.split()
            assert {who, thing} < set(words)
            assert words[words.index("day") + 1] == day
            assert words[words.index("paid" if "paid" in words else "for") + 1] == price


def test_unique_keeps_the_first_of_each():
    for row in generate("unique", split="train", rows=50):
        words, kept = row["prompt"].removeprefix("Each once: ").split(), row["completion"].split()
        assert len(kept) == len(set(kept)) == len(set(words))
        assert [words.index(word) for word in kept] == sorted(words.index(word) for word in kept)
