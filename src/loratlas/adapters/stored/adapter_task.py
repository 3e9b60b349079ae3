"""What an adapter was trained to do: as it says itself, or as its tensors show.

An adapter of loratlas names its task and classes. One of another tool has PEFT's word for it (``task_type``), which
people leave out or get wrong, and its tensors, which are what they are: a classifier's head has a row for each class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.read_adapter import AdapterFolder
from loratlas.errors import ModelError
from loratlas.models.base_tokenizer import base_tokenizer
from loratlas.models.config import load_config
from loratlas.models.heads import head_parameters
from loratlas.models.labels import own_labels
from loratlas.models.meta import class_kind, classes, meta_model
from loratlas.models.task import CAUSAL, CLASSIFICATION, SEQ2SEQ, Task, for_task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WORDS = {CAUSAL: "CAUSAL_LM", SEQ2SEQ: "SEQ_2_SEQ_LM", CLASSIFICATION: "SEQ_CLS"}
"""PEFT's word for each task."""

_ELSEWHERE = {
    "TOKEN_CLS": "a classifier of tokens",
    "QUESTION_ANS": "answers found as spans of a text",
    "FEATURE_EXTRACTION": "features of a bare encoder",
}

_UNLIKELY = 1013
"""A number of classes that is no other dimension of a model: where it stands, classes stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTask:
    """The task of an adapter.

    Args:
        task: what it does.
        remark: what its ``task_type`` says instead, in a sentence; None where it is right or left out.
        pad_id: fills short rows of its classifier, where it says so.
    """

    task: Task
    remark: str | None = None
    pad_id: int | None = None


def task_of(contents: AdapterFolder, config: PretrainedConfig) -> AdapterTask:
    """Recognise the task of an adapter.

    Args:
        contents: of its folder.
        config: of its base.

    Returns:
        The task. The classes of a classifier from another tool have the base's own names where the base is a
        classifier of as many named classes; otherwise their numbers.

    Raises:
        ModelError: an adapter for something that is not trained here, or a classifier's without a head.
    """
    extra = contents.notes.get("extra") or {}
    if extra.get("task"):
        return AdapterTask(task=Task.from_json(extra["task"]), pad_id=extra.get("pad_id"))
    word = contents.config.get("task_type")
    if word in _ELSEWHERE:
        raise _refused(contents, f"an adapter for {_ELSEWHERE[word]} (task_type {word})")
    head = _classes(contents, config)
    if head is not None:
        task = Task(name=CLASSIFICATION, labels=_labels(head, config))
    elif word == WORDS[CLASSIFICATION]:
        raise _refused(
            contents,
            f"task_type {word}, and no head of a classifier among its tensors",
            "the adapter saved with its head (modules_to_save), or the task_type that it was trained with",
        )
    else:
        kind = class_kind(config)
        if kind not in ("CausalLM", "Seq2SeqLM"):
            raise _refused(
                contents, f"an adapter without a classifier's head for a base of type {config.model_type}"
            )
        task = Task(name=SEQ2SEQ if kind == "Seq2SeqLM" else CAUSAL)
    right = WORDS[task.name]
    remark = (
        None
        if word in (None, right)
        else f"{contents.folder}: its config says task_type {str(word)[:40]!r}; "
        f"by its tensors and its base it is {right}."
    )
    return AdapterTask(task=task, remark=remark)


def _classes(contents: AdapterFolder, config: PretrainedConfig) -> int | None:
    """How many classes the head among an adapter's tensors has; None without one.

    Raises:
        ModelError: a head with one output, which is a regression.
    """
    whole = contents.whole_tensors
    if not whole or "SequenceClassification" not in classes(config):
        return None
    many = Task(name=CLASSIFICATION, labels=tuple(map(str, range(_UNLIKELY))))
    twin = meta_model(for_task(config, many, pad_id=0))
    outputs = [name for name, p in head_parameters(twin).items() if p.ndim == 2 and len(p) == _UNLIKELY]
    rows = {whole[name].shape[0] for name in outputs if name in whole}
    if not rows:
        return None
    if rows == {1}:
        raise _refused(contents, "a head with one output: a regression")
    return rows.pop()


def _labels(count: int, config: PretrainedConfig) -> tuple[str, ...]:
    own = own_labels(config)
    return own if len(own) == count else tuple(map(str, range(count)))


def _refused(contents: AdapterFolder, found: str, instead: str | None = None) -> ModelError:
    return ModelError(
        given=str(contents.folder),
        found=found,
        instead=instead
        or "an adapter of a causal or sequence-to-sequence language model, or of a sequence classifier",
    )


def open_base_config(contents: AdapterFolder, source: Any) -> tuple[AdapterTask, PretrainedConfig | None]:
    """The task of an adapter, and the config that its base is loaded with.

    Args:
        contents: of the adapter's folder.
        source: its base.

    Returns:
        The task, and a config; None for a causal language model, which is read as its directory says.
    """
    config = load_config(source)
    task = task_of(contents, config)
    if task.task.name == CAUSAL:
        return task, None
    return task, for_task(config, task.task, pad_id=_pad_id(task, source, config))


def _pad_id(task: AdapterTask, source: Any, config: PretrainedConfig) -> int | None:
    """A token to fill rows of a classifier with, where neither adapter nor base names one: the tokenizer's."""
    named = config.get_text_config().pad_token_id is not None
    if named or task.pad_id is not None or task.task.name != CLASSIFICATION:
        return task.pad_id
    tokenizer = base_tokenizer(source)
    if tokenizer is None:
        return None
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id)
    return next((int(token) for token in tokens if token is not None), None)
