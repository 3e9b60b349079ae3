"""What is checked before a model is trained or evaluated, and what an adapter says of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.folders import adapter_folder
from loratlas.api.listener import Listener
from loratlas.errors import ModelError, SettingsError
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from loratlas.data.rows import Rows
    from loratlas.models.task import Task
    from loratlas.sources import NamedBase


def announced_base(model: Any, listener: Listener) -> NamedBase:
    """The base that MODEL stands for; where that is not what was written, the listener hears it.

    Args:
        model: as written, or a live model. listener: hears how it is read.

    Raises:
        ModelError: see :func:`loratlas.sources.named_base`.
    """
    from loratlas.sources import named_base

    named = named_base(model)
    if named.note:
        listener.note(named.note)
    return named


def adapter_task(adapter: Path | None, source: Any, listener: Listener) -> Task | None:
    """What an adapter was trained for, as it says itself or as its tensors show; None without one.

    A wrong word for it in the adapter's config is remarked.

    Args:
        adapter: its folder, or that of its run.
        source: its base.
        listener: hears the remark.
    """
    if adapter is None:
        return None
    from loratlas.adapters.stored.adapter_task import task_of
    from loratlas.adapters.stored.read_adapter import read_adapter
    from loratlas.models.config import load_config

    recognised = task_of(read_adapter(adapter_folder(adapter)), load_config(source))
    if recognised.remark:
        listener.note(recognised.remark)
    return recognised.task


def check_samples(task: Task, *, samples: int, rouge: bool) -> None:
    """Refuse answers that could not be had or scored, before anything is loaded.

    Raises:
        SettingsError: of a classifier, ROUGE-L of no answers, or without its package.
    """
    if samples and task.labels:
        raise SettingsError(
            given="--samples in a classification",
            found="a classifier writes no answers",
            instead="no --samples; accuracy and macro F1 are printed without it",
        )
    if rouge and not samples:
        raise SettingsError(
            given="--rouge without --samples", found="no answers to score", instead="--samples 50"
        )
    if rouge:
        from loratlas.evaluation.rouge import rouge_l

        rouge_l()


def check_head(model: Any, adapter: Path | None) -> Any:
    """A classifier whose head was trained: by the adapter, or with the base.

    Returns:
        The model.

    Raises:
        ModelError: its head is what was drawn when it was loaded.
    """
    from loratlas.adapters.trained_heads import refuse_untrained, trained_whole, untrained

    names = untrained(model)
    if not names or (adapter is not None and trained_whole(model)):
        return model if adapter is None else refuse_untrained(model, adapter)
    raise ModelError(
        given="a classification with " + ("a base alone" if adapter is None else f"the adapter {adapter}"),
        found=f"no trained head for these labels ({', '.join(names)} would be random)",
        instead="--adapter DIR, of a classifier that was trained on these labels"
        if adapter is None
        else "an adapter that was trained as a classifier, or --task causal",
    )


def trained_dtype(adapter: Path | None) -> str | None:
    """The dtype that an adapter was trained in, as ``loratlas.json`` says; None where nothing says so."""
    from loratlas.adapters.stored.read_adapter import read_adapter

    return None if adapter is None else read_adapter(adapter_folder(adapter)).dtype


def choose_dtype(asked: str | None, trained: str | None) -> tuple[str, str]:
    """What an evaluation computes in, and a sentence about it.

    Args:
        asked: what was asked for; None takes that of the training, or what this machine multiplies fastest.
        trained: of the adapter's training; None: unknown, or no adapter.

    >>> choose_dtype(None, "float32")
    ('float32', 'computed in float32, as the adapter was trained')
    >>> choose_dtype("bfloat16", "float32")
    ('bfloat16', 'computed in bfloat16; the adapter was trained in float32, so its losses there differ by rounding')
    """
    from loratlas.models.load import native_dtype

    if trained is None:
        chosen = asked or native_dtype()
        return chosen, f"computed in {chosen}"
    if asked in (None, trained):
        return trained, f"computed in {trained}, as the adapter was trained"
    return asked, (
        f"computed in {asked}; the adapter was trained in {trained}, so its losses there differ by rounding"
    )


def rows_to_judge(data: Any, *, split: str | None, columns: Mapping[str, str], limit: int | None) -> Rows:
    """Rows to measure a loss on: of an embedded task those for evaluation, unless a split is named."""
    from loratlas.sources import judged_split, open_rows

    return open_rows(data, split=judged_split(data, split), mapping=columns, limit=limit)


def to_device(model: Any) -> Any:
    """Move a model to the GPU, if there is one; a quantised base is there already."""
    import torch

    if torch.cuda.is_available() and not getattr(unwrap(model), "is_quantized", False):
        return model.to("cuda")
    return model


def tokenizer_source(model: Any) -> str:
    """Where a base's tokenizer lies.

    Raises:
        SettingsError: a live model that does not name the folder or the Hub id that it came from.
    """
    from loratlas.sources import is_live, model_source

    if not is_live(model):
        return model_source(str(model))
    source = getattr(unwrap(model).config, "name_or_path", "")
    if not source:
        raise SettingsError(
            given=f"a live {type(unwrap(model)).__name__} without a tokenizer",
            found="a config that does not name where it came from",
            instead="tokenizer=AutoTokenizer.from_pretrained(…)",
        )
    return str(source)
