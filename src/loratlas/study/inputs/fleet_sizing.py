"""How many runs of a study a worker trains side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratlas.study.spec.study_spec import StudySpec

if TYPE_CHECKING:
    from loratlas.study.inputs.prepare import Prepared

MOST = 9
"""Largest fleet: what a killed worker loses since its last checkpoint stays small."""

BYTES = {"bfloat16": 2, "float32": 4}
"""Of a number of the base."""


def runs_per_pass(tokens: float, device: str) -> int:
    """How many runs, of micro-batches of so many tokens, share a pass through the base; `MOST` at most.

    A pass that one run's micro-batch fills gains nothing from company; then every run is trained alone.

    >>> runs_per_pass(400, "cpu"), runs_per_pass(1700, "cpu")
    (5, 1)
    """
    from loratlas.training.fleet.shared_passes import OTHER_TOKENS, PASS_TOKENS

    return max(1, min(MOST, int(PASS_TOKENS.get(device, OTHER_TOKENS) // max(1.0, tokens))))


def fleet_size(spec: StudySpec, prepared: Prepared, device: str, *, free: int) -> int:
    """How many runs a worker trains side by side: as many as share a pass, and as memory holds.

    Of n runs the base is there once, and n times what a dry run of the costliest arm takes beside it.

    Args:
        spec: of the study.
        prepared: its base, plans and rows.
        device: of the workers.
        free: bytes that one worker may take, its base included.
    """
    # Masks of the base's dropout would be those of the whole pass; another library's trainer trains one run.
    if spec.base_dropout or spec.trainer is not None:
        return 1
    together = runs_per_pass(_tokens(spec, prepared), device)
    if together == 1:
        return 1
    base = prepared.anatomy.parameters * BYTES[spec.dtype]
    peaks = [peak for peak in prepared.predicted_peaks().values() if peak is not None]
    if len(peaks) < len(prepared.plans):  # no dry run is possible on this base
        return together
    return max(1, min(together, (free - base) // max(1, max(peaks) - base)))


def _tokens(spec: StudySpec, prepared: Prepared) -> float:
    """What a typical micro-batch takes of a pass: its tokens; side by side its places, padding included."""
    from loratlas.cost.dry_run import typical
    from loratlas.training.step.microbatches import buckets

    rows = min(spec.micro_batch or spec.batch_size, spec.batch_size)
    if prepared.task.why_padded is None and spec.packing != "off":
        return rows * prepared.train.report.tokens / len(prepared.train)
    lengths = [len(example) for example in typical(prepared.train.examples, spec.batch_size)]
    parts = buckets(lengths, most=spec.micro_batch)
    return sum(len(part) * max(lengths[index] for index in part) for part in parts) / len(parts)
