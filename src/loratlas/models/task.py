"""What a model is trained to do, as a change of its config: the class that is built follows from it.

======================  =====================================================================================
``causal``              the next token of a text (a decoder)
``seq2seq``             a target text from a source text (an encoder-decoder)
``classification``      one label of a text or a pair of texts (any of them, with a head)
======================  =====================================================================================

A classifier is the base's own stack with a head on it, which transformers builds and draws. Whatever stands between
the stack's output and the logits is the head, the pooler of a BERT included: a masked language model has none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.errors import DataError, ModelError
from loratlas.models.config import load_config
from loratlas.models.meta import class_kind, classes

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

CAUSAL, SEQ2SEQ, CLASSIFICATION = "causal", "seq2seq", "classification"
TASKS = (CAUSAL, SEQ2SEQ, CLASSIFICATION)
PREFERENCE = "preference"
"""Which of two answers is better: a language model's task in studies that name a trainer for it; no task of a row."""

_KINDS = {CAUSAL: "CausalLM", SEQ2SEQ: "Seq2SeqLM", CLASSIFICATION: "SequenceClassification"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task and what it needs beside its name.

    Args:
        name: one of `TASKS`, or `PREFERENCE`.
        labels: names of the classes, class 0 first; of a classification.
    """

    name: str = CAUSAL
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What a loss is told per.

        >>> Task().unit, Task(name="classification", labels=("no", "yes")).unit
        ('token', 'row')
        """
        return {CLASSIFICATION: "row", PREFERENCE: "pair"}.get(self.name, "token")

    @property
    def why_padded(self) -> str | None:
        """Why rows of this task stand side by side; None where they may lie end to end."""
        return {
            CLASSIFICATION: "padded batches: a classifier reads one place of every row",
            SEQ2SEQ: "padded batches: every row is a source and a target",
        }.get(self.name)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with transformers' name for the labels.

        >>> Task(name="classification", labels=("no", "yes")).to_json()
        {'name': 'classification', 'id2label': {'0': 'no', '1': 'yes'}}
        """
        if not self.labels:
            return {"name": self.name}
        return {"name": self.name, "id2label": {str(i): label for i, label in enumerate(self.labels)}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        named = data.get("id2label") or {}
        return Task(name=data["name"], labels=tuple(named[str(i)] for i in range(len(named))))


def recognise(source: str | Path | PretrainedConfig, form: str, *, asked: str | None = None) -> str:
    """The task that a model and rows are for.

    Rows of text and label are a classification; of all others the architecture decides.

    Args:
        source: see `loratlas.models.config.load_config`.
        form: of the rows, one of `loratlas.data.records.row_forms.FORMS`.
        asked: one of `TASKS`, which then is the answer if model and rows allow it.

    Raises:
        DataError: rows that do not fit the model or the task. ModelError: a model without a class for the task.

    >>> from transformers import GPT2Config, T5Config
    >>> recognise(GPT2Config(), "alpaca"), recognise(GPT2Config(), "label"), recognise(T5Config(), "prompt")
    ('causal', 'classification', 'seq2seq')
    """
    config = load_config(source)
    kind = class_kind(config)
    if asked is not None:
        if asked == CLASSIFICATION and form != "label":
            raise DataError(
                given=f"task {CLASSIFICATION} with rows of form {form!r}",
                found="no field 'label'",
                instead="rows of text/label, or --map text=COLUMN --map label=COLUMN",
            )
        if asked == SEQ2SEQ and form == "text":
            raise _no_source(config)
        _class_for(config, asked)
        return asked
    if form == "label":
        if kind == "Seq2SeqLM":
            raise DataError(
                given=f"rows of text/label and an encoder-decoder ({config.model_type})",
                found="two tasks fit: the label as the text to write, or a classifier on the model",
                instead=f"--task {SEQ2SEQ} (in a study task: {SEQ2SEQ}), or --task {CLASSIFICATION}",
            )
        _class_for(config, CLASSIFICATION)
        return CLASSIFICATION
    if kind == "Seq2SeqLM":
        if form == "text":
            raise _no_source(config)
        return SEQ2SEQ
    if kind in ("MaskedLM", "SequenceClassification"):
        raise DataError(
            given=f"rows of form {form!r} and a base of type {config.model_type!r}",
            found="nothing that an encoder, or a classifier, could be trained to do with them",
            instead="rows of text/label (--map text=COLUMN --map label=COLUMN), or a decoder such as gpt2 or llama",
        )
    return CAUSAL


def _no_source(config: PretrainedConfig) -> DataError:
    return DataError(
        given=f"raw text and an encoder-decoder ({config.model_type})",
        found="no target to write",
        instead="rows of prompt/completion, or --map prompt=COLUMN --map completion=COLUMN",
    )


def _class_for(config: PretrainedConfig, task: str) -> tuple[Any, PretrainedConfig]:
    heads = classes(config)
    kind = _KINDS[task]
    # An encoder has a class that could go on with a text, if it were trained to.
    if kind not in heads or (task == CAUSAL and class_kind(config) != kind):
        known = [name for name, of in _KINDS.items() if of in heads]
        raise ModelError(
            given=f"task {task} with a model of type {config.model_type!r}",
            found=f"transformers has no class for it that does this (it has: {', '.join(known) or 'none'})",
            instead="another model, or another --task",
        )
    return heads[kind]


def for_task(
    source: str | Path | PretrainedConfig, task: Task, *, pad_id: int | None = None
) -> PretrainedConfig:
    """The config of a model that does a task: anatomy, plan and weights are then read as that class.

    Args:
        source: see `loratlas.models.config.load_config`.
        task: what it is to do.
        pad_id: fills short rows of a classifier whose config names no such token; a decoder reads the last place
            that is none.

    Returns:
        A config of its own, its ``architectures`` naming the class, with the labels of a classifier.

    Raises:
        ModelError: transformers has no class for the task, or a classifier has no token to fill rows with.
    """
    config = load_config(source)
    cls, part = _class_for(config, task.name)
    part = copy.deepcopy(part)
    part.architectures = [cls.__name__]
    if task.name != CLASSIFICATION:
        return part
    part.id2label = dict(enumerate(task.labels))
    part.label2id = {label: index for index, label in enumerate(task.labels)}
    part.problem_type = "single_label_classification"
    known = part.get_text_config().pad_token_id
    if known is None or not 0 <= known < part.get_text_config().vocab_size:
        if pad_id is None:
            raise ModelError(
                given=f"a classifier on a model of type {part.model_type!r}",
                found="neither a pad token nor an end token, in its config or its tokenizer, to fill short rows with",
                instead="a base whose config.json names a pad_token_id",
            )
        part.pad_token_id = part.get_text_config().pad_token_id = pad_id
    return part
