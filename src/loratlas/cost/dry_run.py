"""A dry run: one step of a run without weights: what it keeps, what it holds at its peak, and what it computes.

It runs the very code that training runs (packing, attention, low-rank layers, loss, masters, AdamW) on
tensors without numbers (`loratlas.cost.recorder`), so that it is right for any architecture and any placement:
feed-forward sites keep their wider inputs, backward stops below the lowest adapter, sites that share an input keep it
once, because the code does so. It needs a config, no weights, and well under a second for a small model.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.data.examples import Encoded, EncodeReport, Example, task_of
from loratlas.errors import ModelError
from loratlas.models.task import CAUSAL, Task
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from loratlas.adapters.plan_row import PlanRow
    from loratlas.cost.operations import OperationCall


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What one step would take.

    Args:
        saved_bytes: what the forward pass keeps for backward, weights excepted, each storage once; of the
            micro-batch that keeps most.
        peak_bytes: most memory at any time, by the allocator's count: weights, adapters, their float32 masters,
            gradients and moments, kept activations, and what operations make on the way.
        lasting_bytes: of these, what lives from step to step.
        tokens: of the step, padding excluded.
        packed: whether the rows lie end to end.
        calls: how often each operation runs that touches numbers, for `loratlas.cost.calibration`.
        free: how many operations run besides (views).
    """

    saved_bytes: int
    peak_bytes: int
    lasting_bytes: int
    tokens: int
    packed: bool
    calls: Counter[OperationCall]
    free: int


def even_rows(rows: int, length: int) -> tuple[Example, ...]:
    """So many rows of equal length whose every token but the first is counted.

    >>> [len(row) for row in even_rows(2, 5)]
    [5, 5]
    """
    ids, counted = np.zeros(length, dtype=np.int32), np.arange(length) > 0
    return tuple(Example(input_ids=ids, labelled=counted, row=row) for row in range(rows))


