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
class Measured:
    """Where regrets were measured, and that of adapters on everything at one rank.

    Args:
        tasks: base → its tasks, one case each. budget: that every plan spent.
        everywhere: regret of ``all``.
    """

    tasks: Mapping[str, tuple[str, ...]]
    budget: str
    everywhere: float


MEASURED = Measured(
    tasks={"llama-mini": ("e2e", "facts-300", "nl2bash", "retrieval"), "gpt2-mini": ("nl2bash",)},
    budget="all:1",
    everywhere=0.460,
)
"""Without cases in which placement made no difference that could be told from noise."""

REGRET = {
    "probe_energy": 0.207,
    "spectrum": 0.469,
    "alignment": 0.619,
    "gradient": 0.825,
    "activation": 1.530,
    "probe": 1.747,
    "attention": 1.763,
}
"""Upper bound by column; as in ``benchmarks/results/oracle.json``."""


def track_record(by: str) -> str:
    """What plans by a score have lost, in a sentence for whoever follows one.

    Args:
        by: the column that placed.

    Example:
        >>> track_record("probe_energy")[:56]
        'Measured by training: plans by probe_energy lost 21 % of'
    """
    if by not in REGRET:
        best = min(REGRET, key=REGRET.__getitem__)
        return f"What plans by {by} lose was not measured; of the scores that were, {best} loses least."
    cases = sum(len(tasks) for tasks in MEASURED.tasks.values())
    where = f"{cases} cases on {' and '.join(MEASURED.tasks)}, the parameters of {MEASURED.budget}"
    return (
        f"Measured by training: plans by {by} lost {_percent(REGRET[by])} of what random plans lose, "
        f"the same rank everywhere {_percent(MEASURED.everywhere)} ({where}). Other models and tasks may differ."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
