"""Definitions of "the loss" that tools report, and the exact reason why they differ.

All of it follows from n_i, the counted tokens of example i, and L_i, its summed loss; ℓ̄_i = L_i / n_i is its mean.
The derivations are in docs/method/metrics.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.evaluation.tokens import Scores


def definitions(scores: Scores) -> dict[str, float]:
    """Every definition by name.

    ``token_mean``
        Σ L_i / Σ n_i, nats per token: the loss of loratlas. ``perplexity`` is its exponential.
    ``example_mean``
        (1/N) Σ ℓ̄_i: a mean of per-example means. ``example_mean_perplexity`` is its exponential.
    ``median``
        The median of ℓ̄_i. ``median_perplexity`` is its exponential.
    ``mean_example_perplexity``
        (1/N) Σ exp ℓ̄_i: an average of per-example perplexities.
    ``sum``
        Σ L_i, nats.

    Args:
        scores: of at least one example.

    Returns:
        The values; a perplexity beyond the range of numbers is infinite.

    Raises:
        DataError: no examples, or one without a counted token.

    >>> s = Scores(example=np.array([0, 1]), n=np.array([1, 3]), nll=np.array([2.0, 3.0]))
    >>> {name: round(value, 3) for name, value in list(definitions(s).items())[:3]}
    {'token_mean': 1.25, 'perplexity': 3.49, 'example_mean': 1.5}
    """
    n, means = _table(scores)
    total = float(scores.nll.sum())
    with np.errstate(over="ignore"):
        values = {
            "token_mean": total / float(n.sum()),
            "perplexity": np.exp(total / n.sum()),
            "example_mean": means.mean(),
            "example_mean_perplexity": np.exp(means.mean()),
            "median": np.median(means),
            "median_perplexity": np.exp(np.median(means)),
            "mean_example_perplexity": np.exp(means).mean(),
            "sum": total,
        }
    return {name: float(value) for name, value in values.items()}


def gaps(scores: Scores) -> list[dict[str, Any]]:
    """What takes the token mean to each other definition, each term by its own formula and never by subtraction.

    ``token mean → example mean``
        −Cov(n_i, ℓ̄_i) / n̄: long examples weigh more in the token mean.
    ``example mean → log of the mean example perplexity``
        log (1/N) Σ exp(ℓ̄_i − mean ℓ̄): Jensen's gap, never negative; ``estimate`` is its second-order value
        Var(ℓ̄_i) / 2.
    ``example mean → median``
        (1/N) (Σ over examples below the median of their distance to it − the same above): the skew.

    Args:
        scores: of at least one example.

    Returns:
        Per term ``term``, ``from``, ``to``, ``nats`` (add it to what stands before the arrow) and, for Jensen's gap,
        ``estimate``.

    Raises:
        DataError: see `definitions`.
    """
    n, means = _table(scores)
    off = means - means.mean()
    covariance = float(((n - n.mean()) * off).mean())
    # Σ off is 0 but for rounding; leaving it out keeps a small gap exact where exp − 1 would drown it.
    with np.errstate(over="ignore"):
        jensen = float(np.log1p((np.expm1(off) - off).mean()))
    distance = means - np.median(means)
    below, above = -distance[distance < 0].sum(), distance[distance > 0].sum()
    return [
        _term("token_mean", "example_mean", "long examples weigh more", -covariance / float(n.mean())),
        _term("example_mean", "log_mean_example_perplexity", "Jensen's gap", jensen)
        | {"estimate": float((off**2).mean() / 2)},
        _term("example_mean", "median", "skew of the examples", float(below - above) / len(means)),
    ]


def residual(scores: Scores) -> float:
    """Largest part of a gap that `gaps` leaves unexplained, nats; rounding only, at most 1e-6 (law 6)."""
    found = definitions(scores)
    _, means = _table(scores)
    top = means.max()
    wanted = {
        "example_mean": found["example_mean"],
        "median": found["median"],
        "log_mean_example_perplexity": float(top + np.log(np.exp(means - top).mean())),
    }
    reached = {"token_mean": found["token_mean"]}
    for gap in gaps(scores):
        reached[gap["to"]] = reached[gap["from"]] + gap["nats"]
    return max(abs(reached[name] - value) for name, value in wanted.items())


def _term(start: str, end: str, why: str, nats: float) -> dict[str, Any]:
    arrow = f"{start.replace('_', ' ')} → {end.replace('_', ' ')}: {why}"
    return {"term": arrow, "from": start, "to": end, "nats": nats}


def _table(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    if not len(scores.n):
        raise DataError(given="scores to audit", found="no examples", instead="at least one")
    empty = np.flatnonzero(np.asarray(scores.n) < 1)
    if len(empty):
        raise DataError(
            given="scores to audit",
            found=f"example {int(scores.example[empty[0]])} has no counted token",
            instead="examples with an answer",
        )
    n = np.asarray(scores.n, dtype=np.float64)
    return n, np.asarray(scores.nll, dtype=np.float64) / n
