"""One pass of a model over examples under one condition: the per-token table, streamed to Parquet, resumable."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.data.examples import Example
from loratlas.errors import DataError
from loratlas.evaluation.score import MAX_LOGITS, MAX_TOKENS
from loratlas.loss_audit.pass_conditions import Condition, drawing, under
from loratlas.loss_audit.resumable_table import Parts
from loratlas.loss_audit.token_windows import Line, batch_of, lines, side_by_side
from loratlas.modeling import unwrap

CHUNK = 1024
"""Lines that are sorted by length and written together: what bounds the memory."""

SAMPLE = 4096
"""Numbers of each weight that tell one model from another."""


def measure(
    model: Any,
    examples: Iterable[Example],
    *,
    packed: bool,
    out: Path,
    condition: Condition | None = None,
    everything: bool = False,
    special: Iterable[int] = (),
    uniform: bool = False,
    bounds: bool = True,
    pad_id: int = 0,
    max_tokens: int = MAX_TOKENS,
    chunk: int = CHUNK,
    on_lines: Callable[[int], None] | None = None,
) -> Path:
    """Score tokens and write ``tokens.parquet`` into a folder.

    Examples are read `chunk` at a time, laid out longest first, scored, and written as one row group in the order of
    the examples, so that memory depends on neither their number nor that of their tokens. A pass that was killed goes
    on after its last whole row group when the same call is made again; with other weights, another condition or other
    examples it begins anew.

    Args:
        model: bare or as a `PeftModel`; left as it was.
        examples: in the order that gives them their names 0, 1, …; they may be made on the way.
        packed: end to end (only where `loratlas.data.packing.prove_packing` says exact) or side by side; a condition
            with padding lays them side by side in any case.
        out: the folder.
        condition: how the model is run; None: each example alone and whole.
        everything: score prompts, special tokens and filling as well.
        special: ids that the table calls special (``tokenizer.all_special_ids``).
        uniform: take ū, for label smoothing.
        bounds: take the error bound.
        pad_id: fills places side by side.
        max_tokens: places per forward pass.
        chunk: lines per row group.
        on_lines: told after every forward pass how many lines (examples, or windows of them) are done.

    Returns:
        ``out``, for `loratlas.loss_audit.token_table.read_table`.

    Raises:
        DataError: no examples, or none with a token to score.
        SettingsError: see `loratlas.loss_audit.pass_conditions.under`.
        StorageError: ``out`` cannot be written.
    """
    condition = condition or Condition()
    special = sorted(set(special))
    inner = unwrap(model)
    weight = inner.get_input_embeddings().weight
    limit = max(1, min(max_tokens, MAX_LOGITS // weight.shape[0]))
    size = condition.batch_size or 1
    chunk = -(-chunk // size) * size  # whole batches
    identity = {
        "condition": condition.to_json(),
        "columns": [everything, uniform, bounds, special],
        "layout": [packed, pad_id, chunk, limit],
        "weights": weights_digest(model),
    }
    parts = Parts(out, identity)
    source = lines(examples, condition, everything=everything, special=special)
    scored = done = batches = seen = 0

    def tell(lines: int) -> None:
        if on_lines is not None:
            on_lines(lines)

    with under(model, condition):
        while held := list(islice(source, chunk)):
            mark = 0
            for line in held:
                mark = line.digest(mark)
            groups = _groups(held, condition, packed, limit, pad_id, everything)
            scored += sum(int(line.scored.sum()) for group in groups for line in group)
            resumed = parts.has(done, mark)
            if not resumed:
                told = _score(model, groups, condition, packed, pad_id, uniform, bounds, batches, seen, tell)
                parts.write(done, mark, told)
            batches += len(groups)
            done += 1
            seen += len(held)
            if resumed:
                tell(seen)
    if not scored:
        raise DataError(
            given="examples to score",
            found="no answer tokens" if done else "no examples to evaluate",
            instead="rows with an answer",
        )
    parts.finish(done)
    return out


def _groups(
    held: Sequence[Line], condition: Condition, packed: bool, limit: int, pad_id: int, everything: bool
) -> list[list[Line]]:
    """Lines of a chunk as batches: by length, or as the condition lays them."""
    if condition.padding is not None:
        size = condition.batch_size or 1
        cut = [list(held[start : start + size]) for start in range(0, len(held), size)]
        options = {"everything": everything, "ahead": condition.ahead}
        return [side_by_side(group, condition.padding, pad_id, **options) for group in cut]
    groups: list[list[Line]] = []
    cost = 0
    for line in sorted((line for line in held if line.scored.any()), key=lambda line: -len(line)):
        longest = len(groups[-1][0]) if groups and groups[-1] else len(line)
        more = cost + len(line) if packed else (len(groups[-1]) + 1) * longest if groups else longest
        if not groups or more > limit:
            groups.append([])
            cost = 0
        groups[-1].append(line)
        cost += len(line)
    return groups


def _score(
    model: Any,
    groups: Sequence[Sequence[Line]],
    condition: Condition,
    packed: bool,
    pad_id: int,
    uniform: bool,
    bounds: bool,
    before: int,
    seen: int,
    tell: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Columns of one row group, ordered by example and position."""
    told: list[dict[str, np.ndarray]] = []
    for index, group in enumerate(groups):
        end_to_end = packed and condition.padding is None
        told.append(_batch(model, group, condition, end_to_end, pad_id, uniform, bounds, before + index))
        seen += len(group)
        tell(seen)
    columns = {name: np.concatenate([t[name] for t in told]) for name in told[0]} if told else _nothing()
    order = np.lexsort((columns["position"], columns["example"]))
    return {name: column[order] for name, column in columns.items()}


def _batch(
    model: Any,
    group: Sequence[Line],
    condition: Condition,
    packed: bool,
    pad_id: int,
    uniform: bool,
    bounds: bool,
    place: int,
) -> dict[str, np.ndarray]:
    from loratlas.evaluation.token_statistics import token_facts

    batch, told = batch_of(group, packed=packed, pad_id=pad_id, ahead=condition.ahead)
    if not batch.labelled:
        return _nothing()
    inner = unwrap(model)
    device = inner.get_input_embeddings().weight.device
    with drawing(condition, place, device):
        facts = token_facts(model, batch.to(device), uniform=uniform, bounds=bounds)
    none = np.full(len(told), np.nan, dtype=np.float32)
    return {
        "example": told.example,
        "position": told.position,
        "segment": told.segment,
        "counted": told.counted,
        "nll": facts.nll.cpu().numpy(),
        "uniform": none if facts.uniform is None else facts.uniform.cpu().numpy(),
        "error": none if facts.error is None else facts.error.cpu().numpy(),
    }


def _nothing() -> dict[str, np.ndarray]:
    kinds = {"example": np.int32, "position": np.int32, "segment": np.int8, "counted": np.bool_}
    names = ("example", "position", "segment", "counted", "nll", "uniform", "error")
    return {name: np.zeros(0, dtype=kinds.get(name, np.float32)) for name in names}


def weights_digest(model: Any) -> str:
    """CRC-32 over names, shapes and the first `SAMPLE` numbers of every weight: enough to tell runs apart."""
    import torch

    total = 0
    for name, tensor in sorted(model.state_dict().items()):
        head = tensor.detach().reshape(-1)[:SAMPLE].contiguous().cpu()
        total = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), total)
        total = zlib.crc32(head.view(torch.uint8).numpy().tobytes(), total)
    return f"{total:08x}"
