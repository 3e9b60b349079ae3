"""ROUGE-L of an answer, through the package ``rouge-score``."""

from __future__ import annotations

from collections.abc import Callable

from loratlas.errors import SettingsError


def rouge_l() -> Callable[[str, str], float]:
    """A function of (wanted, answer) that gives the F1 of their longest common subsequence of words.

    With m words in common, in this order but not side by side: P = m / words of the answer, R = m / words wanted,
    F1 = 2PR / (P + R); 0 where nothing is in common. Words are lower-cased runs of letters and digits, not stemmed.

    Raises:
        SettingsError: ``rouge-score`` is not installed.

    Source:
        C.-Y. Lin (2004), ROUGE: a package for automatic evaluation of summaries.

    >>> round(rouge_l()("the cat sat on the mat", "the cat on a mat"), 4)    # the, cat, on, mat: P = 4/5, R = 4/6
    0.7273
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise SettingsError(
            given="ROUGE-L",
            found="the package rouge-score is not installed",
            instead='pip install "loratlas[rouge]"',
        ) from error
    scorer = RougeScorer(["rougeL"])
    return lambda wanted, answer: float(scorer.score(wanted, answer)["rougeL"].fmeasure)
