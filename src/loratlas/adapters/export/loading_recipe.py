"""Lines of Python that load what was written with PEFT and transformers alone, as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loratlas.models.gguf_header import is_gguf
from loratlas.models.task import CLASSIFICATION, SEQ2SEQ, Task

_CLASSES = {SEQ2SEQ: "AutoModelForSeq2SeqLM", CLASSIFICATION: "AutoModelForSequenceClassification"}


def class_name(task: Task) -> str:
    """transformers' class for a task.

    >>> class_name(Task(name="seq2seq"))
    'AutoModelForSeq2SeqLM'
    """
    return _CLASSES.get(task.name, "AutoModelForCausalLM")


def base_options(task: Task, pad_id: int | None, *, new_head: bool = False) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that make of a base what the adapter was trained on; none of a language model.

    Args:
        task: of the adapter.
        pad_id: fills short rows, where the base does not say what does.
        new_head: whether the base is a classifier of other classes, whose head is left behind.
    """
    if task.name != CLASSIFICATION:
        return {}
    options: dict[str, Any] = {
        "id2label": dict(enumerate(task.labels)),
        "label2id": {label: index for index, label in enumerate(task.labels)},
    }
    if pad_id is not None:
        options["pad_token_id"] = pad_id
    if new_head:
        options["ignore_mismatched_sizes"] = True
    return options


def base_arguments(base: str) -> str:
    """What ``from_pretrained`` is called with for a base: of a GGUF file its folder and its name.

    >>> print(base_arguments("gpt2"), base_arguments("models/a.gguf"))
    'gpt2' 'models', gguf_file='a.gguf'
    """
    if not is_gguf(base):
        return repr(base)
    return f"{str(Path(base).parent)!r}, gguf_file={Path(base).name!r}"


def adapter_recipe(base: str, path: str, *, task: Task, dtype: str, options: dict[str, Any]) -> str:
    """How to put an adapter on its base.

    Args:
        base: its name. path: folder of the adapter. task: of the adapter.
        dtype: numbers of the base, such as ``"bfloat16"``.
        options: of :func:`base_options`.

    >>> print(adapter_recipe("gpt2", "out", task=Task(), dtype="float32", options={}))
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    <BLANKLINE>
    base = AutoModelForCausalLM.from_pretrained('gpt2', dtype=torch.float32)
    model = PeftModel.from_pretrained(base, 'out').eval()
    """
    name = class_name(task)
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    return "\n".join(
        (
            "import torch",
            "from peft import PeftModel",
            f"from transformers import {name}",
            "",
            f"base = {name}.from_pretrained({base_arguments(base)}, dtype=torch.{dtype}{more})",
            f"model = PeftModel.from_pretrained(base, {path!r}).eval()",
        )
    )


def model_recipe(path: str, *, task: Task, dtype: str) -> str:
    """How to load a merged model.

    >>> print(model_recipe("out", task=Task(name="seq2seq"), dtype="float32"))
    import torch
    from transformers import AutoModelForSeq2SeqLM
    <BLANKLINE>
    model = AutoModelForSeq2SeqLM.from_pretrained('out', dtype=torch.float32).eval()
    """
    name = class_name(task)
    return "\n".join(
        (
            "import torch",
            f"from transformers import {name}",
            "",
            f"model = {name}.from_pretrained({path!r}, dtype=torch.{dtype}).eval()",
        )
    )
