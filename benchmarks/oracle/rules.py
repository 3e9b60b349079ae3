"""Rules that place adapters before training: each signal with the allocator it was published with, and with ours.

Every rule spends the same parameters, so that what a rule's paper lets vary (how many modules, how many ranks) is the
budget's to decide here. Departures are in each rule's docstring.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.placement.allocate import allocate
from loratlas.placement.budget import allowance, parse_budget
from loratlas.placement.canonical import table_text
from loratlas.placement.plan import place, place_allocation
from loratlas.scan.plan_from_scores import candidates, gains, plan_from
from loratlas.scan.scores import Scan

PLOP_TYPES = 3
"""Module types that PLoP's rule adapts, of those with the lowest mean."""

KAPPA_SHARE = 1 / 3
"""Share of the matrices that KappaTune's rule adapts, of those with the lowest condition number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a rule may look at.

    Args:
        anatomy: of the base. scan: of the task's training rows. budget: to spend.
        adalora: makes a short AdaLoRA run and says path → rank; called only by the rule that needs it.
    """

    anatomy: Anatomy
    scan: Scan
    budget: str
    adalora: Callable[[], Mapping[str, int]] | None = None


def ours(column: str) -> Callable[[Given], str]:
    """A column with our allocator: marginal gain per parameter, see `loratlas.placement.allocate`."""

    def rule(given: Given) -> str:
        return plan_from(given.scan, given.anatomy, budget=given.budget, by=column)[0].text

    return rule


def powered(column: str, power: float) -> Callable[[Given], str]:
    """A column's values to a power, with our allocator; 0.5 makes norms of energies."""

    def rule(given: Given) -> str:
        reading = given.scan.readings[column]
        raised = replace(reading, values={path: value**power for path, value in reading.values.items()})
        curves = gains(raised, candidates(given.anatomy))
        return place_allocation(given.anatomy, allocate(given.anatomy, curves, given.budget)).text

    return rule


def eva(given: Given) -> str:
    """EVA's redistribution (arXiv:2410.07170): ranks go to the components with the largest explained variance of the
    whole model. Departure: they are taken while parameters last, not up to a number of ranks."""
    reading = given.scan.readings["activation"]
    listed = gains(reading, candidates(given.anatomy))
    left = allowance(parse_budget(given.budget), given.anatomy)
    price = {site.path: site.lora_parameters(1) for site in given.anatomy.sites}
    ranks: dict[str, int] = defaultdict(int)
    for _, path in sorted(((gain, path) for path, told in listed.items() for gain in told), reverse=True):
        if price[path] <= left:
            ranks[path] += 1
            left -= price[path]
    return _text(given, ranks)


def plop(given: Given) -> str:
    """PLoP's rule (arXiv:2506.20629): the module types whose normalised feature norm, averaged over layers, is lowest,
    in all layers, at equal rank."""
    told = given.scan.readings["alignment"].values
    by_role: dict[str, list[float]] = defaultdict(list)
    for site in candidates(given.anatomy):
        by_role[site.role].append(told[site.path])
    lowest = sorted(by_role, key=lambda role: float(np.mean(by_role[role])))[:PLOP_TYPES]
    return place(given.anatomy, ",".join(lowest), budget=given.budget).text


def kappatune(given: Given) -> str:
    """KappaTune's rule (arXiv:2506.16289): the matrices with the lowest condition numbers, at equal rank."""
    told = given.scan.readings["spectrum"].values
    lowest = sorted(told, key=lambda path: told[path])[: max(1, round(len(told) * KAPPA_SHARE))]
    return _equal(given, lowest)


def adalora(given: Given) -> str:
    """AdaLoRA's ranks (arXiv:2303.10512) after a short run of its own. Departure: its ranks are stretched to the
    budget in proportion, and trained anew as plain LoRA."""
    assert given.adalora is not None
    found = given.adalora()
    root = np.diff(np.sqrt(np.arange(65)))
    curves = {
        site.path: (found.get(site.path, 0) * root[: site.max_rank]).tolist()
        for site in candidates(given.anatomy)
    }
    return place_allocation(given.anatomy, allocate(given.anatomy, curves, given.budget)).text


RULES: dict[str, Callable[[Given], str]] = {
    "gradient": ours("gradient"),
    "energy": ours("gradient_energy"),
    "eva": eva,
    "plop": plop,
    "kappatune": kappatune,
    "probe": ours("probe"),
    "probe_energy": ours("probe_energy"),
    "probe_norm": powered("probe_energy", 0.5),
    "probe_descent": ours("probe_descent"),
    "probe_yield": ours("probe_yield"),
    "adalora": adalora,
    "activation": ours("activation"),
    "alignment": ours("alignment"),
    "attention": ours("attention"),
    "spectrum": ours("spectrum"),
}
"""Name → placement text. ``energy`` spends what LoRA-GA (arXiv:2407.05000) initialises from."""


def signals_of(rules: Sequence[str]) -> list[str]:
    """The signals that a scan must measure for these rules; always the ones that share its passes."""
    from loratlas.signals.registry import untrained

    trials = [rule for rule in rules if rule.startswith("probe")]
    return [*untrained(), *(["probe"] if "probe" in trials else ["probe_yield"] if trials else [])]


def _text(given: Given, ranks: Mapping[str, int]) -> str:
    return table_text(given.anatomy, {path: rank for path, rank in ranks.items() if rank})


def _equal(given: Given, paths: Sequence[str]) -> str:
    sites: list[Site] = [given.anatomy.site(path) for path in paths]
    text = ",".join(f'"{site.module}"' for site in sites)
    return place(given.anatomy, text, budget=given.budget).text


def run_adalora(model: Any, anatomy: Anatomy, rows: Any, *, steps: int = 30, seed: int = 0) -> dict[str, int]:
    """Path → rank that PEFT's AdaLoRA leaves, from rank 3 to 1 on average, in a run of its own.

    Args:
        model: a bare base of its own; it is spent.
        anatomy: of it.
        rows: encoded rows to train on.
        steps: of 16 rows.
        seed: of order and initialisation.
    """
    import torch
    from peft import AdaLoraConfig, get_peft_model

    from loratlas.data.batches.batching import collate, training_order

    sites = candidates(anatomy)
    config = AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=3,
        target_r=1,
        tinit=steps // 5,
        tfinal=steps // 3,
        deltaT=1,
        total_step=steps,
        lora_alpha=6,
        target_modules=[site.module for site in sites],
    )
    torch.manual_seed(seed)
    tuned = get_peft_model(model.float(), config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for step, chosen in enumerate(training_order(len(rows), steps=steps, batch_size=16, seed=seed)):
        batch = collate([rows.examples[i] for i in chosen], packed=False, pad_id=rows.pad_id)
        labels = torch.full_like(batch.input_ids, -100)
        labels[:, 1:] = batch.targets[:, :-1]  # the model shifts labels itself
        out = tuned(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
        out.loss.backward()
        optimizer.step()
        tuned.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    pattern = tuned.peft_config["default"].rank_pattern
    found = {}
    for site in sites:
        (kept,) = [mask for name, mask in pattern.items() if f".{site.module}." in f".{name}"]
        found[site.path] = int(sum(kept))
    return found
