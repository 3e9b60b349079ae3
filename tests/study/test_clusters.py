"""Rows that share a prompt, a row of the source or a document are one unit; what all rows share joins nothing."""

from __future__ import annotations

import numpy as np

from loratlas.data.examples import Encoded, EncodeReport, Example
from loratlas.data.rows import Row, Rows, Turn
from loratlas.study.inputs.clusters import clusters_of


def example(prompt, answer, row, **more):
    ids = np.array([*prompt, *answer], dtype=np.int32)
    labelled = np.arange(len(ids)) >= len(prompt)
    labelled[0] = False
    return Example(input_ids=ids, labelled=labelled, row=row, **more)


def encoded(*examples):
    return Encoded(
        examples=examples, report=EncodeReport.of(examples), digest="d", template="t", pad_id=0, source="s"
    )


def test_rows_of_one_prompt_are_one():
    rows = [example([1, 2, k // 2], [7, k], k) for k in range(6)]
    assert clusters_of(encoded(*rows)) == (0, 0, 1, 1, 2, 2)


def test_different_prompts_are_none():
    assert clusters_of(encoded(*(example([1, 2, k], [7], k) for k in range(4)))) is None


def test_examples_of_one_row_are_one():
    rows = [example([1, k], [7], k // 2) for k in range(4)]
    assert clusters_of(encoded(*rows)) == (0, 0, 1, 1)


def test_a_prompt_that_most_rows_share_is_the_frame_of_the_task():
    rows = [example([1, 2, 3], [7, k], k) for k in range(5)]
    assert clusters_of(encoded(*rows)) is None


def test_raw_text_is_joined_where_it_is_the_same():
    rows = [example([], [5, k // 2, 9], k) for k in range(6)]
    assert clusters_of(encoded(*rows)) == (0, 0, 1, 1, 2, 2)


def test_the_same_text_of_a_class_is_one():
    rows = [
        Example(input_ids=np.array([4, k // 2]), labelled=np.zeros(2, bool), row=k, label=0) for k in range(6)
    ]
    assert clusters_of(encoded(*rows)) == (0, 0, 1, 1, 2, 2)


def test_questions_about_one_document_are_one():
    texts = ["x" * 250, "y" * 250, "x" * 250, "z" * 250]
    source = Rows(
        rows=[
            Row(
                turns=(
                    Turn(role="user", content=f"Question {k}?\n\n{text}"),
                    Turn(role="assistant", content="a"),
                ),
                source_row=k,
            )
            for k, text in enumerate(texts)
        ],
        form="messages",
        source="s",
    )
    rows = [example([1, 2, k], [7], k) for k in range(4)]
    assert clusters_of(encoded(*rows), source) == (0, 1, 0, 2)
