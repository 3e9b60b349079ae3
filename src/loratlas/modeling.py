"""Small helpers around a live model: unwrapping, modes, patched forwards and configs, dropout, devices.

Nothing here imports torch or transformers: a model is whatever has the attributes that are read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_MISSING = object()


def unwrap(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, or the model itself.

    Args:
        model: bare, or wrapped by PEFT.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: Any) -> Any:
    """The device of a model's input embedding, to which its inputs belong.

    Args:
        model: bare, or wrapped by PEFT.
    """
    return unwrap(model).get_input_embeddings().weight.device


@contextmanager
def modes_kept(model: Any) -> Iterator[None]:
    """Within this context modules may change between training and evaluation; every one's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def patched_forwards(changes: Sequence[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Within this context modules have other forward functions.

    Args:
        changes: module and the function that stands for its ``forward``. An instance that has a ``forward`` of its own
            gets that one back; any other gets back its class's.
    """
    before = [(module, vars(module).get("forward", _MISSING)) for module, _ in changes]
    for module, function in changes:
        module.forward = function
    try:
        yield
    finally:
        for module, own in before:
            if own is _MISSING:
                vars(module).pop("forward", None)
            else:
                module.forward = own


@contextmanager
def patched_configs(configs: Sequence[Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Within this context configs hold other values, where they hold one of that name at all.

    Args:
        configs: of live models, whose modules read them at every call.
        values: attribute → value.
    """
    before = [
        (config, name, getattr(config, name))
        for config in configs
        for name in values
        if hasattr(config, name)
    ]
    for config, name, _ in before:
        setattr(config, name, values[name])
    try:
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory was not enough, whoever raised it.

    Torch's allocator on a CPU raises a plain RuntimeError, mapping a file an OSError, and CUDA a class of its own.

    >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"))
    True
    >>> is_out_of_memory(RuntimeError("size mismatch")), is_out_of_memory(MemoryError())
    (False, True)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("can't allocate memory", "cannot allocate memory", "out of memory"))


def is_dropout(name: str) -> bool:
    """Whether a setting's name is that of a dropout probability: ``…dropout…``, ``…_pdrop``, ``…_drop``, ``layerdrop``.

    >>> is_dropout("attn_pdrop"), is_dropout("hidden_size")
    (True, False)
    """
    return "drop" in name.lower()


def zero_dropout(config: Any) -> None:
    """Set every dropout probability of a config (and of configs inside it) to 0, in place."""
    for holder, name, _ in list(_dropouts(config)):
        if isinstance(holder, dict):
            holder[name] = 0.0
        else:
            setattr(holder, name, 0.0)


def has_dropout(config: Any) -> bool:
    """Whether a config, or one inside it, names a dropout above 0."""
    return any(value > 0 for _, _, value in _dropouts(config))


def _dropouts(config: Any) -> Iterator[tuple[Any, str, float]]:
    """Holder, name and value of every dropout probability of a config."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_diff_dict"):
            yield from _dropouts(value)
        elif isinstance(value, float) and is_dropout(name):
            yield config, name, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, float) and is_dropout(str(key)):
                    yield value, key, inner
