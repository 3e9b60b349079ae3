"""Write docs/results/flop_agreement.md and .json: predicted against counted operations, for every type of the zoo.

    python tools/flop_agreement.py [TYPE ...]

Every type that transformers builds runs once forward and backward for each of a handful of placements, and PyTorch's
formulas (`torch.utils.flop_counter`) count the products of every matrix; see `tests/anatomy/counted_flops.py`. With
types, prints their lines and writes nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "anatomy")]

from counted_flops import Agreement, agreement  # noqa: E402
from tests import zoo  # noqa: E402

OUT = ROOT / "docs" / "results"

WHY: dict[str, str] = {}
"""Type → why predicted and counted operations differ, looked up in its code."""


def main() -> None:
    """Count every type, then write both files."""
    import torch
    import transformers

    asked = sys.argv[1:]
    rows = []
    for model_type in asked or zoo.types():
        if model_type in zoo.NEVER:
            continue
        rows.append(row(model_type, agreement(zoo.small(model_type))))
        print(line(rows[-1]), flush=True)
    if asked:
        return
    data = {
        "schema": "loratlas.flop_agreement",
        "version": 1,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]},
        "summary": summary(rows),
        "types": rows,
    }
    (OUT / "flop_agreement.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (OUT / "flop_agreement.md").write_text(page(data), encoding="utf-8")


def row(model_type: str, found: Agreement) -> dict[str, Any]:
    """One type, as data."""
    kinds = Counter((one.adapted, one.matrix, one.predicted, one.counted) for one in found.differences)
    return {
        "model_type": model_type,
        "does_not_run": found.silent or None,
        "placements": found.placements,
        "backward": [found.agreeing, found.compared],
        "forward": [found.forward_agreeing, found.forward_compared],
        "differences": [
            {"adapted": a, "matrix": m, "predicted": p, "counted": c, "cases": count}
            for (a, m, p, c), count in kinds.most_common(8)
        ],
        "forward_differences": dict(found.forward_differences),
        "why": WHY.get(model_type, ""),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures at the top of the page."""
    ran = [one for one in rows if not one["does_not_run"]]

    def total(key: str) -> dict[str, int]:
        return {
            "types": sum(one[key][0] == one[key][1] for one in ran),
            "agree": sum(one[key][0] for one in ran),
            "compared": sum(one[key][1] for one in ran),
        }

    return {"types": len(rows), "ran": len(ran), "backward": total("backward"), "forward": total("forward")}


def line(one: dict[str, Any]) -> str:
    """One type, for who waits."""
    if one["does_not_run"]:
        return f"{one['model_type']}: does not run ({one['does_not_run']})"
    (a, b), (c, d) = one["backward"], one["forward"]
    said = "; ".join(
        f"{x['adapted']} → {x['matrix']} {x['predicted']}/{x['counted']} ({x['cases']})"
        for x in one["differences"][:3]
    )
    return f"{one['model_type']}: backward {a}/{b} forward {c}/{d} {said} {one['forward_differences'] or ''}"


def page(data: dict[str, Any]) -> str:
    """The JSON as a page."""
    total, versions = data["summary"], data["versions"]
    back, forward = total["backward"], total["forward"]
    lines = [
        "# Operations: predicted against counted",
        "",
        f"Written by `python tools/flop_agreement.py` with transformers {versions['transformers']} and torch "
        f"{versions['torch']}; all figures are in [flop_agreement.json](flop_agreement.json).",
        "",
        "Each type runs as a small instance with random weights. For every role, the site in the middle carries an "
        "adapter alone; then `attention`, `feedforward` and `all` together. Products of a matrix with an "
        "activation are counted by PyTorch's formulas and ascribed to the matrix. *Backward*: whether the gradient of "
        "the matrix's input was computed, against `anatomy/backward_reach.py`. *Forward*: the operations of one pass "
        "over the tokens, against 2 · d_out · d_in for each token (routed experts: the share that a token passes), "
        "convolutions and lists of single experts left out. Products of two activations (attention scores, "
        "scans) are not compared.",
        "",
        "| | |",
        "|---|--:|",
        f"| types that are built | {total['types']} |",
        f"| that run on token ids alone | {total['ran']} |",
        f"| backward: **types that agree in full** | **{back['types']}** |",
        f"| backward: matrices that agree | {back['agree']:,} of {back['compared']:,} "
        f"({back['agree'] / back['compared']:.2%}) |",
        f"| forward: types that agree in full | {forward['types']} |",
        f"| forward: matrices that agree | {forward['agree']:,} of {forward['compared']:,} "
        f"({forward['agree'] / forward['compared']:.2%}) |",
        "",
        "## What differs, and why",
        "",
        "Predicted / counted passes over a matrix in the backward pass; cases in brackets.",
        "",
        "| type | backward | forward | largest differences | why |",
        "|---|--:|--:|---|---|",
    ]
    for one in data["types"]:
        if one["does_not_run"]:
            lines.append(f"| {one['model_type']} | – | – | | does not run: {one['does_not_run']} |")
            continue
        (a, b), (c, d) = one["backward"], one["forward"]
        if a == b and c == d:
            continue
        said = [
            f"{x['adapted']} → {x['matrix']} {x['predicted']} / {x['counted']} ({x['cases']})"
            for x in one["differences"][:2]
        ]
        said += [
            f"forward of {name} × {ratio}" for name, ratio in list(one["forward_differences"].items())[:2]
        ]
        lines.append(
            f"| {one['model_type']} | {a}/{b} | {c}/{d} | {'<br>'.join(said)} | {one['why'] or 'not looked up'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
