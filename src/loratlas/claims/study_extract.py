"""What a claim needs of a study: its arms, its findings and its reach, without the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratlas.models.task import CAUSAL

ARM = ("name", "placement", "trainable", "lr", "nll", "ci", "step_time_ratio")
FINDING = (
    "arm", "versus", "difference", "ci", "p_holm", "verdict", "detectable", "seeds", "examples", "steps_saved",
)  # fmt: skip


def extract(study: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a study's JSON that claims are judged by.

    Args:
        study: schema ``loratlas.study``, finished or not.
    """
    spec, data = study["spec"], study["data"]
    # The first studies compared no definitions.
    ranks = study.get("ranks") or {"opposed": [], "compared": 0, "measures": []}
    return {
        "name": study["name"],
        "base": base_name(str(study["base"]["model"])),
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
        # A result that names no protocol was written before there was a second edition.
        "superseded": study.get("protocol", 1) == 1,
        "tuning_seeds": tuning_seeds(study),
        "base_nll": study["base_nll"],
        "arms": [
            {name: arm.get(name) for name in ARM} | {"all_layers": _all_layers(arm), "tuning": _tuning(arm)}
            for arm in study["arms"]
        ],
        "findings": [{name: finding.get(name) for name in FINDING} for finding in study["findings"]],
        "opposed": [_opposed(pair, ranks["measures"]) for pair in ranks["opposed"]],
        "compared": ranks["compared"],
        "runs": study["runs"],
        "spec_digest": study["spec_digest"],
    }


def tuning_seeds(study: Mapping[str, Any]) -> int | None:
    """The fewest seeds that any arm's learning rate was chosen by: at its three rates around the optimum, in the first
    edition at all that it tried. Counted in the runs, for a study file may ask for fewer than are trained there.

    Returns:
        None where an arm's tuning runs were not kept.
    """
    fewest = []
    for arm in study["arms"]:
        seeds: dict[float, set[int]] = {}
        for run in arm.get("tuning") or ():
            seeds.setdefault(run["lr"], set()).add(run["seed"])
        fewest += [len(seeds.get(rate, ())) for rate in arm.get("near") or seeds] or [0]
    return min(fewest) or None


def _opposed(pair: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Two arms that a measure ranks the other way round: first − second by the token mean, and by that measure."""
    units = {measure["name"]: measure["unit"] for measure in measures}
    return {
        **{name: pair[name] for name in ("by", "first", "second", "established", "sentence")},
        "token_mean": pair["loss"]["difference"],
        "other": {name: pair["other"][name] for name in ("difference", "ci")},
        "unit": units[pair["by"]],
    }


def _all_layers(arm: Mapping[str, Any]) -> bool:
    """Whether every linear layer has an adapter, all of one rank, by whatever words the placement says so."""
    plan = arm["plan"]
    ranks = {site["rank"] for site in plan["sites"]}
    return len(ranks) == 1 and plan["trainable"] == ranks.pop() * plan["full_unit"]


def _tuning(arm: Mapping[str, Any]) -> dict[str, float]:
    """Learning rate → mean loss of the tuning runs; without rates at which one diverged."""
    losses: dict[float, list[float | None]] = {}
    for run in arm.get("tuning") or ():
        losses.setdefault(run["lr"], []).append(None if run["diverged"] else run["nll"])
    return {
        f"{lr:g}": round(sum(known) / len(known), 5)
        for lr, listed in sorted(losses.items())
        if (known := [loss for loss in listed if loss is not None]) and len(known) == len(listed)
    }


def base_name(model: str) -> str:
    """The name of a base, wherever it lies.

    >>> base_name("demo:llama-mini"), base_name("${LORATLAS_BASES}/gpt2-mini"), base_name("${LORATLAS_MINILM}")
    ('llama-mini', 'gpt2-mini', 'minilm')
    """
    name = Path(model.removeprefix("demo:").removeprefix("real:")).name
    if name.startswith("${"):  # the whole folder is a variable, which is named after what it holds
        return name.strip("${}").removeprefix("LORATLAS_").lower()
    return name


def task_name(source: str) -> str:
    """The name of the rows, without what they are for.

    >>> task_name("${SHARED}/data/nl2bash_train.jsonl.gz"), task_name("demo:facts-300"), task_name("tatsu-lab/alpaca")
    ('nl2bash', 'facts-300', 'alpaca')
    """
    return Path(source.removeprefix("demo:")).name.partition(".")[0].removesuffix("_train")
