"""Records that are already in memory: dicts of Python values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loratlas.data.records.arrow_columns import nested
from loratlas.errors import DataError, printable


def python_lines(records: Iterable[Any], source: str, limit: int | None = None) -> Iterator[bytes]:
    """Dicts as JSON lines: numbers by their shortest digits, dates as ISO 8601, bytes as the UTF-8 text they are.

    Args:
        records: mappings from column to value.
        source: for errors.
        limit: records that are read; None for all.

    Raises:
        DataError: something that is no mapping, or a value that has no text, with its row.

    >>> list(python_lines([{"text": "größe", "label": 1}], "a list"))
    [b'{"text": "gr\\\\u00f6\\\\u00dfe", "label": 1}\\n']
    """
    for number, record in enumerate(records, start=1):
        if limit is not None and number > limit:
            return
        if not isinstance(record, Mapping):
            raise DataError(
                given=source,
                found=f"row {number} is a {type(record).__name__}, not an object",
                instead='dicts, as {"instruction": …, "output": …}',
            )
        try:
            # In ASCII, so that half a character reaches the check of rows instead of failing here.
            text = json.dumps(dict(record), default=nested)
        except (TypeError, ValueError, RecursionError, UnicodeDecodeError) as error:
            raise DataError(
                given=source,
                found=f"a value that has no text on row {number} ({printable(str(error))})",
                instead="texts, numbers, truth values, dates, lists and dicts",
            ) from error
        yield text.encode("ascii") + b"\n"
