"""The header of a GGUF file, read with every count checked against the file before it is believed.

What comes after reads the file with libraries that trust it. A header is a stranger's text: a count of 2⁶⁰ entries, or
a tensor that lies beyond the end of the file, is found here, within the time that the honest part of the file takes.

Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError, printable
from loratlas.models.limits import MOST_PARAMETERS

SUFFIX = ".gguf"

_MAGIC = b"GGUF"
_MOST_FIELDS = 2**16
_MOST_ENTRIES = 2**22
_LONGEST_NAME = 2**16
_MOST_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Args:
        architecture: llama.cpp's word for it.
        fields: the metadata; of an array its length stands here.
        types: of the tensors, by ggml's number, with how many tensors have it.
        tensors: how many there are.
    """

    architecture: str
    fields: dict[str, Any]
    types: dict[int, int]
    tensors: int

    @property
    def quantised(self) -> bool:
        """Whether some tensor is stored in blocks and not as plain numbers.

        >>> GgufHeader(architecture="llama", fields={}, types={0: 3, 2: 1}, tensors=4).quantised
        True
        """
        return not self.types.keys() <= {0, 1, 28, 30}

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file holds a vocabulary."""
        return "tokenizer.ggml.tokens" in self.fields


def is_gguf(source: Any) -> bool:
    """Whether MODEL is a GGUF file, by its name.

    >>> is_gguf("models/a.Q4_K_M.gguf"), is_gguf("owner/name")
    (True, False)
    """
    return isinstance(source, (str, Path)) and str(source).lower().endswith(SUFFIX)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a model in a GGUF file.

    Args:
        path: of the file.

    Raises:
        ModelError: no such file, no GGUF, a file that ends too early, counts that it cannot hold, one of several
            pieces, or an adapter.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise _broken(path, f"a file of {path.stat().st_size} bytes, too short for a header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _Reader(content, path).header()
    except OSError as error:
        raise ModelError(
            given=str(path),
            found=f"no file that can be read ({error.strerror or error})",
            instead="the path of a .gguf file",
        ) from error
    kind = header.fields.get("general.type", "model")
    if kind != "model":
        raise ModelError(
            given=str(path),
            found=f"a GGUF file of type {printable(str(kind), 40)!r}, which is no whole model",
            instead="the GGUF file of the base",
        )
    if header.fields.get("split.count", 0) not in (0, 1):
        raise ModelError(
            given=str(path),
            found=f"one of {header.fields['split.count']} pieces of a model",
            instead="one file, as llama.cpp's `llama-gguf-split --merge` makes it of the pieces",
        )
    return header


class _Reader:
    """Reads forward, and never past the end."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self.content, self.path, self.at, self.size = content, path, 0, len(content)

    def header(self) -> GgufHeader:
        if self.take(4) != _MAGIC:
            raise _broken(self.path, "a file that does not begin with GGUF")
        version, tensors, fields = self.numbers("IQQ")
        if version not in (2, 3):
            raise _broken(self.path, f"version {version} of the format; versions 2 and 3 are read")
        if fields > _MOST_FIELDS or tensors > MOST_PARAMETERS:
            raise _broken(self.path, f"a header that names {fields:,} fields and {tensors:,} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            name = self.name()
            metadata[name] = self.value(self.numbers("I")[0], name)
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise _broken(self.path, "a header without general.architecture")
        types: dict[int, int] = {}
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise _broken(self.path, "an alignment that is no size")
        ends = [self.tensor(types) for _ in range(tensors)]
        start = -(-self.at // alignment) * alignment
        if ends and start + max(ends) > self.size:
            raise _broken(
                self.path,
                f"a file of {self.size:,} bytes whose tensors end at {start + max(ends):,}: it was cut off",
            )
        return GgufHeader(architecture=architecture, fields=metadata, types=types, tensors=tensors)

    def take(self, length: int) -> bytes:
        if length > self.size - self.at:
            raise _broken(self.path, "a header that goes on beyond the end of the file")
        self.at += length
        return self.content[self.at - length : self.at]

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def name(self) -> str:
        (length,) = self.numbers("Q")
        if length > _LONGEST_NAME:
            raise _broken(self.path, f"a name of {length:,} bytes")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, name: str) -> Any:
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind])[0]
        if kind == _STRING:
            (length,) = self.numbers("Q")
            return self.take(length).decode("utf-8", "replace")
        if kind != _ARRAY:
            raise _broken(self.path, f"{printable(name, 60)} of an unknown type ({kind})")
        inner, count = self.numbers("IQ")
        width = struct.calcsize(f"<{_NUMBERS[inner]}") if inner in _NUMBERS else 8
        if inner not in _NUMBERS and inner != _STRING:
            raise _broken(self.path, f"{printable(name, 60)}, an array of an unknown type ({inner})")
        if count > _MOST_ENTRIES or count * width > self.size - self.at:
            raise _broken(self.path, f"{printable(name, 60)} with {count:,} entries")
        if inner in _NUMBERS:
            self.at += count * width
        else:
            for _ in range(count):
                self.take(self.numbers("Q")[0])
        return count

    def tensor(self, types: dict[int, int]) -> int:
        """Read one entry of the table; where its numbers end, from the beginning of the data."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.name()
        (dimensions,) = self.numbers("I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise _broken(self.path, f"{printable(name, 60)} of {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")
        kind, offset = self.numbers("IQ")
        try:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _broken(
                self.path, f"{printable(name, 60)} of type {kind}, which ggml does not have"
            ) from None
        if 0 in shape or shape[0] % block:
            raise _broken(self.path, f"{printable(name, 60)} of shape {shape}, which its type cannot have")
        types[kind] = types.get(kind, 0) + 1
        return offset + prod(shape) // block * width


def _broken(path: Path, found: str) -> ModelError:
    return ModelError(
        given=str(path), found=found, instead="a whole GGUF file of a model, as llama.cpp reads it"
    )
