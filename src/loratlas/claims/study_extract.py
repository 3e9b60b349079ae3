"""What a claim needs of a study: its arms, its findings and its reach, without the runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratlas.models.task import CAUSAL

ARM = ("name", "placement", "trainable", "lr", "nll", "ci", "step_time_ratio")
FINDING = (
    "arm", "versus", "difference", "ci", "p_holm", "verdict", "detectable", "seeds", "examples", "steps_saved",
)  # fmt: skip

WIDEST = 1.7
"""Learning rates further apart than this were shown to turn verdicts round; the second edition's are 1.6 apart."""


def extract(study: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a study's JSON that claims are judged by.

    Args:
        study: schema ``loratlas.study``, finished or not.
    """
    spec, data = study["spec"], study["data"]
    ranks = study.get("ranks") or {"opposed": [], "compared": 0}  # studies before definitions were compared
    return {
        "name": study["name"],
        "base": Path(str(study["base"]["model"]).removeprefix("demo:").removeprefix("real:")).name,
        "model_type": study["base"]["model_type"],
        "parameters": study["base"]["parameters"],
        "task": task_name(str(data["train"]["source"])),
        "kind": (study.get("task") or {"name": CAUSAL})["name"],
        "steps": spec["steps"],
        "batch_size": spec["batch_size"],
        "match": spec["match"],
        "delta": spec["delta"],
        "reference": study["reference"],
        "complete": study["complete"],
        "superseded": superseded(study),
        "rates_apart": rates_apart(study["learning_rates"]),
        "base_nll": study["base_nll"],
        "arms": [{name: arm.get(name) for name in ARM} for arm in study["arms"]],
        "findings": [{name: finding.get(name) for name in FINDING} for finding in study["findings"]],
        "opposed": [
            {name: pair.get(name) for name in ("by", "first", "second", "established", "sentence")}
            for pair in ranks["opposed"]
        ],
        "compared": ranks["compared"],
        "runs": study["runs"],
        "spec_digest": study["spec_digest"],
    }


def task_name(source: str) -> str:
    """The name of the rows, without what they are for.

    >>> task_name("${SHARED}/data/nl2bash_train.jsonl.gz"), task_name("demo:facts-300"), task_name("tatsu-lab/alpaca")
    ('nl2bash', 'facts-300', 'alpaca')
    """
    return Path(source.removeprefix("demo:")).name.partition(".")[0].removesuffix("_train")


def rates_apart(rates: list[float]) -> float | None:
    """The largest factor between neighbouring learning rates; None for a single one."""
    ordered = sorted(rates)
    return max((high / low for low, high in itertools.pairwise(ordered)), default=None)


def superseded(study: Mapping[str, Any]) -> bool:
    """Whether a study ran by the protocol's first edition: rates too far apart for its verdicts to stand."""
    if "superseded" in study:
        return bool(study["superseded"])
    apart = rates_apart(study["learning_rates"])
    return apart is not None and apart > WIDEST
