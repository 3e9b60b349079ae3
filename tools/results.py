"""Copy finished studies into docs/results and print their tables as Markdown.

    python tools/results.py STUDY_FOLDER... [--to docs/results]

The JSON is the study's own result (schema loratlas.study): settings, plans, losses per run, findings. No row of any
data set is in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from loratlas.formats import probability


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def arms(study: dict[str, Any]) -> str:
    """Arms: placement, parameters, chosen rate, loss with its interval, time of a step against the reference's."""
    rows = []
    for arm in study["arms"]:
        low, high = arm["ci"]
        ranks = sorted({site["rank"] for site in arm["plan"]["sites"]})
        rows.append(
            [
                arm["name"],
                ", ".join(map(str, ranks)),
                f"{arm['trainable']:,}",
                f"{arm['lr']:g}" + (" (edge)" if arm["lr_at_edge"] else ""),
                f"{arm['nll']:.4f}",
                "–" if low is None else f"{low:.4f} to {high:.4f}",
                f"{arm['step_time_ratio']:.2f}",
            ]
        )
    return table(["arm", "ranks", "trainable", "learning rate", "loss", "95 % interval", "step time"], rows)


def findings(study: dict[str, Any], mark: str = "") -> str:
    """Findings: the difference to the reference, its simultaneous interval, adjusted p, steps saved, verdict, power.

    Args:
        mark: what stands behind every verdict.
    """
    unit = study.get("task", {}).get("unit", "nats per token")
    rows = []
    for found in study["findings"]:
        low, high = found["ci"]
        rows.append(
            [
                f"{found['arm']} against {found['versus']}",
                f"{found['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                probability(found["p_holm"]),
                _steps(found.get("steps_saved")),
                f"**{found['verdict']}**{mark}",
                f"{found['detectable']:.4f}",
            ]
        )
    head = [
        "comparison",
        f"difference, {unit}",
        "interval",
        "adjusted p",
        "steps saved",
        "verdict",
        "detectable",
    ]
    return table(head, rows)


def _steps(saved: dict[str, float | None] | None) -> str:
    if not saved or saved["value"] is None:
        return "–"
    ends = [f"{saved[end]:+.0f}" if saved[end] is not None else "?" for end in ("low", "high")]
    return f"{saved['value']:+.0f} ({' to '.join(ends)})"


def tuning(study: dict[str, Any]) -> str:
    """Mean tuning loss of every arm at every rate."""
    rates = study["learning_rates"]
    rows = []
    for arm in study["arms"]:
        cells = []
        for rate in rates:
            losses = [run["nll"] for run in arm["tuning"] if run["lr"] == rate]
            broken = any(run["diverged"] for run in arm["tuning"] if run["lr"] == rate)
            cells.append("diverged" if broken or not losses else f"{sum(losses) / len(losses):.4f}")
        rows.append([arm["name"], *cells])
    return table(["arm", *(f"{rate:g}" for rate in rates)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders of finished studies")
    parser.add_argument("--to", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    from loratlas.study.results.study_result import load_study

    for folder in arguments.folders:
        study = load_study(folder).to_json()
        if not study["complete"]:
            print(f"{folder}: not finished ({study['runs']}); left out\n")
            continue
        path = arguments.to / f"{study['name']}.json"
        path.write_text(json.dumps(study, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")
        print(f"### {study['name']}\n\nBase loss {study['base_nll']:.4f}.\n")
        print(f"{arms(study)}\n\n{findings(study)}\n\nTuning, mean of the seeds:\n\n{tuning(study)}\n")
        print("\n".join(f"- {found['sentence']}" for found in study["findings"]))
        print("\n".join(f"- {note}" for note in study["notes"]), "\n")


if __name__ == "__main__":
    main()
