"""Write docs/results/models/model_types.md and .json: what is found and adapted in every supported model type.

    python tools/model_types.py

For each type, once tiny with real weights and once in its library's default (full) size without weights: the
sites by role, the parameters that a plan predicts, and those that PEFT's model has after attaching.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.tiny import TYPES, tiny_config, tiny_model  # noqa: E402

PLACEMENTS = ("all:8", "attention:8", "feedforward:8")
OUT = ROOT / "docs" / "results" / "models"


def main() -> None:
    """Read, place, attach and count everything, then write both files."""
    import peft
    import transformers

    rows = []
    for model_type in TYPES:
        rows.append(tiny(model_type))
        rows.append(full_size(model_type))
        print(
            model_type,
            *(placed["counted"] == placed["predicted"] for row in rows[-2:] for placed in row["plans"]),
        )
    data = {
        "schema": "loratlas.model_types",
        "version": 1,
        "versions": {"transformers": transformers.__version__, "peft": peft.__version__},
        "placements": list(PLACEMENTS),
        "rows": rows,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "model_types.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (OUT / "model_types.md").write_text(page(data), encoding="utf-8")


def tiny(model_type: str) -> dict[str, Any]:
    """A tiny model with weights: adapters are put on it."""
    import loratlas
    from loratlas.adapters.attach import trainable

    anatomy = loratlas.read(tiny_config(model_type))
    plans = []
    for text in PLACEMENTS:
        plan = loratlas.place(anatomy, text)
        plans.append(counts(plan, trainable(plan.attach(tiny_model(model_type)))))
    return describe(model_type, "tiny", anatomy, plans)


def full_size(model_type: str) -> dict[str, Any]:
    """The size that the config class has by default, on the meta device."""
    from transformers import AutoConfig

    import loratlas
    from loratlas.adapters.attach import trainable
    from loratlas.models.meta import meta_model
    from loratlas.models.quiet import quiet

    with quiet():
        config = AutoConfig.for_model(model_type)
    anatomy = loratlas.read(config)
    plans = []
    for text in PLACEMENTS:
        plan = loratlas.place(anatomy, text)
        plan.to_peft(config)
        plans.append(counts(plan, trainable(plan.attach(meta_model(config)))))
    return describe(model_type, "default", anatomy, plans)


def counts(plan: Any, counted: int) -> dict[str, Any]:
    """One plan's prediction beside what was counted."""
    return {
        "placement": plan.placement,
        "sites": len(plan.rows),
        "predicted": plan.trainable,
        "counted": counted,
    }


def describe(model_type: str, size: str, anatomy: Any, plans: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    return {
        "model_type": model_type,
        "size": size,
        "parameters": anatomy.parameters,
        "layers": anatomy.layers,
        "roles": dict(Counter(site.role for site in anatomy.sites)),
        "unresolved": [item.path for item in anatomy.unresolved],
        "plans": plans,
    }


def page(data: dict[str, Any]) -> str:
    """The JSON as a page."""
    agree = sum(plan["predicted"] == plan["counted"] for row in data["rows"] for plan in row["plans"])
    total = sum(len(row["plans"]) for row in data["rows"])
    unresolved = sum(len(row["unresolved"]) for row in data["rows"])
    lines = [
        "# What is found and adapted in every model type",
        "",
        f"Written by `python tools/model_types.py` with transformers {data['versions']['transformers']} and peft "
        f"{data['versions']['peft']}; the numbers are in [model_types.json](model_types.json).",
        "",
        "Each type was read twice: *tiny*, with weights, and in the *default* size of its config class, on the meta "
        "device. `predicted` is the plan's own count, `counted` what requires a gradient after the adapters were put "
        "on. In the default size `plan.to_peft` has also proven that PEFT adapts these sites and no other.",
        "",
        f"**Predicted equals counted in {agree} of {total} cases; {unresolved} matrices are unresolved.**",
        "",
        "| type | size | parameters | sites by role | "
        + " | ".join(f"`{text}`" for text in data["placements"])
        + " |",
        "|---|---|--:|---|" + "--:|" * len(data["placements"]),
    ]
    for row in data["rows"]:
        roles = ", ".join(f"{role} {count}" for role, count in row["roles"].items())
        if row["unresolved"]:
            roles += f"; unresolved: {', '.join(row['unresolved'])}"
        cells = [
            f"{plan['counted']:,}"
            + ("" if plan["counted"] == plan["predicted"] else f" (predicted {plan['predicted']:,})")
            for plan in row["plans"]
        ]
        lines.append(
            f"| {row['model_type']} | {row['size']} | {row['parameters']:,} | {roles} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