def typical(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """The rows of a typical step: of so many equal parts of all rows, sorted by length, the middle one each.

    >>> [len(row) for row in typical([*even_rows(1, 9), *even_rows(1, 4), *even_rows(2, 6)], 2)]
    [6, 9]
    """
    ordered = sorted(examples, key=len)
    ranks = (np.arange(count) + 0.5) / count * len(ordered)
    return tuple(ordered[int(rank)] for rank in ranks)


def as_step(examples: Sequence[Example]) -> Encoded:
    """Examples of one step as a run takes its rows."""
    return Encoded(
        examples=tuple(examples),
        report=EncodeReport.of(examples),
        digest="",
        template="",
        pad_id=0,
        source="a dry run",
        task=Task(name=task_of(examples[0])),
    )


def dry_run(
    config: PretrainedConfig,
    rows: Sequence[PlanRow],
    examples: Sequence[Example],
    settings: Settings,
    *,
    rslora: bool = False,
    packed: bool | None = None,
    repeated_tokens: int | None = None,
    device: torch.device | str | None = None,
) -> DryRun:
    """Run one step without weights on the CPU or, where there is one, on the GPU.

    Args:
        config: of the base.
        rows: of the plan, at least one.
        examples: of the step; their lengths and counted places matter, not their tokens.
        settings: of the run; type, micro-batches, dropout, recomputation and LoRA+ matter.
        rslora: as in the plan.
        packed: end to end or side by side; None: end to end where the model's attention can be replaced, whose
            exactness only the live model can prove.
        repeated_tokens: tokens of all rows of a run that sees its rows more than once: what the frozen layers below the
            lowest adapter make of them is then kept, and a step begins above (`loratlas.training.step.frozen_prefix`).
            None: every row comes once.
        device: where the run would train; None: on the GPU, where there is one.

    Returns:
        What was recorded.

    Raises:
        ModelError: texts for a model that is no causal language model, or a model whose path depends on its numbers,
            such as a mixture of experts that sorts tokens by the experts they were sent to.

    Example:
        >>> from transformers import LlamaConfig
        >>> from loratlas.placement.plan import place
        >>> config = LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4,
        ...                      intermediate_size=256, vocab_size=96)
        >>> whole, top = (dry_run(config, place(config, text).rows, even_rows(2, 32), Settings())
        ...               for text in ("all:4", "all@top/2:4"))
        >>> whole.saved_bytes > top.saved_bytes
        True
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
    )

    from loratlas.data.batches.packing import why_padded

    task = task_of(examples[0])
    # What a step costs does not depend on its rate, which a run may still have to choose.
    settings = settings if isinstance(settings.lr, float) else replace(settings, lr=1e-3)
    model = _blank(config, rows, settings, rslora, task)
    if packed is None:
        packed = task == CAUSAL and why_padded(model) is None
    try:
        return _record(model, examples, settings, packed, repeated_tokens, device)
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        words = " ".join(str(error).split())[:160]
        raise ModelError(
            given=f"a step of a model of type {config.model_type!r}, without its weights",
            found=f"a path that depends on numbers ({type(error).__name__}: {words})",
            instead="a short run: `loratlas train` measures its step time and its peak",
        ) from error


def _blank(
    config: PretrainedConfig, rows: Sequence[PlanRow], settings: Settings, rslora: bool, task: str
) -> Any:
    """The adapted base on the meta device, as `load_model` and `attach` make it, and lean."""
    import torch
    from peft import get_peft_model

    from loratlas.adapters.attach import lora_config
    from loratlas.adapters.layers.lean_lora import faster
    from loratlas.adapters.peft_check import expected_warnings
    from loratlas.modeling import zero_dropout
    from loratlas.models.meta import meta_model

    config = copy.deepcopy(config)
    zero_dropout(config)
    config.use_cache = False
    model = meta_model(config)
    if task == CAUSAL and (
        not hasattr(model, "prepare_inputs_for_generation") or getattr(config, "is_encoder_decoder", False)
    ):
        raise ModelError(
            given=f"a step of a model of type {config.model_type!r} on texts",
            found="no causal language model",
            instead="a causal language model, or rows of what this one is trained to do",
        )
    dtype = getattr(torch, settings.dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    asked = lora_config(rows, model=config, rslora=rslora, dropout=settings.dropout, prove=False)
    with expected_warnings():
        return faster(get_peft_model(model, asked, low_cpu_mem_usage=True))


def _record(
    model: Any,
    examples: Sequence[Example],
    settings: Settings,
    packed: bool,
    repeated_tokens: int | None,
    device: torch.device | str | None,
) -> DryRun:
    import torch

    from loratlas.cost.recorder import recording, saved
    from loratlas.training.master_weights import MasterWeights
    from loratlas.training.optimizer import MOMENTS, Optimizer
    from loratlas.training.run_context import training_mode
    from loratlas.training.step.frozen_prefix import unproven_prefix
    from loratlas.training.step.gradients import step_loss
    from loratlas.training.step.microbatches import microbatches

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    data = as_step(examples)
    with ExitStack() as stack:
        stack.enter_context(training_mode(model, checkpointing=settings.checkpointing))
        stack.enter_context(_no_remembered_tables())
        recorder = stack.enter_context(recording())
        recorder.hold(_materialise(model, device))
        masters = MasterWeights(model, loraplus=settings.loraplus)
        # Any rate costs the same; that of the run may be decided in its own first steps.
        optimizer = Optimizer(masters, replace(settings, lr=1e-3), steps=1)
        previous = masters.copy()
        masters.open()
        # A run's first step makes the moments; every other one finds them.
        blank = {
            f"{index}.{moment}": torch.zeros_like(group.master)
            for index, group in enumerate(masters.groups)
            for moment in MOMENTS
        }
        optimizer.load(blank, 1)
        del blank
        lasting = [*model.parameters(), *masters.lasting()]
        prefix = (
            unproven_prefix(model, data, range(len(data))) if packed and repeated_tokens is not None else None
        )
        other_rows = 0  # states of the run's other rows
        if prefix is not None and repeated_tokens is not None:
            for _ in prefix.fill(range(len(data))):
                pass
            lasting += prefix.lasting()
            other_rows = round(prefix.bytes() * (repeated_tokens / sum(len(e) for e in examples) - 1))
        recorder.mark()
        lasting_bytes, kept, tokens = recorder.live, 0, 0
        batches = list(microbatches(data, range(len(data)), packed=packed, size=settings.micro_batch))
        labelled = sum(batch.labelled for batch in batches)
        masters.zero()
        for batch in batches:
            batch = batch.to(device)
            with prefix.within(batch) if prefix is not None else nullcontext(), saved(lasting) as storages:
                loss = step_loss(model, batch)
            kept = max(kept, sum(storages.values()))
            (loss / labelled).backward()
            masters.collect()
            tokens += batch.tokens
        masters.norm()
        for copied, group in zip(previous, masters.groups, strict=True):
            copied.copy_(group.master)
        optimizer.update(0, 0.0)
        return DryRun(
            saved_bytes=kept,
            peak_bytes=recorder.peak + other_rows,
            lasting_bytes=lasting_bytes + other_rows,
            tokens=tokens,
            packed=packed,
            calls=Counter(recorder.calls),
            free=recorder.free,
        )


def _materialise(model: Any, device: torch.device) -> list[torch.Tensor]:
    """Replace what lies on the meta device by (recorded) tensors of a device; those tensors, shared ones once."""
    import torch

    made: dict[int, torch.Tensor] = {}

    def twin(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=dtype, device=device)

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) not in made:
                # Adapters are float32 when they are attached; the masters round them.
                dtype = torch.float32 if parameter.requires_grad else parameter.dtype
                made[id(parameter)] = torch.nn.Parameter(
                    twin(parameter, dtype), requires_grad=parameter.requires_grad
                )
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]  # pyright: ignore[reportArgumentType]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                made.setdefault(id(buffer), twin(buffer, buffer.dtype))
                module._buffers[name] = made[id(buffer)]
    return list(made.values())


@contextmanager
def _no_remembered_tables() -> Iterator[None]:
    """Tables that attention keeps from batch to batch are made anew within, and those made within are forgotten."""
    from loratlas.data.batches.block_attention import _bias

    _bias.cache_clear()
    try:
        yield
    finally:
        _bias.cache_clear()
