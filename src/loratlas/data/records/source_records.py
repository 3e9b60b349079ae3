"""What a person names, or passes, as DATA becomes records: a file, a folder, a Hub id, a table, a list of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratlas.data.records.data_files import Records, Wanted, file_records, table_records
from loratlas.data.records.folder_configs import declared_splits
from loratlas.data.records.folder_splits import folder_splits, kind_of
from loratlas.data.records.line_files import LineFile
from loratlas.data.records.python_records import python_lines
from loratlas.data.records.split_spec import SplitSpec
from loratlas.errors import DataError, printable

SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder is known that `datasets` has saved to disk."""

BATCH = 1024
"""Rows of a table that are written out together."""


def source_records(source: Any, name: str, spec: SplitSpec, wanted: Wanted, limit: int | None) -> Records:
    """Records of a source.

    Args:
        source: a path or a Hub id; a `datasets.Dataset`, `DatasetDict` or `pyarrow.Table`; dicts.
        name: what errors call it.
        spec: the split, or splits, to read.
        wanted: which declared columns are needed.
        limit: records that are needed; None for all.

    Raises:
        DataError: there is no such source, it has no such split, or it cannot be read.
    """
    if isinstance(source, (str, Path)):
        return _named(str(source), spec, wanted, limit)
    if isinstance(source, Mapping) and source and all(_is_table(table) for table in source.values()):
        splits = spec.choose([str(split) for split in source], name)
        return joined([_table(source[split], name, wanted, limit) for split in splits], splits)
    spec.choose(["train"], name)
    if _is_table(source):
        return _table(source, name, wanted, limit)
    if isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
        return Records(files=(LineFile.written(python_lines(source, name, limit), name),))
    raise DataError(
        given=f"rows of type {type(source).__name__}",
        found="neither a name nor a table nor a list",
        instead="a path, a Hub id, a datasets.Dataset or a list of dicts",
    )


def joined(parts: Sequence[Records], splits: Sequence[str], remarks: Sequence[str] = ()) -> Records:
    """Records of several files or tables, end to end.

    Args:
        parts: the records of each.
        splits: the split of each.
        remarks: about all of them.
    """
    declared = [part.columns for part in parts]
    classes = {part.classes for part in parts}
    return Records(
        files=tuple(file for part in parts for file in part.files),
        splits=tuple(split for part, split in zip(parts, splits, strict=True) for _ in part.files),
        columns=None
        if None in declared
        else tuple(dict.fromkeys(name for columns in declared for name in columns or ())),
        is_text=all(part.is_text for part in parts),
        classes=classes.pop() if len(classes) == 1 else None,
        not_read=tuple(dict.fromkeys(name for part in parts for name in part.not_read)),
        remarks=(*remarks, *(remark for part in parts for remark in part.remarks)),
    )


def _named(source: str, spec: SplitSpec, wanted: Wanted, limit: int | None) -> Records:
    path = Path(source).expanduser()
    if path.is_file():
        spec.choose(["train"], source)
        return file_records(path, source, wanted, limit)
    if source and path.is_dir():
        return _folder(path, source, None, spec, wanted, limit)
    parent, _, config = source.rpartition(":")
    if parent and Path(parent).expanduser().is_dir():
        return _folder(Path(parent).expanduser(), parent, config, spec, wanted, limit)
    if _looks_like_a_path(source):
        raise DataError(
            given=source, found="no such file", instead="the path of a JSON, JSONL, CSV or Parquet file"
        )
    return _table(_from_hub(source, spec), source, wanted, limit)


