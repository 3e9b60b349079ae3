"""The adapters and heads of several runs over one frozen base.

Modules of the base are the bank's while it is `open`: matrices compute in
`loratlas.training.fleet.segmented_lora`, stacks of
experts in `loratlas.training.fleet.expert_lora`, and a head, which trains whole, is every run's own copy on
the run's own rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from loratlas.adapters.layers import lean_lora
from loratlas.adapters.layers.gelu import fuse, write_out
from loratlas.adapters.plan_row import PlanRow
from loratlas.modeling import device_of, patched_forwards
from loratlas.models.heads import head_modules
from loratlas.training.fleet import expert_lora
from loratlas.training.fleet.row_slices import RowSlices
from loratlas.training.fleet.segmented_lora import Segment, SegmentedLora, frozen, weights


@dataclass(slots=True)
class _Group:
    """Modules that read the same tensor; the first that is called computes the outputs of all."""

    modules: dict[str, Any]
    waiting: dict[str, torch.Tensor] = field(default_factory=dict)
    read: torch.Tensor | None = None

    def output(self, path: str, x: torch.Tensor, bank: Bank) -> torch.Tensor:
        if self.read is x and path in self.waiting:
            y = self.waiting.pop(path)
            if not self.waiting:
                self.read = None
            return y
        wanted = [path, *(name for name in self.modules if name != path)] if not self.waiting else [path]
        served = [name for name in wanted if bank.serves(name)]
        if path not in served:
            return frozen(self.modules[path], x.reshape(-1, x.shape[-1]))
        outputs = bank.product(x, [(name, self.modules[name]) for name in served])
        if len(served) > 1:
            self.read, self.waiting = x, dict(zip(served[1:], outputs[1:], strict=True))
        return outputs[0]

    def forget(self) -> None:
        self.read, self.waiting = None, {}


class _BankLinear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _serve(self, input)


class _BankConv1D(Conv1D):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _serve(self, x)


def _serve(module: Any, x: torch.Tensor) -> torch.Tensor:
    path, group, bank = module._bank
    y = group.output(path, x, bank)
    return y.view(*x.shape[:-1], y.shape[-1])


_SERVED: dict[type, type] = {torch.nn.Linear: _BankLinear, Conv1D: _BankConv1D}


class Bank:
    """Tenants over the modules of a frozen base.

    Args:
        model: the bare base; its modules are the bank's within `open` only.
        rows: of all plans; each site's module is a plain matrix or a stack that `expert_lora.serves`.

    Attributes:
        matrices, stacks, heads: module path → the base's module.
        stacked: paths of the parameters in ``stacks`` that some run adapts.
    """

    def __init__(self, model: Any, rows: Iterable[PlanRow]) -> None:
        self.model = model
        self.row_slices: RowSlices | None = None
        # Something that requires a gradient, so that the lowest adapted sites have a backward pass.
        self.anchor = torch.zeros(0, device=device_of(model), requires_grad=True)
        rows = list(rows)
        paths = dict.fromkeys(row.site.module for row in rows if row.site.kind != "experts")
        self.matrices = {path: model.get_submodule(path) for path in paths}
        self.stacked = list(dict.fromkeys(row.site.path for row in rows if row.site.kind == "experts"))
        self.stacks = {
            path: model.get_submodule(path) for path in (p.rpartition(".")[0] for p in self.stacked)
        }
        self.heads = {path: model.get_submodule(path) for path in head_modules(model)}
        self._output = model.get_output_embeddings()
        members = [[p for p in group if p in self.matrices] for group in lean_lora._inputs(model.config)]
        together = {path for group in members for path in group}
        groups = [group for group in members if group] + [[path] for path in paths if path not in together]
        self._groups = [_Group({path: self.matrices[path] for path in group}) for group in groups]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within this context the base's modules serve the slots of the pass under way."""
        modules = [(path, m, group) for group in self._groups for path, m in group.modules.items()]
        whole = [(m, partial(self._stack, path, m)) for path, m in self.stacks.items()]
        whole += [(m, partial(self._head, path)) for path, m in self.heads.items()]
        for path, module, group in modules:
            module._bank = (path, group, self)
            module.__class__ = _SERVED[type(module)]
        try:
            with patched_forwards(whole):
                fuse(self.model)
                try:
                    yield
                finally:
                    write_out(self.model)
        finally:
            for _, module, _ in modules:
                del module._bank
                module.__class__ = next(own for own, kind in _SERVED.items() if kind is type(module))

    @contextmanager
    def use(self, row_slices: RowSlices) -> Iterator[None]:
        """Within this context a pass belongs to these slots."""
        self.row_slices = row_slices
        try:
            yield
        finally:
            self.row_slices = None
            for group in self._groups:
                group.forget()

    def serves(self, path: str) -> bool:
        """Whether some run of the pass has factors at a matrix; a pass that is nobody's is the base's own."""
        return self.row_slices is not None and any(path in own.slot.factors for own in self.row_slices.slices)

    def product(self, x: torch.Tensor, sites: Sequence[tuple[str, Any]]) -> tuple[torch.Tensor, ...]:
        """Outputs [T, d_out] of matrices that read x, with what every run adds to its rows."""
        parts, row_slices = [], self.row_slices
        assert row_slices is not None  # `serves` said so
        counted = any(module is self._output for _, module in sites)
        flat = x.reshape(-1, x.shape[-1])
        for own in row_slices.slices:
            factors = [(index, own.slot.factors[name]) for index, (name, _) in enumerate(sites)
                       if name in own.slot.factors]  # fmt: skip
            here = row_slices.rows(own, x, counted=counted)
            if factors and here.stop > here.start:
                drop = own.slot.draw(flat[here])
                parts.append(Segment(here, factors, drop, 1 / (1 - own.slot.dropout)))
        return SegmentedLora.apply(flat, self.anchor, [weights(module) for _, module in sites], parts)  # type: ignore[no-any-return]

    def _stack(
        self,
        path: str,
        module: Any,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """A stack's own forward, by the names that transformers' interface gives its arguments."""
        given = hidden_states, top_k_index, top_k_weights
        if self.row_slices is None:
            return type(module).forward(module, *given)
        return expert_lora.experts(module, path, self.row_slices, self.anchor, *given)

    def _head(self, path: str, *given: Any, **named: Any) -> torch.Tensor:
        """Every run's own copy of a head's module, on the run's own rows."""
        row_slices = self.row_slices
        if row_slices is None:
            return type(self.heads[path]).forward(self.heads[path], *given, **named)
        if len(row_slices.slices) == 1:
            return row_slices.slices[0].slot.heads[path](*given, **named)
        whole = row_slices.slices[-1].units.stop

        def cut(value: Any, units: slice) -> Any:
            mine = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == whole
            return value[units] if mine else value

        outputs = [
            own.slot.heads[path](
                *(cut(value, own.units) for value in given),
                **{name: cut(value, own.units) for name, value in named.items()},
            )
            for own in row_slices.slices
        ]
        return torch.cat(outputs)
