"""A study that never ran, for the tests of the report: numbers by formula, whole and consistent.

``python tests/report/report_example.py`` writes ``study_example.json`` beside this file.
"""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATES = [0.0005, 0.0015, 0.0045, 0.0135, 0.0405]
SEEDS = [1101, 1102, 1103, 1104, 1105]
ATTENTION = {"attn.q": (256, 256), "attn.k": (128, 256), "attn.v": (128, 256), "attn.o": (256, 256)}
FEEDFORWARD = {"ffn.gate": (768, 256), "ffn.up": (768, 256), "ffn.down": (256, 768)}
NAMES = {"attn": "self_attn", "ffn": "mlp"}
LAYERS = 8


def path(layer: int, role: str) -> str:
    family, part = role.split(".")
    return f"model.layers.{layer}.{NAMES[family]}.{part}_proj.weight"


def plan(placement: str, text: str, ranks: dict[str, int]) -> dict[str, Any]:
    shapes = ATTENTION | FEEDFORWARD
    sites = [
        {
            "path": path(layer, role),
            "module": path(layer, role).removesuffix(".weight"),
            "layer": layer,
            "scope": "decoder",
            "role": role,
            "shape": list(shapes[role]),
            "rank": rank,
            "alpha": 2.0 * rank,
        }
        for layer in range(LAYERS)
        for role, rank in ranks.items()
    ]
    return {
        "schema": "loratlas.plan",
        "version": 1,
        "placement": placement,
        "text": text,
        "model": "demo:llama-mini",
        "model_type": "llama",
        "config_digest": "5b0c8b41d1c2a7e9",
        "rslora": False,
        "trainable": sum(rank * sum(shapes[role]) for role, rank in ranks.items()) * LAYERS,
        "sites": sites,
    }


def anatomy() -> dict[str, Any]:
    """Sites as the study lists them, the tied embedding outside the blocks included."""
    shapes = ATTENTION | FEEDFORWARD
    outside = {"path": "model.embed_tokens.weight", "layer": None, "scope": "decoder", "role": "embed"}
    blocks = [
        {"path": path(layer, role), "layer": layer, "scope": "decoder", "role": role, "shape": list(shape)}
        for layer in range(LAYERS)
        for role, shape in shapes.items()
    ]
    roles = sorted({*shapes, "embed"})
    return {"layers": LAYERS, "roles": roles, "sites": [{**outside, "shape": [8192, 256]}, *blocks]}


def arm(
    name: str,
    placement: str,
    text: str,
    ranks: dict[str, int],
    *,
    level: float,
    lr: float,
    ratio: float,
    mib: float,
    wanted: int,
) -> dict[str, Any]:
    draw = random.Random(name)
    table = plan(placement, text, ranks)
    runs = [
        {
            "seed": seed,
            "lr": lr,
            "nll": round(level + draw.gauss(0, 0.004), 6),
            "train_nll": round(level - 0.11 + draw.gauss(0, 0.01), 6),
            "step_seconds": round(0.212 * ratio + draw.uniform(0, 0.004), 5),
            "peak_bytes": int(mib * 2**20),
            "seconds": round(72 * ratio, 2),
            "digest": f"{draw.getrandbits(64):016x}",
        }
        for seed in SEEDS
    ]
    nll = sum(run["nll"] for run in runs) / len(runs)
    steps = list(range(0, 251, 5))
    mean = [round(nll - 0.11 + 0.62 * math.exp(-step / 42) + draw.gauss(0, 0.012), 5) for step in steps]
    best = RATES.index(lr)
    return {
        "name": name,
        "placement": placement,
        "plan": table,
        "lr": lr,
        "nll": round(nll, 6),
        "ci": [round(nll - 0.0187, 6), round(nll + 0.0187, 6)],
        "trainable": table["trainable"],
        "step_time_ratio": ratio,
        "step_seconds": round(sum(run["step_seconds"] for run in runs) / len(runs), 5),
        "peak_bytes": int(mib * 2**20),
        "diverged": 0,
        "match": {
            "quantity": "params",
            "wanted": wanted,
            "got": table["trainable"],
            "relative": table["trainable"] / wanted - 1,
            "solved": True,
        },
        "tuning": [
            {
                "lr": rate,
                "seed": seed,
                "nll": round(nll + 0.02 + 0.028 * (j - best) ** 2 + draw.gauss(0, 0.006), 6),
                "diverged": False,
            }
            for j, rate in enumerate(RATES)
            for seed in (901, 902)
        ],
        "lr_at_edge": False,
        "runs": runs,
        "curve": {
            "steps": steps,
            "mean": mean,
            "low": [round(value - 0.035 - draw.uniform(0, 0.015), 5) for value in mean],
            "high": [round(value + 0.035 + draw.uniform(0, 0.015), 5) for value in mean],
        },
    }


