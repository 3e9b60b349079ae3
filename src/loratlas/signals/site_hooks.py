"""Passes through a frozen model, watched at the matrices that can carry an adapter.

Plain and quantised layers are watched by hooks on their modules, so that whatever they store does not matter. Stacked
experts have no modules of their own: there the products are watched in which a slice of the stack takes part, with the
plain loop over experts switched on. Weights never require a gradient, so that no gradient of a weight is ever formed;
the backward pass begins at the loss and ends at the input embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from loratlas.anatomy.sites import Site
from loratlas.errors import DataError, ModelError, SettingsError
from loratlas.signals.base import Output, Signal, Use
from loratlas.signals.rematerialize import Make, Rematerialize

if TYPE_CHECKING:
    from loratlas.data.batches.batching import Batch

Loss = Callable[[Any, "Batch"], torch.Tensor]
"""(model, batch) → losses of the counted tokens, [labelled]."""

_PRODUCTS = frozenset(
    {torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm,
     torch.Tensor.mm, torch.addmm, torch.Tensor.addmm, torch.bmm, torch.Tensor.bmm}
)  # fmt: skip


def one_pass(
    model: Any,
    batch: Batch,
    sites: Sequence[Site],
    signals: Sequence[Signal],
    loss: Loss,
    rematerialize: Rematerialize | None = None,
) -> float:
    """One forward pass, and one backward pass where a signal needs it.

    Args:
        model: a causal language model; weights, modes and gradients are left as they were.
        batch: on the model's device.
        sites: to be watched.
        signals: told what happens.
        rematerialize: what earlier passes through this model have proven; None for the first.
        loss: gives the losses; their sum is what is differentiated, and signals divide by the counted tokens.

    Returns:
        The loss, nats per counted token.

    Raises:
        DataError: no counted token.
        ModelError: a number that is NaN or infinite; the first site that met it is named.
        SettingsError: gradients cannot be recorded here.
    """
    if not batch.labelled:
        raise DataError(
            given="rows to measure signals on",
            found="no counted token in them: the loss has nothing to say",
            instead="rows with an answer, or --loss all",
        )
    backward = any(signal.needs == "backward" for signal in signals)
    if backward:
        _check_gradients(model)
    watch = _Watch(model, batch, sites, signals, backward, rematerialize or Rematerialize())
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(watch.hooks())
        for signal in signals:
            stack.enter_context(signal.during(model, batch))
            signal.count(batch)
        total = loss(model, batch).sum()
        watch.check(total)
        if backward:
            total.backward()
            watch.check(total)
    return float(total.detach()) / batch.labelled


def _check_gradients(model: Any) -> None:
    if torch.is_inference_mode_enabled() or any(p.is_inference() for p in model.parameters()):
        raise SettingsError(
            given="a model in inference mode",
            found="no gradients can be recorded, and a signal needs them",
            instead="the model loaded and called outside torch.inference_mode(), or a signal that needs none: "
            "activation, alignment, spectrum",
        )


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No parameter requires a gradient, no dropout acts; what the input embeddings give does require one."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    for parameter in wanted:
        parameter.requires_grad_(False)
    model.eval()

    def begin(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_(torch.is_grad_enabled())

    hook = model.get_input_embeddings().register_forward_hook(begin)
    try:
        yield
    finally:
        hook.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


class _Watch:
    def __init__(
        self,
        model: Any,
        batch: Batch,
        sites: Sequence[Site],
        signals: Sequence[Signal],
        backward: bool,
        rematerialize: Rematerialize,
    ) -> None:
        self.model, self.signals, self.backward = model, signals, backward
        self.owner = batch.example.reshape(-1)
        self.real = None if batch.packed else (self.owner >= 0).nonzero()[:, 0]
        # A matrix under several names is one site: all of its uses are its own.
        self.modules = {
            path.rpartition(".")[0]: site
            for site in sites
            if site.kind != "experts"
            for path in (site.called_as or (f"{site.module}.",))
        }
        self.stacks = {site.path: site for site in sites if site.kind == "experts"}
        self.rematerialize = rematerialize
        self.met: list[tuple[str, torch.Tensor]] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        hooks = [
            self.model.get_submodule(name).register_forward_hook(self._after(site), with_kwargs=True)
            for name, site in self.modules.items()
        ]
        with ExitStack() as stack:
            if self.stacks:
                stack.enter_context(_looped_experts(self.model))
                stack.enter_context(_Products(self._stacked(), self))
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def _after(self, site: Site) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            x = arguments[0] if arguments else next(iter(named.values()))
            bias = getattr(module, "bias", None)
            self.use(site, 0, x, output, bias, lambda z: _map(module, bias, z))

        return hook

    def _stacked(self) -> dict[int, tuple[Site, torch.Tensor]]:
        named = dict(self.model.named_parameters())
        return {
            named[path].untyped_storage().data_ptr(): (site, named[path])
            for path, site in self.stacks.items()
        }

    def use(
        self,
        site: Site,
        expert: int,
        x: torch.Tensor,
        y: torch.Tensor,
        bias: torch.Tensor | None,
        weight: Callable[[torch.Tensor], torch.Tensor],
        *,
        part: int | None = None,
    ) -> None:
        """Tell all signals about one use, and about its gradient when that comes by.

        Args:
            site, expert, bias, weight: as in `Use`.
            x: what is read; any dimensions, the last one d_in.
            y: what comes out of the call.
            part: of x and y, where one call serves several experts.
        """
        here = slice(None) if part is None else part
        flat, out = x.detach()[here].flatten(0, -2), y.detach()[here].flatten(0, -2)
        owner, real = None, None
        if len(flat) == len(self.owner):
            owner, real = self.owner, self.real
            if real is not None:
                flat, out, owner = flat[real], out[real], owner[real]
        if not len(flat):
            return
        self._mark(site, flat, out)
        with torch.no_grad():
            for signal in self.signals:
                signal.read(
                    Use(site=site, expert=expert, x=flat, owner=owner),
                    Output(y=out, bias=bias, weight=weight),
                )
        if self.backward and y.requires_grad:
            y.register_hook(self._learner(site, expert, self.rematerialize(site.path, x), here, real, owner))

    def _learner(
        self,
        site: Site,
        expert: int,
        make: Make,
        here: slice | int,
        real: torch.Tensor | None,
        owner: torch.Tensor | None,
    ) -> Callable[[torch.Tensor], None]:
        """What tells the signals about the gradient at an output. It holds no activation that can be made again."""

        def learn(g: torch.Tensor) -> None:
            with torch.no_grad():
                x, g = (t.detach()[here].flatten(0, -2) for t in (make(), g))
                if real is not None:
                    x, g = x[real], g[real]
                self._mark(site, g)
                for signal in self.signals:
                    signal.learn(Use(site=site, expert=expert, x=x, owner=owner), g)

        return learn

    def _mark(self, site: Site, *tensors: torch.Tensor) -> None:
        """Keep a number that is finite if, and only if, all numbers are."""
        number = torch.stack([t.sum(dtype=torch.float32) for t in tensors]).sum()
        self.met.append((site.module, number))

    def check(self, total: torch.Tensor) -> None:
        """Refuse numbers that are none, naming where they came up first."""
        marks = [mark for _, mark in self.met]
        fine = torch.isfinite(torch.stack(marks)) if marks else torch.ones(0, dtype=torch.bool)
        if bool(fine.all()) and bool(torch.isfinite(total)):
            return
        first = next(
            (n for (n, _), good in zip(self.met, fine.tolist(), strict=True) if not good), "the loss"
        )
        raise ModelError(
            given="a pass over the calibration rows",
            found=f"NaN or infinite numbers, first at {first}",
            instead="--dtype float32, or a model whose numbers stay finite on these rows",
        )


def _map(module: Any, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """The module's linear map of x, whatever it stores; past the hooks."""
    y = module.forward(x)
    return y if bias is None else y - bias


