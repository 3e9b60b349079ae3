"""One study in several sizes, and on other files: what a study's file is changed to before it is checked.

A file may have `sizes`, each a set of keys that replace its own; keys within keys are replaced one by one, and `arms`
as a whole. A size that is asked for becomes the study: its digest is that of the changed keys, its name says the size.

>>> file = {"name": "s", "steps": 200, "data": {"train": "a", "limit": 9}}
>>> sized({**file, "sizes": {"cpu": {"steps": 20, "data": {"limit": 3}}}}, "cpu", where="s.yaml")
{'name': 's-cpu', 'steps': 20, 'data': {'train': 'a', 'limit': 3}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratlas.errors import SpecError

SIZES = "sizes"


def sized(values: Mapping[str, Any], size: str | None, *, where: str) -> dict[str, Any]:
    """A study's keys at one of its sizes.

    Args:
        values: of the file.
        size: a key of its `sizes`; None for the file as it is, without them.
        where: how errors call the file.

    Raises:
        SpecError: no such size, or `sizes` that are no keys with values.
    """
    whole = {key: value for key, value in values.items() if key != SIZES}
    sizes = values.get(SIZES, {})
    if not isinstance(sizes, Mapping) or not all(isinstance(each, Mapping) for each in sizes.values()):
        raise SpecError(
            given=f"sizes in {where}", found="no keys with values", instead="sizes: {cpu: {steps: 20}}"
        )
    if size is None:
        return whole
    if size not in sizes:
        raise SpecError(
            given=f"--size {size}",
            found=f"{where} has {', '.join(map(str, sizes)) if sizes else 'no sizes'}",
            instead=f"--size {next(iter(sizes))}" if sizes else "the study without --size",
        )
    changed = _replaced(whole, sizes[size])
    return (
        changed | {"name": f"{whole['name']}-{size}"}
        if "name" in whole and "name" not in sizes[size]
        else changed
    )


def on_files(
    values: Mapping[str, Any], *, model: str | None, train: str | None, eval: str | None
) -> dict[str, Any]:
    """A study's keys on another base or other rows, given by option; splits of the file's rows go with those rows."""
    data = {} if train is None else {"train": train, "split": None}
    data |= {} if eval is None else {"eval": eval, "eval_split": None}
    more: dict[str, Any] = {"model": model} if model is not None else {}
    return _replaced(values, more | ({"data": data} if data else {}))


def _replaced(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(values)
    for key, value in changes.items():
        inside = changed.get(key)
        if key != "arms" and isinstance(inside, Mapping) and isinstance(value, Mapping):
            value = _replaced(inside, value)
        changed[key] = value
    return changed