def finding(
    each: dict[str, Any], reference: dict[str, Any], *, half: float, verdict: str, p: float
) -> dict[str, Any]:
    difference = round(each["nll"] - reference["nll"], 6)
    ci = [round(difference - half, 6), round(difference + half, 6)]
    return {
        "arm": each["name"],
        "versus": reference["name"],
        "difference": difference,
        "ci": ci,
        "level": 0.975,
        "p": p,
        "p_holm": min(1.0, 2 * p),
        "verdict": verdict,
        "detectable": round(1.26 * half, 6),
        "df": 11.4,
        "seeds": 5,
        "examples": 1000,
        "reason": {
            "better": "the 97.5 % interval lies below 0",
            "worse": "the 97.5 % interval lies above 0",
            "equivalent": "the 97.5 % interval lies inside ±0.01 nats per token",
            "undetermined": "the 97.5 % interval holds 0 and reaches beyond ±0.01 nats per token",
        }[verdict],
        "sentence": f"{each['name']} against {reference['name']}: {verdict}, on facts-300, with llama-mini.",
    }


def study() -> dict[str, Any]:
    """Three arms at equal parameters: one better than the reference, one worse."""
    every = dict.fromkeys(ATTENTION | FEEDFORWARD, 2)
    wanted = plan("all:2", "all:2", every)["trainable"]
    full = arm("full", "all:2", "all:2", every, level=3.5926, lr=0.0135, ratio=1.0, mib=311.5, wanted=wanted)
    attention = arm(
        "attention",
        "attention:auto",
        "q,o:6 + k,v:5",
        {"attn.q": 6, "attn.k": 5, "attn.v": 5, "attn.o": 6},
        level=3.6271,
        lr=0.0135,
        ratio=0.81,
        mib=268.2,
        wanted=wanted,
    )
    feedforward = arm(
        "feedforward",
        "feedforward:auto",
        "feedforward:3",
        {"ffn.gate": 3, "ffn.up": 3, "ffn.down": 3},
        level=3.5672,
        lr=0.0045,
        ratio=0.9,
        mib=290.7,
        wanted=wanted,
    )
    part = {
        "source": "demo:facts-300",
        "rows": 300,
        "tokens": 6212,
        "answer_tokens": 2107,
        "cut": 0,
        "dropped": 0,
    }
    return {
        "schema": "loratlas.study",
        "version": 1,
        "name": "example with made-up numbers",
        "spec": {
            "name": "example with made-up numbers",
            "model": "demo:llama-mini",
            "data": {"train": "demo:facts-300", "eval": "demo:facts-300", "loss": "answer"},
            "arms": {"full": "all:2", "attention": "attention:auto", "feedforward": "feedforward:auto"},
            "reference": "full",
            "match": "params",
            "learning_rates": RATES,
            "tuning": {"seeds": 2, "rows": 500},
            "evaluation": {"seeds": 5, "rows": 1000},
            "steps": 250,
            "batch_size": 16,
            "max_length": 256,
            "schedule": "cosine",
            "warmup": 0.03,
            "weight_decay": 0.0,
            "clip": 1.0,
            "dtype": "float32",
            "base_dropout": False,
            "delta": 0.01,
            "seed": 7,
            "demonstration": False,
        },
        "spec_digest": "9f2d1c6be07a4431",
        "complete": True,
        "demonstration": False,
        "base": {
            "model": "demo:llama-mini",
            "model_type": "llama",
            "parameters": 8392960,
            "config_digest": "5b0c8b41d1c2a7e9",
        },
        "data": {
            "train": {**part, "digest": "41ce90aa17d0b6f2"},
            "tuning": {
                **part,
                "rows": 500,
                "tokens": 10344,
                "answer_tokens": 3498,
                "digest": "c05f6b1b8e2a9d77",
            },
            "evaluation": {
                **part,
                "rows": 1000,
                "tokens": 20719,
                "answer_tokens": 7022,
                "digest": "e7719be1b4c3f508",
            },
            "template": "plain: '{system}\\n\\n{user}\\n\\nAnswer:\\n{assistant}{eos}'",
            "loss": "answer",
            "packing": "packed; proven on this model (largest difference 1.1e-07)",
        },
        "base_nll": 4.0464,
        "arms": [full, attention, feedforward],
        "findings": [
            finding(attention, full, half=0.0121, verdict="worse", p=0.0000213),
            finding(feedforward, full, half=0.0114, verdict="better", p=0.00041),
        ],
        "pareto": {
            "params": ["feedforward"],
            "time": ["attention", "feedforward"],
            "memory": ["attention", "feedforward"],
        },
        "anatomy": anatomy(),
        "notes": ["2 of 3 arms were solved to the reference's parameters; their ranks are whole numbers."],
        "machine": {"processor": "2 cores, x86_64", "device": "cpu", "memory_bytes": 8589934592},
        "versions": {"loratlas": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "revision": "b76e2af5d3c1f0a4b8e29c7d6a1f3e5b7c9d0e2f",
        "reference": "full",
        "learning_rates": RATES,
        "runs": {"finished": 45, "planned": 45},
        "page": None,
    }


def undetermined() -> dict[str, Any]:
    """Both comparisons hold 0 and reach beyond the margin."""
    made = study()
    for each, difference in zip(made["findings"], (-0.004, 0.009), strict=True):
        each |= {
            "difference": difference,
            "ci": [difference - 0.014, difference + 0.014],
            "p": 0.4,
            "p_holm": 0.8,
        }
        each |= {"verdict": "undetermined", "detectable": 0.0176}
        each["reason"] = "the 97.5 % interval holds 0 and reaches beyond ±0.01 nats per token"
    return made


def diverged() -> dict[str, Any]:
    """A run became NaN: its arm has no loss, its finding no numbers, its rate stands at the edge."""
    made = study()
    made["arms"][1] |= {
        "nll": float("nan"),
        "ci": [None, None],
        "diverged": 1,
        "lr": 0.0405,
        "lr_at_edge": True,
    }
    made["arms"][1]["runs"][2] |= {"nll": None, "train_nll": None}
    made["arms"][1]["tuning"][9] |= {"nll": None, "diverged": True}
    made["findings"][0] |= dict.fromkeys(("difference", "p", "p_holm", "detectable", "df"))
    made["findings"][0] |= {
        "ci": [None, None],
        "verdict": "undetermined",
        "reason": "a run of attention diverged",
    }
    made["findings"][0] |= {"seeds": 4, "sentence": "attention against full is undetermined: a run diverged."}
    made["pareto"] = {"params": ["feedforward"], "time": ["feedforward"], "memory": ["feedforward"]}
    made["findings"][1] |= {"difference": -0.002, "ci": [-0.008, 0.004], "verdict": "equivalent"}
    made["findings"][1]["reason"] = "the 97.5 % interval lies inside ±0.01 nats per token"
    return made


def incomplete() -> dict[str, Any]:
    """Interrupted while tuning the second arm: nothing compared yet. Also a demonstration."""
    made = study()
    made |= {"complete": False, "demonstration": True, "findings": [], "pareto": {}}
    made["runs"] = {"finished": 18, "planned": 45}
    for each in made["arms"][1:]:
        for key in ("lr", "nll", "ci", "step_time_ratio", "step_seconds", "peak_bytes", "match", "curve"):
            each[key] = None
        each["runs"] = []
    made["arms"][1]["tuning"] = made["arms"][1]["tuning"][:3]
    made["arms"][2]["tuning"] = []
    return made


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<b>bold</b> & %{x} $x^2$ \u202eevil\x00",
)


