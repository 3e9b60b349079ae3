"""What other benches of placement inside the run found, as sections of its page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any

from scipy.stats import t as student


def sections(results: Path) -> list[str]:
    """Lines of all sections.

    Args:
        results: folder with ``moving/moving_cost.json``, ``controls.json`` and ``rates.json``; what is missing is
            said.
    """
    lines: list[str] = []
    for name, command, title, words in (
        ("moving_cost.json", "python -m benchmarks.moving_cost", "What moving costs", _cost),
        (
            "controls.json",
            "python -m benchmarks.dynamic.controls",
            "Place, path or pause: controls",
            _controls,
        ),
        (
            "rates.json",
            "python -m benchmarks.dynamic.rates",
            "The learning rate, decided in the head",
            _rates,
        ),
    ):
        path = results / "moving" / name
        lines += ["", f"## {title}", ""]
        if path.exists():
            lines += words(json.loads(path.read_text(encoding="utf-8")))
            lines += ["", f"([{name}](../../benchmarks/results/moving/{name}), by `{command}`.)"]
        else:
            lines.append(f"Not measured yet: `{command}`.")
    return lines


def _cost(measured: Mapping[str, Any]) -> list[str]:
    cost = measured["cost"]
    return paragraph(
        f"A run of {cost['steps']} steps that decides at a tenth of them takes {cost['time_ratio']:.3f} times the CPU "
        f"time of the same run whose adapters stay, and {cost['peak_ratio']:.3f} times its peak memory (medians of "
        f"{len(cost['time_ratios'])} pairs, in turns). After half of the ranks was dropped, adapters and optimizer "
        f"hold {_percent(measured['memory']['ratio'])} of their bytes. Growing every site by a rank changes logits by "
        f"{measured['growth']['relative']:.1g} of the largest in float32. Adapters of this run begin as PEFT begins "
        "them: what reading the first rows takes where `auto` begins along its inputs, 1.7 % of the run's arithmetic "
        "at most, is not in it, and its time was not measured."
    )


def _controls(measured: Mapping[str, Any]) -> list[str]:
    freedom = len(measured["seeds"]) - 1
    # With few seeds the normal quantile, 1.96, would call noise a difference.
    quantile = float(student.ppf(0.975, freedom))
    lines = paragraph(
        f"Arm − `all`, nats per token on {measured['task']}; same rate, steps, rows and final parameters, "
        f"paired over {freedom + 1} seeds; ± is half of the 95 % interval of Student's t with {freedom} degrees of "
        f"freedom, {quantile:.2f} standard errors, seeds only. *Shift*: the first {_percent(measured['shift'])} of "
        "the steps see Alpaca."
    )
    for scenario in measured["scenarios"]:
        lines += [
            "",
            f"{scenario['base']}, {scenario['scenario']}, {scenario['steps']} steps at {scenario['lr']:g}:",
            "",
            "| arm | moves | loss | arm − all |",
            "|---|---|---|---|",
        ]
        for arm in scenario["arms"]:
            apart = f"{arm['minus_all']:+.4f} ± {quantile * arm['standard_error']:.4f}"
            cells = (arm["arm"], f"{mean(arm['moves']):.1f}", f"{arm['nll']:.4f}", apart)
            lines.append(f"| {' | '.join((*cells[:3], '–') if arm['arm'] == 'all' else cells)} |")
    return lines


def _rates(measured: Mapping[str, Any]) -> list[str]:
    price, cases = measured["summary"]["price"], measured["cases"]
    lines = paragraph(
        f"`--lr auto` against the best of the whole grid (1.6 apart, every rate trained in full), {len(cases)} "
        f"{'case' if len(cases) == 1 else 'cases'} with all seeds. *Gap*: held-out loss above that of the "
        "tuned rate, same seed, nats per token. The price of "
        f"`auto` are steps that went to other rates: {_percent(price['mean'])} of the run in the mean, "
        f"{_percent(price['most'])} at most."
    )
    lines += ["", "| rate | runs | gap ≤ 0.01 | mean gap | worst gap |", "|---|---|---|---|---|"]
    for name, rule in measured["summary"]["rules"].items():
        cells = (
            name,
            str(rule["runs"]),
            _percent(rule["close"]),
            f"{rule['mean_gap']:+.4f}",
            f"{rule['worst_gap']:+.4f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| case | tuned rate | chosen, by seed | gaps of auto |", "|---|---|---|---|"]
    for case in cases:
        chosen = ", ".join(f"{entry['chosen']:g}" for entry in case["auto"])
        gaps = ", ".join(f"{entry['gap']:+.4f}" for entry in case["auto"])
        lines.append(f"| {case['case']} | {case['tuned']:g} | {chosen} | {gaps} |")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table, an empty one before it.

    >>> table(["case", "steps"], [("style", 40)])
    ['', '| case | steps |', '|---|---|', '| style | 40 |']
    """
    written = [head, *rows]
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in written]
    return ["", lines[0], "|---" * len(head) + "|", *lines[1:]]


def paragraph(text: str) -> list[str]:
    """A paragraph in lines of at most 110 characters."""
    return wrap(text, 110, break_long_words=False, break_on_hyphens=False)
