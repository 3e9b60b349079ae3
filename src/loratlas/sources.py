"""MODEL and DATA as people write or pass them, understood in this one place.

``demo:…`` names what is embedded, ``real:…`` a base that ``make real-bases`` fetched, ``${NAME}`` an environment
variable; all else is a path or a Hub id. Models, data sets and lists that are already in memory are taken as they are.
Relative paths are looked up in the folder of the file that holds them first, then in the current folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.errors import DataError, ModelError, RequestError, printable
from loratlas.files import read_json
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from loratlas.anatomy.sites import Anatomy
    from loratlas.data.rows import Rows
    from loratlas.models.task import Task

DEMO = "demo:"
REAL = "real:"
_VARIABLE = re.compile(r"\$\{(\w*)\}")
_LONGEST = 4096  # characters of a path


def expand(text: str, *, error: type[RequestError] = DataError) -> str:
    """Put the value of environment variables in place of ``${NAME}``.

    Raises:
        RequestError: a variable is not set (as the class given by ``error``).

    >>> import os
    >>> os.environ["LORATLAS_EXAMPLE"] = "/tmp/rows"
    >>> expand("${LORATLAS_EXAMPLE}/train.jsonl")
    '/tmp/rows/train.jsonl'
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise error(
                given=text,
                found=f"the environment variable {name or '(without a name)'} is not set",
                instead=f"export {name or 'NAME'}=…, or the path written out",
            )
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def locate(text: str, *, folder: Path | None = None) -> str:
    """A path that exists, seen from ``folder`` or the current folder; any other text (a Hub id) as it is.

    Raises:
        RequestError: no file and no model can have this name.

    >>> locate("owner/name")
    'owner/name'
    """
    text = expand(text)
    _refuse_no_name(text)
    if text.startswith("~"):
        text = str(Path(text).expanduser())
    if folder is not None and not Path(text).is_absolute() and (folder / text).exists():
        return str(folder / text)
    return text


def _refuse_no_name(text: str) -> None:
    """Refuse what the operating system would answer with an exception instead of "no such file"."""
    try:
        os.fsencode(text)
        written = "\0" not in text
    except UnicodeEncodeError:  # half a surrogate pair
        written = False
    if not written or len(text) > _LONGEST or any(len(word) > 255 for word in text.split("/")):
        raise RequestError(
            given=printable(text, 100),
            found=f"characters that no name of a file or a model has, or more than 255 in a row or {_LONGEST:,} in all",
            instead="a path or a Hub id",
        )