def _folder(
    path: Path, source: str, config: str | None, spec: SplitSpec, wanted: Wanted, limit: int | None
) -> Records:
    """A folder: what `datasets` saved to disk, files that its README declares, or files by their names."""
    if any((path / name).is_file() for name in SAVED):
        if config is not None:
            raise DataError(
                given=f"{source}:{printable(config)}",
                found="a saved data set, which has none",
                instead=source,
            )
        return source_records(_from_disk(path, source), source, spec, wanted, limit)
    splits, without = declared_splits(path, source, config), ()
    if splits is None:
        folder = folder_splits(path, source)
        splits, without = folder.splits, folder.without
    chosen = spec.choose(list(splits), source)
    files = [(split, file) for split in chosen for file in splits[split]]
    parts = [file_records(file, str(file), wanted, limit) for _, file in files]
    unread = ", ".join(printable(str(file.relative_to(path)), 60) for file in without[:10])
    remarks = [f"files that belong to no split and are not read: {unread}"] if unread else []
    return joined(parts, [split for split, _ in files], remarks)


def _from_disk(path: Path, source: str) -> Any:
    """A data set, or several splits of one, that `datasets` has saved to disk."""
    import datasets

    try:
        with _quiet():
            return datasets.load_from_disk(str(path))
    except Exception as error:  # the libraries below raise dozens of kinds
        raise DataError(
            given=source,
            found=f"a saved data set that cannot be read ({printable(' '.join(str(error).split()), 200)})",
            instead="the folder as save_to_disk wrote it",
        ) from error


def _looks_like_a_path(source: str) -> bool:
    # A Hub id is `name` or `owner/name`, and names no data file.
    return (
        not source
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or bool(kind_of(Path(source)))
    )


def _is_table(source: Any) -> bool:
    kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(source).__mro__}
    return bool(kinds & {"datasets.Dataset", "datasets.IterableDataset", "pyarrow.Table"})


def _table(table: Any, name: str, wanted: Wanted, limit: int | None) -> Records:
    """Records of a table of `pyarrow`, or of `datasets` as it lies in Arrow: no column is decoded or converted."""
    if not hasattr(table, "with_format"):
        return table_records(
            table.schema, lambda columns: table.select(columns).to_batches(BATCH), name, wanted, limit
        )
    if not hasattr(table, "num_rows"):
        return Records(files=(LineFile.written(python_lines(table, name, limit), name),))
    schema = table.features.arrow_schema

    def batches(columns: list[str]) -> Iterator[Any]:
        chosen = table.select_columns(columns) if limit is None else table.select_columns(columns).take(limit)
        return chosen.with_format("arrow").iter(BATCH)

    return table_records(schema, batches, name, wanted, limit)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets`' progress bars off: standard output and the terminal belong to the command."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _from_hub(source: str, spec: SplitSpec) -> Any:
    """A data set of the Hub, sliced as asked."""
    import datasets

    path, _, config = source.partition(":")
    try:
        with _quiet():
            loaded: Any = datasets.load_dataset(path, name=config or None, split=spec.text)
    except Exception as error:  # the libraries below raise dozens of kinds
        raise _explained(error, source, spec.text) from error
    if isinstance(loaded, dict):
        loaded = loaded[spec.choose([str(split) for split in loaded], source)[0]]
    spec.is_sliced = False
    return loaded


def _explained(error: Exception, source: str, split: str | None) -> DataError:
    from datasets.exceptions import DatasetNotFoundError

    words = printable(" ".join(str(error).split()), 300)
    low = words.lower()
    if split and ("split" in low or "instruction" in low) and "config" not in low:
        return DataError(
            given=f"--split {printable(split)}",
            found=words,
            instead="a split that the data set has, as train",
        )
    if isinstance(error, (ConnectionError, DatasetNotFoundError)) or "offline" in low:
        return DataError(
            given=source,
            found=f"no file of that name here, and no data set of that id could be reached ({words})",
            instead="the path of a local file, or a Hub id with a working network",
        )
    cause = error.__cause__ or error
    return DataError(
        given=source,
        found=f"it cannot be read as a table ({printable(' '.join(str(cause).split()), 300)})",
        instead="a data set that datasets.load_dataset reads",
    )
