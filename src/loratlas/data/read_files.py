"""From a file or a Hub id to plain records, through `datasets`.

`datasets` reads the rows; what it cannot say is *where* a JSON file is broken, so that JSON is looked over
first. Its Arrow copy of a local file goes to a temporary folder, for the file is read once and the user's
disk is not ours.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from loratlas.errors import DataError

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix (before .gz) → the reader of `datasets`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns in order, records as dicts, and how many classes the source declares for ``label``."""

    columns: tuple[str, ...]
    records: list[dict[str, Any]]
    classes: int | None = None


def read_table(source: str, *, split: str | None = None) -> Table:
    """Read all records of a file, a folder or a Hub id.

    Raises:
        DataError: what is missing or broken, with its line where there is one.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, source, split)
    if source and path.is_dir():
        with tempfile.TemporaryDirectory(prefix="loratlas-") as scratch:
            return _load(source, str(path), split, cache_dir=scratch)
    if _looks_like_a_path(source):
        raise DataError(
            given=source, found="no such file", instead="the path of a JSON, JSONL, CSV or Parquet file"
        )
    name, _, config = source.partition(":")
    return _load(source, name, split, name=config or None)


def _looks_like_a_path(source: str) -> bool:
    # A Hub id is `name` or `owner/name`, and names no data file.
    return (
        not source
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or bool(_reader(Path(source)))
    )


def _reader(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes = suffixes[:-1]
    return READERS.get(suffixes[-1]) if suffixes else None


def _read_file(path: Path, source: str, split: str | None) -> Table:
    reader = _reader(path)
    if reader is None:
        known = ", ".join(READERS)
        raise DataError(
            given=source, found="a file of unknown kind", instead=f"a file named {known} (also .gz)"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(given=source, found="an empty file", instead="a file with at least one row")
        if reader == "json":
            check_json(path, source)
        elif reader == "csv":
            _check_csv(path, source)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            given=source, found=f"it cannot be read ({error})", instead="a readable file"
        ) from error
    from datasets.exceptions import DatasetGenerationError

    with tempfile.TemporaryDirectory(prefix="loratlas-") as scratch:
        try:
            return _load(source, reader, split, data_files=str(path), cache_dir=scratch)
        except DataError as error:
            if reader == "json" and isinstance(error.__cause__, DatasetGenerationError):
                return _uneven_json(path, split)
            raise


def _open_text(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open("r", encoding="utf-8-sig")


def check_json(path: Path, source: str) -> None:
    """Look a JSON or JSONL file over: every line an object, or the whole file one list of objects.

    Raises:
        DataError: the first broken line, by its number from 1.
    """
    number, seen = 0, False
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    if (
                        not seen
                        and line.lstrip()[0] in "[{"
                        and _is_whole_json(path, source, is_line_based=False)
                    ):
                        return
                    raise DataError(
                        given=source,
                        found=f"broken JSON on line {number} ({error.msg} at character {error.pos + 1})",
                        instead='one object per line, as {"instruction": …, "output": …}',
                    ) from error
                if not seen and isinstance(value, list) and _is_whole_json(path, source, is_line_based=True):
                    return
                if not isinstance(value, dict):
                    raise DataError(
                        given=source,
                        found=f"line {number} holds a {type(value).__name__}, not an object",
                        instead='one object per line, as {"instruction": …, "output": …}',
                    )
                seen = True
    except UnicodeDecodeError as error:
        raise DataError(
            given=source, found=f"bytes that are no UTF-8 after line {number}", instead="a UTF-8 file"
        ) from error
    if not seen:
        raise DataError(given=source, found="an empty file", instead="a file with at least one row")


def _is_whole_json(path: Path, source: str, *, is_line_based: bool) -> bool:
    """Whether the file is one list of objects (spread over lines or not); an empty list is an empty file."""
    with _open_text(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # A file that opens with a bracket is meant as one list: say where that list breaks.
        if text.lstrip().startswith("[") and not is_line_based:
            raise DataError(
                given=source,
                found=f"broken JSON on line {error.lineno} ({error.msg})",
                instead="one list of objects",
            ) from error
        return False
    if isinstance(value, dict):
        return True
    if not isinstance(value, list):
        return False
    if not value:
        raise DataError(given=source, found="an empty list", instead="a file with at least one row")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise DataError(
                given=source,
                found=f"row {index + 1} is a {type(item).__name__}, not an object",
                instead="a list of objects",
            )
    return True


def _uneven_json(path: Path, split: str | None) -> Table:
    """Records of sound JSON whose rows differ in fields or types, which `datasets` takes for another table.

    It fixes the columns by the first ten megabytes; a note that only later rows carry would cost all of them.
    """
    import datasets

    with _open_text(path) as file:
        text = file.read()
    try:
        records = [json.loads(line) for line in text.split("\n") if line.strip()]
        if len(records) == 1 and isinstance(records[0], list):
            records = records[0]
    except json.JSONDecodeError:
        whole = json.loads(text)
        records = whole if isinstance(whole, list) else [whole]
    if split:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(records)})
        records = [record for part in parts for record in records[part.from_ : part.to]]
    columns = dict.fromkeys(column for record in records for column in record)
    return Table(columns=tuple(columns), records=records)


def _check_csv(path: Path, source: str) -> None:
    try:
        with _open_text(path) as file:
            reader = csv.reader(file)
            header = next(reader, None)
            first = next((row for row in reader if row), None)
    except UnicodeDecodeError as error:
        raise DataError(given=source, found="bytes that are no UTF-8", instead="a UTF-8 file") from error
    except csv.Error as error:
        raise DataError(
            given=source, found=f"broken CSV ({error})", instead="a CSV file with a header"
        ) from error
    if header is None or first is None:
        raise DataError(given=source, found="an empty file", instead="a header line and at least one row")


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


def _load(source: str, path: str, split: str | None, **options: Any) -> Table:
    import datasets

    try:
        with _quiet():
            loaded: Any = datasets.load_dataset(path, split=split, **options)
            if isinstance(loaded, dict):
                if "train" not in loaded and len(loaded) > 1:
                    raise DataError(
                        given=source,
                        found=f"the splits {', '.join(map(str, loaded))}, and no train among them",
                        instead=f"--split {next(iter(loaded))}",
                    )
                loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
            features = loaded.features or {}
            label = features.get("label")
            classes = getattr(label, "num_classes", None)  # a ClassLabel names its classes
            return Table(columns=tuple(loaded.column_names or ()), records=loaded.to_list(), classes=classes)
    except DataError:
        raise
    except Exception as error:  # the libraries below raise dozens of kinds
        raise _explained(error, source, path, split) from error


def _explained(error: Exception, source: str, path: str, split: str | None) -> DataError:
    from datasets.exceptions import DatasetNotFoundError

    words = " ".join(str(error).split())
    if len(words) > 300:
        words = words[:300] + " …"
    if (
        split
        and ("split" in words.lower() or "instruction" in words.lower())
        and "config" not in words.lower()
    ):
        return DataError(
            given=f"--split {split}", found=words, instead="a split that the data set has, as train"
        )
    local = path in READERS.values()
    network = isinstance(error, (ConnectionError, DatasetNotFoundError)) or "offline" in words.lower()
    if network and not local:
        return DataError(
            given=source,
            found=f"no file of that name here, and no data set of that id could be reached ({words})",
            instead="the path of a local file, or a Hub id with a working network",
        )
    cause = error.__cause__ or error
    detail = " ".join(str(cause).split())[:300]
    return DataError(
        given=source,
        found=f"it cannot be read as a table ({detail})",
        instead="rows that all have the same fields with the same kind of value",
    )