def model_source(text: str, *, folder: Path | None = None) -> str:
    """What ``load_config``, ``load_model`` and ``load_tokenizer`` take: a path or a Hub id.

    Args:
        text: ``demo:…`` (embedded), ``real:…`` (fetched by ``make real-bases``), a path or a Hub id. The folder of an
            adapter, or of a run, stands for its base.
        folder: where relative paths are looked up first.

    Raises:
        ModelError: no embedded or real base has this name, or it was not fetched; an adapter that names no base.
    """
    if text.startswith(DEMO):
        from loratlas.demo import base_path

        return str(base_path(text))
    if text.startswith(REAL):
        from loratlas.models.real_bases import real_path

        return str(real_path(text))
    found = locate(text, folder=folder)
    inside = _adapter_inside(found)
    return found if inside is None else _base_of(inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedBase:
    """What MODEL stands for.

    Args:
        model: the base: as it was written, or as the adapter names it that was written instead.
        adapter: folder of that adapter; None where a base was named.
        note: what a person should know of it, in a sentence; None where there is nothing to say.
    """

    model: Any
    adapter: Path | None = None
    note: str | None = None


def named_base(model: Any) -> NamedBase:
    """The base that MODEL stands for: the folder of an adapter, or of a run, stands for the base that it names.

    Args:
        model: as written, or a live model or a config, which stand for themselves.

    Raises:
        ModelError: an adapter that names no base; a GGUF file that is broken.

    >>> named_base("demo:llama-mini")
    NamedBase(model='demo:llama-mini', adapter=None, note=None)
    """
    from loratlas.models.gguf_base import gguf_note
    from loratlas.models.quantize import quantised_note

    if not isinstance(model, (str, Path)):
        return NamedBase(model=model)
    text = str(model)
    embedded = text.startswith((DEMO, REAL))
    located = text if embedded else locate(text)
    adapter = None if embedded else _adapter_inside(located)
    if adapter is None:
        return NamedBase(model=model, note=gguf_note(located) or quantised_note(located))
    base = _base_of(adapter)
    notes = (
        f"{text}: an adapter, which stands for its base {base}.",
        gguf_note(base) or quantised_note(base) or "",
    )
    return NamedBase(model=base, adapter=adapter, note=" ".join(filter(None, notes)))


def _adapter_inside(text: str) -> Path | None:
    path = Path(text)
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    return next((f for f in (path, path / "adapter") if (f / "adapter_config.json").is_file()), None)


def _base_of(adapter: Path) -> str:
    """What an adapter's config names as its base, as a path or a Hub id."""
    try:
        fields = read_json(adapter / "adapter_config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            given=str(adapter),
            found="an adapter_config.json that is no JSON",
            instead="the adapter's files as they were written together",
        ) from error
    base = fields.get("base_model_name_or_path") if isinstance(fields, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(
            given=str(adapter),
            found="an adapter that does not name its base",
            instead="the base itself as MODEL",
        )
    # One step only: a base that is an adapter again is refused by whoever reads it.
    return locate(base, folder=adapter)


def read(model: str | Path | PretrainedConfig | PreTrainedModel) -> Anatomy:
    """Map every matrix of a causal language model; no weights are read.

    Args:
        model: a name as the command line takes it (``demo:…``, ``real:…``, a path, a Hub id), a config, or a model,
            also one with an adapter.

    Returns:
        Every parameter of two or more dimensions once: as a site, or as unresolved.

    Raises:
        ModelError: the model cannot be found or built, or a live model is not the one that its config describes.

    >>> anatomy = read("demo:llama-mini")
    >>> anatomy.model, anatomy.model_type
    ('demo:llama-mini', 'llama')
    """
    from loratlas.anatomy.read import read as read_sites

    if isinstance(model, str):
        name = named_base(model).model
        return replace(read_sites(model_source(name)), model=name)
    return read_sites(model)


def open_model(
    model: str | Path | PreTrainedModel, *, folder: Path | None = None, **options: Any
) -> PreTrainedModel:
    """Load a base by its name; a model that is already loaded comes back as it is.

    Args:
        model: a name as `model_source` takes it, or a model.
        folder: where relative paths are looked up first.
        options: those of :func:`loratlas.models.load.load_model`; a loaded model takes none of them.

    Raises:
        ModelError: it cannot be loaded.
    """
    if not isinstance(model, (str, Path)):
        return model
    from loratlas.models.load import load_model

    return load_model(model_source(str(model), folder=folder), **options)


def is_live(model: Any) -> bool:
    """Whether a model is one that is loaded already, and no name."""
    return hasattr(model, "named_parameters")


def model_name(model: Any) -> str:
    """What a model is called in results: the name that was written, or where a live one came from."""
    if is_live(model):
        inner = unwrap(model)
        return str(getattr(inner.config, "name_or_path", "") or type(inner).__name__)
    return (
        getattr(model, "name_or_path", "") or model.model_type if hasattr(model, "model_type") else str(model)
    )


def base_config(model: Any) -> Any:
    """What ``load_config`` takes of a base: the path or Hub id of a name, or a live model's own config."""
    if is_live(model):
        return unwrap(model).config
    return model if hasattr(model, "model_type") else model_source(str(model))


def open_base(model: Any, **options: Any) -> Any:
    """A base with its weights: loaded by its name, or the live one, frozen.

    Args:
        model: a name, or a live model without adapters, which stays in the dtype that it has.
        options: of :func:`loratlas.models.load.load_model`.
    """
    if not is_live(model):
        return open_model(str(model), **options)
    model.config.use_cache = False
    return model.requires_grad_(False).eval()


def data_name(data: Any) -> str:
    """What rows are called in results."""
    return (
        data if isinstance(data, str) else str(data) if isinstance(data, Path) else f"a {type(data).__name__}"
    )


def open_rows(
    data: Any,
    *,
    split: str | None = None,
    mapping: Mapping[str, str] | None = None,
    limit: int | None = None,
    folder: Path | None = None,
) -> Rows:
    """Read rows by the name of their source, or from what is already in memory.

    Args:
        data: an embedded task (``demo:facts-300``, with the splits ``train``, the default, and ``eval``), or whatever
            :func:`loratlas.data.load_rows.load_rows` takes: a path, a Hub id, a `datasets.Dataset`, dicts, rows.
        split, mapping, limit: as of `load_rows`; embedded rows have no columns to map.
        folder: where relative paths are looked up first.

    Raises:
        DataError: a mapping for embedded rows; else see `load_rows`.

    >>> len(open_rows("demo:facts-300", split="eval")), open_rows([{"text": "All of it."}]).form
    (300, 'text')
    """
    if isinstance(data, (str, Path)):
        data = expand(str(data))
        if data.startswith(DEMO):
            from loratlas.demo import generate

            if mapping:
                field, column = next(iter(mapping.items()))
                raise DataError(
                    given=f"--map {field}={column} with {data}",
                    found="embedded rows, whose fields have their names already",
                    instead=f"{data} without --map",
                )
            return generate(data, split=split or "train", rows=limit)
        data = locate(data, folder=folder)
    from loratlas.data.load_rows import load_rows

    return load_rows(data, split=split, mapping=mapping, limit=limit)


def judged_split(data: Any, split: str | None = None) -> str | None:
    """The split to judge on: of an embedded task its ``eval``, unless another is named.

    >>> judged_split("demo:rules"), judged_split("demo:rules", "train"), judged_split("rows.jsonl")
    ('eval', 'train', None)
    """
    return "eval" if split is None and isinstance(data, str) and data.startswith(DEMO) else split


def open_task(
    source: Any, rows: Rows, tokenizer: Any, *, asked: str | None = None, known: Task | None = None
) -> tuple[Task, PretrainedConfig | None]:
    """What a base is trained to do with rows, and the config that it is then read and loaded with.

    Args:
        source: what `base_config` returned.
        rows: their labels are the classes, unless the base is a classifier that knows them all.
        tokenizer: of the base; its pad or end token fills rows of a classifier whose config names none.
        asked: the task, instead of what is recognised.
        known: the task of an adapter that is to be judged or trained further.

    Returns:
        The task, and its config; None for a causal language model, which is read as its directory says.

    Raises:
        DataError, ModelError: see `loratlas.models.task.recognise` and `loratlas.data.task_examples.label_set`.
    """
    from loratlas.data.task_examples import label_set
    from loratlas.models.config import load_config
    from loratlas.models.labels import knows, own_labels
    from loratlas.models.task import CAUSAL, CLASSIFICATION, Task, for_task, recognise

    name = recognise(source, rows.form, asked=asked or (known.name if known else None))
    if known is not None and known.name == name:
        task = known
    elif name == CLASSIFICATION:
        own = own_labels(load_config(source))
        labels = {row.label for row in rows.rows if row.label is not None}
        task = Task(name=name, labels=own if knows(own, labels) else label_set(rows))
    else:
        task = Task(name=name)
    if name == CAUSAL:
        return task, None
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id)
    return task, for_task(source, task, pad_id=next((int(t) for t in tokens if t is not None), None))
