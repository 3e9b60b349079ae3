"""How large a config may say that a model is: far beyond every real one, and small enough to answer at once.

A config is a stranger's text. Without bounds a few bytes of it keep a process busy for hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loratlas.errors import ModelError

MOST_LAYERS = 1_024
"""Blocks of one tower. The deepest published transformers have a thousand layers of one kind."""

MOST_PARAMETERS = 2**16
"""Tensors of a model; Switch-C, with 2,048 experts that are modules each, has 62,000."""

MOST_BYTES = 2**26
"""Of a config file."""

_MOST_NUMBER = 2**40
_MOST_ITEMS = 2**20
_DEPTH = re.compile(r"(?:.*_)?(?:num|n)?_?(?:hidden_)?layers?|depth|depths|.*_(?:blocks|layers)")


def check_sizes(data: Mapping[str, Any], given: str) -> None:
    """Refuse a config whose sizes no model has.

    Args:
        data: the config as JSON has it.
        given: what the error names.

    Raises:
        ModelError: more than `MOST_LAYERS` blocks, or a number or a list beyond all bounds.

    >>> check_sizes({"num_hidden_layers": 32, "vocab_size": 128_256}, "config.json")
    >>> try:
    ...     check_sizes({"text_config": {"num_hidden_layers": 100_000}}, "config.json")
    ... except ModelError as error:
    ...     print(error.found)
    num_hidden_layers is 100000, more than the 1,024 layers that are read
    """
    for name, value in _fields(data):
        if isinstance(value, bool):
            continue
        if isinstance(value, int) and _DEPTH.fullmatch(name) and value > MOST_LAYERS:
            problem = f"{name[:60]} is {_short(value)}, more than the {MOST_LAYERS:,} layers that are read"
        elif isinstance(value, int) and abs(value) > _MOST_NUMBER:
            problem = f"{name[:60]} is {_short(value)}, which is no size of a model"
        elif isinstance(value, (list, dict)) and len(value) > _MOST_ITEMS:
            problem = f"{name[:60]} has {len(value):,} entries"
        else:
            continue
        raise ModelError(given=given, found=problem, instead="the config of a model that exists")


def _fields(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field with its name, inner configs included."""
    todo: list[Mapping[str, Any]] = [data]
    while todo:
        for name, value in todo.pop().items():
            yield str(name), value
            if isinstance(value, dict):
                todo.append(value)


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**15 else f"a number of {value.bit_length()} bits"


@contextmanager
def counted_parameters(given: str) -> Iterator[None]:
    """Within this context no more than `MOST_PARAMETERS` tensors can be made parameters of modules.

    Raises:
        ModelError: when one more is.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    made = 0

    def count(_module: Any, _name: str, _parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > MOST_PARAMETERS:
            raise ModelError(
                given=given,
                found=f"more than the {MOST_PARAMETERS:,} tensors that are read of a model",
                instead="the config of a model that exists",
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
