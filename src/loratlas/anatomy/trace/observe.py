"""Run the model on the meta device and follow which matrix each activation came from.

One forward pass of a few tokens, without memory or arithmetic. Every new tensor carries the names of the
matrices whose outputs went into it, together with which columns of those outputs, so that one can see

* which matrices read the same tensor,
* which outputs are multiplied with each other and then soft-maxed (queries and keys), what the result is
  multiplied with (values) and which matrix reads that (output),
* which output goes through a nonlinearity and is multiplied with which other one (gate and up), and who reads
  it,
* which output a top-k chooses by (router), and which matrices are used by that choice (experts).

No name of any module is looked at. Blocks that are built alike, down to every flag of every module in them, do
alike: the first one runs, and its result stands in for the others'.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from loratlas.anatomy.dummy_inputs import inputs, silent_towers, tower_inputs
from loratlas.anatomy.trace.dispatch import LabelDispatch
from loratlas.anatomy.trace.flow_records import Flow
from loratlas.anatomy.trace.provenance import Labelled
from loratlas.anatomy.trace.python_calls import Shortcuts
from loratlas.modeling import patched_configs
from loratlas.models.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

    from loratlas.anatomy.structure import Matrix

TOKENS, OTHERS = 8, 12
"""Tokens of the text, and of whatever else it attends to: unlike, so that cross-attention shows."""

_POSITIONS = frozenset({"layer_idx", "layer_id", "layer_number", "layer_index"})
"""Where a block stands, which says nothing about what it does."""


def observe(model: nn.Module, matrices: list[Matrix]) -> Flow:
    """Watch one forward pass of a few tokens.

    Args:
        model: in eval mode; on the meta device, or small and with weights where it asks tensors for their values.
        matrices: its matrices.

    Returns:
        What was seen; ``complete`` is false where the model does not run on token ids alone.
    """
    flow = Flow()
    for number, given in enumerate(inputs(model, tokens=TOKENS, others=OTHERS)):
        tried = _run(model, matrices, given)
        if number == 0 or tried.complete or len(tried.calls) > len(flow.calls):
            flow = tried
        if flow.complete:
            break
    return flow


def _run(model: nn.Module, matrices: list[Matrix], given: dict[str, Any]) -> Flow:
    flow = Flow()
    names: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for matrix in matrices:
        names.setdefault(id(matrix.parameter), (matrix.parameter, []))[1].append(matrix.path)
    known = Labelled(flow, list(names.values()))
    holders: dict[str, list[str]] = {}
    for matrix in matrices:
        holders.setdefault(matrix.module, []).append(matrix.path)
    blocks = {matrix.block: matrix.layer for matrix in matrices if matrix.block is not None}

    ran = set[str]()

    def enter(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in blocks:
                ran.add(name)
                known.forget()
                _streams(known, args, kwargs)
            known.running.append(name)

        return note

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        name = known.running.pop()
        if name in holders and not isinstance(output, torch.Tensor):
            flow.odd.update(holders[name])

    handles = []
    for name, module in model.named_modules():
        if name in blocks or name in holders:
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
    try:
        with (
            quiet(),
            torch.no_grad(),
            next(model.parameters()).device,
            _plainly(model),
            _once(model, blocks, flow),
            LabelDispatch(known),
            Shortcuts(known),
        ):
            try:
                output = model(**given)
                logits = getattr(output, "logits", None)
                if isinstance(logits, torch.Tensor):
                    flow.outputs = known.of(logits)
                flow.complete = True
            except Exception as error:
                # A model that does not run so is still read, by its names and shapes.
                flow.reason = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:160]
                known.running.clear()
            for tower in silent_towers(model, blocks, ran):
                _alone(tower, known)
    finally:
        for handle in handles:
            handle.remove()
    return flow


def _alone(tower: nn.Module, known: Labelled) -> None:
    """Watch a tower on an input of its own; of a pass that does not come to its end nothing is kept."""
    flow = known.flow
    for given in tower_inputs(tower, tokens=TOKENS, others=OTHERS):
        before = {item.name: copy.copy(getattr(flow, item.name)) for item in fields(flow)}
        known.forget()
        try:
            tower(**given)
            return
        except Exception:
            known.running.clear()
            for name, value in before.items():
                setattr(flow, name, value)


def _streams(known: Labelled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    number = 0
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim >= 3 and value.dtype.is_floating_point:
            known.stream(value, number)
            number += 1


@contextlib.contextmanager
def _once(model: nn.Module, blocks: dict[str, int | None], flow: Flow) -> Iterator[None]:
    """Let every block that is built like an earlier one of its list return what that one returned."""
    modules = dict(model.named_modules())
    first: dict[Any, str] = {}
    replaced = []
    for name in blocks:
        if not modules[name]._modules:
            continue
        kind = (name.rpartition(".")[0], *built(modules[name]))
        twin = first.setdefault(kind, name)
        if twin == name:
            replaced.append(modules[name])
            modules[name].forward = _kept(modules[name])
        else:
            flow.twins[name] = twin
            replaced.append(modules[name])
            modules[name].forward = _same(modules[twin], modules[name])
    try:
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)
            vars(module).pop("_loratlas_seen", None)


def _kept(module: Any) -> Callable[..., Any]:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        vars(module)["_loratlas_seen"] = result = forward(*args, **kwargs)
        return result

    return run


def _same(twin: Any, module: Any) -> Callable[..., Any]:
    forward = type(module).forward

    def run(*args: Any, **kwargs: Any) -> Any:
        seen = vars(twin).get("_loratlas_seen")
        return forward(module, *args, **kwargs) if seen is None else seen

    return run


def built(block: nn.Module) -> tuple[Any, ...]:
    """All that distinguishes one block from another: classes, shapes and plain settings of every module in it."""
    said = []
    for name, module in block.named_modules():
        shapes = tuple((key, tuple(p.shape)) for key, p in module._parameters.items() if p is not None)
        settings = tuple(
            (key, value)
            for key, value in vars(module).items()
            if key not in _POSITIONS and isinstance(value, (bool, int, float, str, type(None)))
        )
        said.append((name, type(module), shapes, settings))
    return tuple(said)


_SETTINGS = {"_experts_implementation_internal": "batched_mm", "use_cache": False}
"""Stacks of experts multiply in one batch, which needs no counts of tokens per expert; nothing is cached."""


@contextlib.contextmanager
def _plainly(model: nn.Module) -> Iterator[None]:
    """Let the model and all models inside it run under the settings above."""
    configs = {id(value): value for m in model.modules() if (value := getattr(m, "config", None)) is not None}
    with patched_configs(list(configs.values()), _SETTINGS):
        yield