def hostile() -> dict[str, Any]:
    """Names and texts that try to become markup, script or a template."""
    text = json.dumps(study())
    for name, bad in zip(("full", "attention", "feedforward"), HOSTILE, strict=True):
        text = text.replace(f'"{name}"', json.dumps(bad))
    made = json.loads(text)
    made["name"] = made["base"]["model"] = HOSTILE[1]
    made["data"]["train"]["source"] = made["notes"][0] = "<!--<script>'\"><svg onload=alert(3)>\u2028\ud800"
    made["anatomy"]["sites"][1]["role"] = '<a href="https://example.invalid">q</a>'
    made["versions"]["<i>key"] = "<iframe src=//example.invalid>"
    return made


def measured() -> dict[str, Any]:
    """The same with what may be measured beside the loss; the task turns one finding round, the median another."""
    made = study()
    units = {"token_mean": "loss", "example_mean": "loss", "mean_example_perplexity": "perplexity"}
    units |= {"median": "loss", "exact_match": "share"}
    scores = {"full": 0.31, "attention": 0.46, "feedforward": 0.335}
    for each in made["arms"]:
        nll = each["nll"]
        values = {
            "token_mean": nll,
            "example_mean": nll + 0.11,
            "mean_example_perplexity": math.exp(nll + 0.4),
        }
        values["median"] = 7.0 - nll if each["name"] == "feedforward" else nll - 0.05
        each["definitions"] = values
        score = scores[each["name"]]
        each["metric"] = {
            "name": "exact_match",
            "value": score,
            "ci": [score - 0.04, score + 0.04],
            "rows": 100,
        }
        before, after = 4.2113, round(4.2113 + 2 * (4.0464 - nll) / 10, 6)
        each["forgetting"] = {"before": before, "after": after, "change": after - before, "rows": 200}
        each["forgetting"]["ci"] = [after - before - 0.021, after - before + 0.021]

    def values(each: dict[str, Any], by: str) -> float:
        return each["metric"]["value"] if by == "exact_match" else each["definitions"][by]

    turned = {0: ["exact_match"], 1: ["median"]}
    opposed = []
    for i, one in enumerate(made["findings"]):
        arm, reference = made["arms"][i + 1], made["arms"][0]
        one["by_measure"] = [
            {
                "by": by,
                "unit": unit,
                "difference": values(arm, by) - values(reference, by),
                "ci": [None, None],
                "p": None,
                "agrees": by not in turned[i],
            }
            for by, unit in units.items()
        ]
        one["flips"], one["flips_established"] = turned[i], i == 0
        sentence = (
            f"The token mean and the {turned[i][0]} put {arm['name']} on two sides of full (p = 0.0412)."
        )
        one["flip_sentences"] = [sentence]
        other = next(m for m in one["by_measure"] if m["by"] == turned[i][0])
        p = 0.0412 if i == 0 else None
        opposed.append(
            {
                "first": arm["name"],
                "second": "full",
                "by": turned[i][0],
                "loss": {"difference": one["difference"], "ci": one["ci"], "p": one["p"]},
                "other": {"difference": other["difference"], "ci": [None, None], "p": p},
                "p": p,
                "p_holm": p,
                "established": i == 0,
                "sentence": sentence,
            }
        )
    made["ranks"] = {
        "measures": [
            {"name": by, "unit": unit, "higher_is_better": unit == "share"} for by, unit in units.items()
        ],
        "orders": [
            {
                "by": by,
                "arms": [
                    {"name": each["name"], "value": values(each, by)}
                    for each in sorted(made["arms"], key=lambda e: values(e, by), reverse=unit == "share")
                ],
            }
            for by, unit in units.items()
        ],
        "compared": 12,
        "opposed": opposed,
    }
    made["data"]["forgetting"] = {**made["data"]["evaluation"], "source": "demo:retrieval", "rows": 200}
    return made


