"""What ``--split`` asks for: ``train``, ``train[:1000]``, ``train[10%:20%]+test``, as `datasets` writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loratlas.errors import DataError, printable


class SplitSpec:
    """A text of ``--split``, understood.

    Args:
        text: what the user wrote; None takes ``train``, or the only split.

    Raises:
        DataError: it cannot be understood.

    Attributes:
        is_sliced: whether it asks for less than whole splits.

    >>> spec = SplitSpec("train[-2:]+test")
    >>> spec.choose(["train", "test", "validation"], "rows")
    ('train', 'test')
    >>> spec.spans({"train": 10, "test": 3})
    [range(8, 10), range(10, 13)]
    """

    def __init__(self, text: str | None) -> None:
        self.text = text
        self._instruction: Any = None
        self._names = [text] if text else []
        if text and not re.fullmatch(r"\w+([.-]\w+)*", text):
            self._parse(text)
        self.is_sliced = self._instruction is not None

    def _parse(self, text: str) -> None:
        # Only here, for the import takes a second.
        import datasets

        try:
            self._instruction = datasets.ReadInstruction.from_spec(text)
        except (ValueError, AssertionError) as error:
            raise DataError(
                given=f"--split {printable(text)}",
                found=printable(" ".join(str(error).split())),
                instead="a split as train, train[:1000] or train[10%:20%]+test",
            ) from error
        self._names = list(dict.fromkeys(re.findall(r"(?:^|\+)\s*([\w.-]+)", text)))

    def choose(self, splits: Sequence[str], source: str) -> tuple[str, ...]:
        """The splits to read, of those that there are.

        Raises:
            DataError: one is not there, or none was named where there are several and no ``train``.
        """
        if not self._names:
            if "train" in splits or len(splits) == 1:
                return ("train",) if "train" in splits else tuple(splits)
            raise DataError(
                given=source,
                found=f"the splits {', '.join(map(printable, splits))}, and no train among them",
                instead=f"--split {printable(splits[0])}",
            )
        for name in self._names:
            if name not in splits:
                raise DataError(
                    given=f"--split {printable(self.text or '')}",
                    found=f"{source} has the splits {', '.join(map(printable, splits))}",
                    instead=f"--split {printable(splits[0])}",
                )
        return tuple(self._names)

    def spans(self, sizes: Mapping[str, int]) -> list[range]:
        """Which rows are asked for, of chosen splits that lie end to end.

        Args:
            sizes: split → its rows, in the order in which they lie.

        Raises:
            DataError: the slice reaches out of a split.
        """
        if not self.is_sliced:
            return [range(sum(sizes.values()))]
        starts, end = {}, 0
        for name, size in sizes.items():
            starts[name], end = end, end + size
        try:
            stretches = self._instruction.to_absolute(dict(sizes))
        except (ValueError, AssertionError) as error:
            raise DataError(
                given=f"--split {printable(self.text or '')}",
                found=printable(" ".join(str(error).split())),
                instead=f"a slice of {', '.join(f'{name} ({size:,} rows)' for name, size in sizes.items())}",
            ) from error
        return [
            range(starts[part.splitname] + part.from_, starts[part.splitname] + part.to) for part in stretches
        ]
