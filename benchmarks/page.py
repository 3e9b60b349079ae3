"""Results as Markdown; every figure comes from the JSON beside it."""

from __future__ import annotations

from typing import Any

SIDES = ("peft", "ours")


def bench(result: dict[str, Any], *, measured_elsewhere: bool) -> str:
    """The page of ``python -m benchmarks``.

    Args:
        result: of the measurement.
        measured_elsewhere: whether figures of an accelerator lie beside this page.
    """
    lines = [
        "# Beside peers",
        "",
        "Made by `make bench`; all figures, machine and versions are in [bench.json](bench.json), what each row means",
        "in [the page about the benchmarks](../README.md). Medians of paired ratios, runs in turns.",
        *_busy(result),
        "",
        "## Alpaca, labelled tokens trained per second",
        "",
        f"Base {result['base']}, {result['placement']}, {result['steps']} steps of 16 rows, {result['threads']} "
        f"threads, {result['rounds']} rounds. Peers at their best: {result['chosen']['Trainer']}; "
        f"{result['chosen']['SFTTrainer']}. *Steady* leaves out each run's first five steps, *whole* is the training "
        "call.",
        "",
        "| row | steady | whole | CPU time, whole | target |",
        "|---|---|---|---|---|",
    ]
    for row in result["table"]:
        figures = [f"{row[kind]['median']:.2f}" for kind in ("steady", "whole", "whole_cpu")]
        lines.append(f"| {row['row']} | {' | '.join(figures)} | ≥ {row['target']:g} |")
    lines += [*_step(result["step"]), *_memory(result["memory"]), *_study(result["study"])]
    losses = ", ".join(f"{name} {runs[0]['nll']:.3f}" for name, runs in result["runs"].items())
    lines += [
        "",
        "## The same work",
        "",
        "Adapter gradients against PEFT's on fixed rows, float32: "
        f"{result['gradient_difference']:.1e} apart on Alpaca, "
        + ", ".join(
            f"{value:.1e} on {name}" for name, value in result["step"]["gradient_differences"].items()
        )
        + f". Held-out losses, nats per token: {losses}.",
        "",
        "On an accelerator: "
        + ("[accelerator.md](accelerator.md)." if measured_elsewhere else "not measured."),
    ]
    return "\n".join(lines) + "\n"


def _step(step: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## A step over the frozen base's floor",
        "",
        f"{step['placement']}, {step['dtype']}, CPU time.",
        "",
        "| base | dropout | code | PEFT's layers | loratlas | target |",
        "|---|---|---|---|---|---|",
    ]
    for case in step["cases"]:
        theirs, own = (case[f"{side}_over_floor"]["cpu"]["median"] for side in SIDES)
        code = "compiled" if case["compiled"] else "eager"
        lines.append(
            f"| {case['base']} | {case['dropout']:g} | {code} | {theirs:.2f} | {own:.2f} | ≤ {case['target']:g} |"
        )
    return lines


def _memory(memory: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## The allocator's peak of a run",
        "",
        f"{memory['placement']}, over `Trainer`'s at the same precision.",
        "",
        "| base | precision | `Trainer`, MiB | loratlas, MiB | ratio | target |",
        "|---|---|---|---|---|---|",
    ]
    for case in memory["cases"]:
        theirs, own = (case[f"{side}_bytes"] / 2**20 for side in ("trainer", "ours"))
        lines.append(
            f"| {case['base']} | {case['dtype']} | {theirs:,.0f} | {own:,.0f} | {case['ratio']:.2f} "
            f"| ≤ {case['target']:g} |"
        )
    return lines


def _study(study: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"## A study of {study['runs']} runs",
        "",
        f"Base {study['base']}, three placements × three learning rates × three seeds, {study['steps']} steps of "
        f"{study['rows']} rows ({study['tokens_per_step']:g} tokens), {study['side_by_side']} runs side by side. "
        f"Times faster than `Trainer` at its best ({study['recipe']}), one run after the other; every run was made.",
        "",
        "| way | wall clock | CPU time | mean held-out loss | target |",
        "|---|---|---|---|---|",
    ]
    for name, faster in study["faster"].items():
        losses = study["nll"][name]
        target = f"≥ {study['target']:g}" if name.endswith("study") else ""
        lines.append(
            f"| {name} | {faster['wall']['median']:.2f} | {faster['cpu']['median']:.2f} | "
            f"{sum(losses) / len(losses):.4f} | {target} |"
        )
    return lines


def accelerator(result: dict[str, Any]) -> str:
    """The page of ``python -m benchmarks --device cuda``."""
    lines = [
        "# On an accelerator",
        "",
        "Made by `python -m benchmarks --device cuda`; all figures are in [accelerator.json](accelerator.json).",
        "Medians of paired ratios, runs in turns.",
        *_busy(result),
        "",
        f"{result['card']}, base {result['base']} with random weights, {result['placement']}, bfloat16.",
        "",
        "| batch | code | PEFT over floor | loratlas over floor | tokens per second | share of the card's peak |",
        "|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        theirs, own = (case[f"{side}_over_floor"]["wall"]["median"] for side in SIDES)
        share = "peak unknown" if case["share_of_peak"] is None else f"{100 * case['share_of_peak']:.0f} %"
        code = "compiled" if case["compiled"] else "eager"
        lines.append(
            f"| {case['rows']}×{case['length']} | {code} | {theirs:.2f} | {own:.2f} | "
            f"{case['tokens_per_second']:,.0f} | {share} |"
        )
    fleet = result["fleet"]
    lines += [
        "",
        f"A fleet of {fleet['runs']} at {fleet['rows']}×{fleet['length']}: "
        f"{100 * fleet['over_one_run']['median']:.0f} % of one run's tokens per second at the concatenated batch "
        f"(target ≥ 80 %), {fleet['over_trainer']['median']:.2f} times faster than as many PEFT + Trainer runs at "
        f"their best, {fleet['recipe']} (target ≥ 6), {fleet['over_alone']['median']:.2f} times faster than our own "
        "runs one by one.",
    ]
    return "\n".join(lines) + "\n"


def _busy(result: dict[str, Any]) -> list[str]:
    return ["", "Other work ran on the machine when this was measured."] if result["busy"] else []
