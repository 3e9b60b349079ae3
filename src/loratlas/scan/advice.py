"""The score that decides, and how good advice by a score has been where it was measured.

A scan recommends; a **regret** says what following it cost. It is measured by training everything that could have been
chosen (``benchmarks/oracle``), and pooled over cases:

    regret = Σ (loss of the plan − lowest loss of all plans) / Σ (mean loss of random plans − lowest loss)

at equal parameters, every plan with its own best learning rate, on seeds that nothing was chosen on: 0 is the best
there is, 1 is what chance loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DECIDES = "probe_yield"
"""The column that places adapters unless another is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegretRecord:
    """Where regrets were measured, and that of adapters on everything at one rank.

    Args:
        tasks: base → its tasks, one case each. budget: that every plan spent.
        everywhere: regret of ``all``.
        unseen: regret of `DECIDES` in the cases that nothing of it was chosen by.
    """

    tasks: Mapping[str, tuple[str, ...]]
    budget: str
    everywhere: float
    unseen: float


MEASURED = RegretRecord(
    tasks={"llama-mini": ("e2e", "facts-300", "nl2bash", "retrieval"), "gpt2-mini": ("nl2bash",)},
    budget="all:1",
    everywhere=0.517,
    unseen=0.263,
)
"""Without cases in which placement made no difference beyond noise."""

REGRET = {
    "probe_yield": 0.039,
    "probe_descent": 0.208,
    "probe_energy": 0.263,
    "spectrum": 0.524,
    "alignment": 0.659,
    "gradient": 0.844,
    "probe": 1.012,
    "activation": 1.474,
    "attention": 1.683,
}
"""Upper bound by column; as in ``benchmarks/results/oracle.json``."""


LENGTHS: Mapping[int, tuple[float, float]] = {80: (3.45, 2.05), 40: (3.46, 2.30), 20: (3.65, 2.25)}
"""Steps of a trial → losses that plans by its scores ended at, on the embedded tasks retrieval and facts. Shorter
trials have not seen what overshoots."""


def about_length(steps: int) -> str | None:
    """What trials shorter than usual are worth, in a sentence; None for trials of the usual length.

    Args:
        steps: of a trial.

    >>> about_length(80)
    >>> about_length(40)[:47]
    'Trials of 40 steps instead of 80 know less: on '
    """
    usual = max(LENGTHS)
    if steps >= usual:
        return None
    measured = min((length for length in LENGTHS if length >= steps), default=usual)
    a, b = LENGTHS[measured]
    c, d = LENGTHS[usual]
    return (
        f"Trials of {steps} steps instead of {usual} know less: on two embedded tasks plans after {measured} steps "
        f"ended at {a:.2f} and {b:.2f} nats, after {usual} at {c:.2f} and {d:.2f} (--trial-steps {usual})."
    )


def track_record(by: str) -> str:
    """What plans by a score have lost, in a sentence.

    Args:
        by: the column that placed.

    Example:
        >>> track_record("probe_yield")[:54]
        'Measured by training: plans by probe_yield lost 4 % of'
    """
    if by not in REGRET:
        best = min(REGRET, key=REGRET.__getitem__)
        return f"What plans by {by} lose was not measured; of the scores that were, {best} loses least."
    cases = sum(len(tasks) for tasks in MEASURED.tasks.values())
    where = f"{cases} cases on {' and '.join(MEASURED.tasks)}, the parameters of {MEASURED.budget}"
    unseen = f"{_percent(MEASURED.unseen)} in those that it was not chosen by; " if by == DECIDES else ""
    return (
        f"Measured by training: plans by {by} lost {_percent(REGRET[by])} of what random plans lose, {unseen}"
        f"the same rank everywhere {_percent(MEASURED.everywhere)} ({where}). Other models and tasks may differ."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