def scanned() -> dict[str, Any]:
    """The third arm placed by a scan."""
    made = study()
    rows = made["arms"][2]["plan"]["sites"]
    for number, row in enumerate(rows):
        row["why"] = f"its last rank adds {number + 1} per 1,000 trainable parameters; the budget ended at 1"
    sites = [site for site in made["anatomy"]["sites"] if site["layer"] is not None]
    made["scan"] = {
        "by": "gradient_energy",
        "rows": 48,
        "visits": 64,
        "cost_in_steps": 4.0,
        "settled": True,
        "signals": [
            {"name": name, "unit": "nats per token", "pays": "high", "adam": "none", "repeats": 0.91,
             "repeats_top": 0.95, "silent": None}
            for name in ("gradient", "gradient_energy")
        ],
        "scores": [
            {"path": site["path"], "signal": name, "value": start + number, "unit": "nats per token", "error": 0.1}
            for name, start in (("gradient", 101.0), ("gradient_energy", 1.0))
            for number, site in enumerate(sites)
        ],
    }  # fmt: skip
    return made


def moved() -> dict[str, Any]:
    """The third arm's adapters moved in its two runs."""
    made = study()
    arm = made["arms"][2]
    rows = arm["plan"]["sites"]
    moves = [
        {"step": 4, "path": row["path"], "before": row["rank"], "after": after, "reason": f"reason {after}",
         "price": 96 * (after - row["rank"]), "gain": 0.25, "lost": 0.5, "loss_before": 3.25, "loss_after": 3.5}
        for row, after in ((rows[0], 0), (rows[1], 7))
    ]  # fmt: skip
    decision = {
        "step": 4,
        "parameters": 73_000,
        "note": "halves agree by τ = 0.61",
        "loss_before": 3.25,
        "loss_after": 3.5,
    }
    arm["moving"] = [
        {"seed": 11, "steps": 40, "moves": moves, "decisions": [decision | {"moved": 2}]},
        {"seed": 12, "steps": 40, "moves": [], "decisions": [decision | {"moved": 0}]},
    ]
    return made


VARIANTS = {
    "moved": moved,
    "example": study,
    "undetermined": undetermined,
    "diverged": diverged,
    "incomplete": incomplete,
    "measured": measured,
    "scanned": scanned,
    "hostile": hostile,
}


def load() -> dict[str, Any]:
    """The example as it is kept."""
    return copy.deepcopy(json.loads((HERE / "study_example.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    (HERE / "study_example.json").write_text(
        json.dumps(study(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
