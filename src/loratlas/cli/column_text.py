"""What --map says, as a table."""

from __future__ import annotations

from loratlas.errors import DataError


def columns_of(pairs: list[str] | None) -> dict[str, str]:
    """``["prompt=question"]`` → ``{"prompt": "question"}``.

    Raises:
        DataError: a pair without ``=`` or with an empty side, or a field named twice.

    >>> columns_of(["prompt=question", "completion=answer"])
    {'prompt': 'question', 'completion': 'answer'}
    """
    columns: dict[str, str] = {}
    for pair in pairs or ():
        field, _, column = (part.strip() for part in pair.partition("="))
        if not field or not column:
            raise DataError(
                given=f"--map {pair}",
                found="no FIELD=COLUMN pair",
                instead="for example --map prompt=question --map completion=answer",
            )
        if field in columns:
            raise DataError(
                given=f"--map {pair}",
                found=f"the field {field!r} already comes from the column {columns[field]!r}",
                instead="one --map per field",
            )
        columns[field] = column
    return columns
