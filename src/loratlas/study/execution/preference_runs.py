"""The worker's end of a study of preferences: training by TRL, and losses of pairs against the bare base."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any


def fit_pairs(model: Any, pairs: Any, setup: Mapping[str, Any], settings: Any, on_step: Any) -> Any:
    """Train a run's adapter by TRL's `DPOTrainer`.

    Args:
        model: the `PeftModel`. pairs: to train on. setup: the coordinator's. settings: of the run.
        on_step: called after every step.
    """
    from loratlas.data.encode import load_tokenizer
    from loratlas.training.trl_preferences import fit_preferences

    tokenizer = load_tokenizer(setup["model"])
    return fit_preferences(model, pairs, tokenizer, settings, beta=setup["trainer"]["beta"], on_step=on_step)


def judge_pairs(
    model: Any, pairs: Any, *, beta: float, packed: bool, known: dict[int, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Losses of pairs, what the record says of the answers that are ahead, and the table of margins.

    Args:
        model: bare, or with its adapter. pairs: to judge on. beta: of DPO. packed: how answers are scored.
        known: what the bare base makes of each set of pairs, by its identity; filled here.
    """
    from loratlas.evaluation.preference_losses import PREFERENCES, answer_gaps, judge_preferences

    gaps, base = answer_gaps(model, pairs, packed=packed), known.get(id(pairs))
    if base is None:
        with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
            base = known[id(pairs)] = answer_gaps(model, pairs, packed=packed)
    judged = judge_preferences(gaps, base, beta=beta)
    said = {"name": "preference_accuracy", "value": judged.accuracy, "rows": len(judged.margin)}
    return judged.scores, {"metric": said}, {PREFERENCES: judged.columns()}
