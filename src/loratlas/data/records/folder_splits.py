"""Which files of a folder are data, and which split each belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loratlas.errors import DataError

KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix (before .gz) → what a file holds."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → words of a file's name, or of a folder's, that mean it: the rule of `datasets`."""


def kind_of(path: Path) -> str | None:
    """What a file holds, by its name; None for an unknown kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes = suffixes[:-1]
    return KINDS.get(suffixes[-1]) if suffixes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The data files of a folder.

    Args:
        splits: split → its files in the order of their names.
        without: files that belong to no split, though others do.
    """

    splits: Mapping[str, tuple[Path, ...]]
    without: tuple[Path, ...] = ()


def folder_splits(path: Path, source: str) -> Folder:
    """Which files of a folder belong to which split, by the words in their names.

    Raises:
        DataError: no data file.
    """
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and kind_of(file)
        and not any(p.startswith((".", "_")) for p in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(
            given=source,
            found="a folder without data files",
            instead=f"a folder with files named {', '.join(KINDS)} (also .gz)",
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(path)), []).append(file)
    without = splits.pop("", [])
    if not splits:
        return Folder(splits={"train": tuple(without)})
    order = sorted(splits, key=lambda name: (list(SPLITS).index(name) if name in SPLITS else 9, name))
    return Folder(splits={name: tuple(splits[name]) for name in order}, without=tuple(without))


def _split_of(path: Path) -> str:
    """The split that a path names; empty where none.

    >>> [_split_of(Path(name)) for name in ("data/train-00000-of-00002.parquet", "dev.jsonl", "rows.csv")]
    ['train', 'validation', '']
    """
    named = re.fullmatch(r"(\w+(?:[.-]\w+)*)-\d{5}-of-\d{5}", path.name.split(".")[0])
    words = re.split(r"[._\- 0-9]+", path.name.lower())
    for candidates in (
        words,
        *(re.split(r"[._\- 0-9]+", part.lower()) for part in reversed(path.parts[:-1])),
    ):
        for split, keys in SPLITS.items():
            if any(word in keys for word in candidates):
                return split
    return named[1] if named else ""
