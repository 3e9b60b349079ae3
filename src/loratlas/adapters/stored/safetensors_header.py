"""What a safetensors file holds, read from its header alone: names, types and shapes, before anything is allocated.

A file begins with the length of its header (8 bytes, little end first), the header as JSON, and then the numbers of
all tensors, one behind the other without a gap. Whatever contradicts this is refused with a sentence.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError

LONGEST = 100_000_000
"""Bytes of the longest header that the format allows."""

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of one number, by the format's name of its type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a file.

    Args:
        dtype: the format's name of the type, such as ``F32``.
        shape: its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Names, types and shapes of a file's tensors; no number is read.

    Args:
        path: a safetensors file.

    Returns:
        The tensors by name, in the order of the header.

    Raises:
        ModelError: the file is cut off, holds something else, or contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if first.startswith(b"version "):
                raise _broken(
                    path, "a pointer of Git LFS in its place: the weights themselves were not fetched"
                )
            if len(first) < 8 or length > size - 8:
                raise _broken(path, f"a file of {size:,} bytes, too short for the header that it announces")
            if length > LONGEST:
                raise _broken(path, f"a header of {length:,} bytes, longer than the format allows")
            text = file.read(length)
    except OSError as error:
        raise _broken(path, f"not readable: {error.strerror or error}") from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"a header that is no JSON ({str(error)[:100]})") from error
    if not isinstance(header, dict):
        raise _broken(path, "a header that is no table of tensors")
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end:
            raise _broken(path, f"numbers of {name[:100]!r} that do not begin where those before them end")
        end = stop
    if end != size - 8 - length:
        raise _broken(path, f"{size - 8 - length:,} bytes of numbers where its header announces {end:,}")
    return {
        name: TensorEntry(dtype=entry["dtype"], shape=tuple(entry["shape"])) for name, entry in header.items()
    }


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """First byte of a tensor's numbers, and the byte behind its last one."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"an entry {name[:100]!r} without type, shape or place of its numbers") from error
    if not whole or dtype not in BYTES:
        raise _broken(path, f"an entry {name[:100]!r} of type {str(dtype)[:40]!r}, shape {str(shape)[:80]}")
    if stop - start != math.prod(shape) * BYTES[dtype]:
        raise _broken(
            path, f"{stop - start:,} bytes for {name[:100]!r}, whose shape {shape} takes another number"
        )
    return start, stop


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(
        given=str(path), found=found, instead="the file as it was written; copy or download it again"
    )
