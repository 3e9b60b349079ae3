"""Decoder layers through torch.compile, one code for all of them and for every number of tokens.

What is compiled is a layer and not the model: the layers share their code, so that a deep model compiles as soon as a
shallow one. Attention over packed rows stays as it is, for its shapes are other ones in every batch; it cuts a layer in
four pieces. Evaluation within a run, the output embedding and the loss are not compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loratlas.errors import SettingsError
from loratlas.training.prefix import layers_of

BACKEND = "inductor"
"""Of torch.compile."""


class Compiled:
    """A model's decoder layers, compiled when they are first called within `within`.

    Args:
        model: bare or as a `PeftModel`.

    Raises:
        SettingsError: no list of decoder layers, recomputed layers, or no C++ compiler where one is needed.
    """

    def __init__(self, model: Any) -> None:
        layers = layers_of(model)
        reason = None
        if layers is None:
            reason = f"a {type(model).__name__} without exactly one list of decoder layers"
        elif any(getattr(layer, "gradient_checkpointing", False) for layer in layers.modules):
            reason = "layers that compute again in the backward pass"
        else:
            reason = _no_compiler(model)
        if reason is not None:
            raise SettingsError(given="compile = 'on'", found=reason, instead="compile = 'off'")
        assert layers is not None
        self._layers = layers.modules
        self._calls: dict[int, Any] = {}  # by place of the layer

    @contextmanager
    def within(self, lowest: int = 0) -> Iterator[None]:
        """Within this context the layers from ``lowest`` on are the compiled ones."""
        import torch

        for place in range(lowest, len(self._layers)):
            layer = self._layers[place]
            if place not in self._calls:
                self._calls[place] = torch.compile(layer._call_impl, dynamic=True, backend=BACKEND)
            layer._compiled_call_impl = self._calls[place]
        try:
            with warnings.catch_warnings():
                # torch's own tracer touches what torch warns about.
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
                yield
        finally:
            for layer in self._layers[lowest:]:
                del layer._compiled_call_impl


def _no_compiler(model: Any) -> str | None:
    """Why nothing can be compiled on this machine; None if something can."""
    if BACKEND != "inductor" or model.get_input_embeddings().weight.device.type != "cpu":
        return None
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler on this machine, which torch.compile needs for a CPU"
    return None
