"""The law of a budget: whatever a policy wants, no more parameters are left than are allowed."""

from __future__ import annotations

from dataclasses import replace

from loratlas.dynamic.moves import Decided
from loratlas.dynamic.run_evidence import Evidence

REASON = "the budget"
"""Why a site loses ranks that its policy would have left it."""


def within_budget(decided: Decided, evidence: Evidence, allowed: int) -> Decided:
    """The same where it is allowed; else without the directions that have done least for their parameters.

    A direction's worth is σ²/c: its part of ‖ΔW‖²_F for each of its parameters, 0 of one that has not begun yet. A site
    that is left with r ranks keeps its r leading directions, so that the last ones go first. One direction stays, since
    PEFT has no adapter without any.

    Args:
        decided: by a policy.
        evidence: that it was decided by.
        allowed: parameters afterwards, at most.

    Example:
        >>> from loratlas.anatomy.sites import Site
        >>> a, b = (Site(path=f"{n}.weight", module=n, layer=0, scope="decoder", role="attn.q", shape=(8, 8),
        ...              kind="linear") for n in "ab")
        >>> ranks = {"a.weight": 2, "b.weight": 2}
        >>> spectra = {"a.weight": [3.0, 2.0], "b.weight": [9.0, 1.0]}
        >>> known = Evidence(step=4, sites=(a, b), ranks=ranks, spectra=spectra)
        >>> kept = within_budget(Decided(ranks=ranks, reasons={}, gains={}), known, 48)
        >>> kept.ranks, kept.reasons
        ({'a.weight': 2, 'b.weight': 1}, {'b.weight': 'the budget'})
    """
    prices, ranks = evidence.prices, dict(decided.ranks)
    used = sum(prices[path] * rank for path, rank in ranks.items())
    if used <= allowed:
        return decided

    def last(path: str) -> float:
        """The worth of a site's last direction."""
        spectrum = evidence.spectra.get(path, ())
        return spectrum[ranks[path] - 1] ** 2 / prices[path] if ranks[path] <= len(spectrum) else 0.0

    while used > allowed and sum(ranks.values()) > 1:
        path = min((path for path, rank in ranks.items() if rank), key=last)
        ranks[path] -= 1
        used -= prices[path]
    if used > allowed:  # what is left is dearer than the budget: the cheapest site begins anew
        cheapest = min(ranks, key=lambda path: prices[path])
        ranks = dict.fromkeys(ranks, 0) | {cheapest: 1}
    touched = {path for path, rank in ranks.items() if rank != decided.ranks[path]}
    changed = {path for path, rank in ranks.items() if rank != evidence.ranks[path]}
    reasons = {path: REASON if path in touched else decided.reasons.get(path, "") for path in changed}
    note = f"{decided.note}; {REASON} takes ranks" if decided.note else f"{REASON} takes ranks"
    return replace(
        decided,
        ranks=ranks,
        reasons={path: reason for path, reason in reasons.items() if reason},
        gains={path: gain for path, gain in decided.gains.items() if path in changed - touched},
        note=note,
    )