@contextmanager
def _looped_experts(model: Any) -> Iterator[None]:
    """The plain loop over experts, in which each expert's product is one call."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [(config, getattr(config, "_experts_implementation", None)) for config in configs.values()]
    changed = [(config, own) for config, own in before if own not in (None, "eager")]
    for config, _ in changed:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, own in changed:
            config._experts_implementation = own


class _Products(TorchFunctionMode):
    """Sees every product in which a slice of a stack takes part."""

    def __init__(self, stacks: dict[int, tuple[Site, torch.Tensor]], watch: _Watch) -> None:
        super().__init__()
        self.stacks, self.watch = stacks, watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.dim() > 1]
            for index, slice_ in enumerate(tensors[:2]):
                stack = self.stacks.get(slice_.untyped_storage().data_ptr())
                if stack is not None and len(tensors) > 1:
                    bias = next((a for a in args if isinstance(a, torch.Tensor) and a.dim() == 1), None)
                    W = slice_.t() if func is torch.nn.functional.linear else slice_
                    self._report(*stack, W, tensors[1 - index], y, bias)
                    break
        return y

    def _report(
        self,
        site: Site,
        stack: torch.Tensor,
        W: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        first = int(W.storage_offset() - stack.storage_offset()) // stack.stride(0)
        if W.dim() == 2:
            self.watch.use(site, first, x, y, bias, lambda z: z @ W)
            return
        for index in range(len(W)):  # every expert at once: [E, n, d_in] times [E, d_in, d_out]
            self.watch.use(site, first + index, x, y, bias, lambda z, W=W[index]: z @ W, part=index)
