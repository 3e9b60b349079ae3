"""Write docs/results/models/flop_agreement.md and .json: predicted against counted operations of the zoo's types.

    python tools/flop_agreement.py [TYPE ...]

Every type that transformers builds runs once forward and backward for each of a handful of placements, and PyTorch's
formulas (`torch.utils.flop_counter`) count the products of every matrix; see `tests/anatomy/counted_flops.py`. With
types, prints their lines and writes nothing. What was counted is kept in build/flop_counts, by type, config and
libraries, so that an interrupted run goes on and only predictions are made anew.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "anatomy")]

from counted_flops import TOKENS, Agreement, agreement  # noqa: E402
from tests import zoo  # noqa: E402

OUT = ROOT / "docs" / "results" / "models"
NEAR = 0.01
"""Predicted over counted: types that are further off are explained."""
COUNTS = ROOT / "build" / "flop_counts"

_POOLER = "its pooler and classifier work on one token of each text; predicted as if on every token"
_WINDOW = "texts are padded to whole windows of attention, longer than this text"
_IMAGE = "a map of its images or entities, which texts do not pass; predicted as if every token did"
_DENSE = "transformers runs every expert on every token and multiplies by 0; what a token passes is predicted"
_PER_LAYER = (
    "a projection outside the blocks feeds a residual map in each, which the order of the stream misses"
)
_ORDER = "two of its steps side by side, or in another order than their names say, in the lowest adapted layer only"
_RESIDUAL = (
    "maps of residual streams stand in front of their layer's attention and are taken for its last step"
)
_BLOCKS = "a block-diagonal map: a site's shape is that of one block, so that the others are not priced"

WHY: dict[str, str] = {
    "albert": "one block runs for all layers; its first run needs no gradient of its input",
    "axk2": _RESIDUAL,
    "big_bird": _POOLER,
    "blt": "bytes become fewer patches, which the global transformer alone passes; cross-attention between them",
    "canine": "characters become a quarter as many positions, which most layers pass",
    "convbert": "makes kernels of its convolutions from the text, by a parameter that is no site",
    "cpmant": "32 learned prompt tokens go in front of every text; 24 + 32 positions instead of 24",
    "deberta": "its relative maps read a table of positions, twice as long as the context, not the text",
    "deberta-v2": "its relative maps read a table of positions, twice the number of buckets, not the text",
    "deepseek_v4": _RESIDUAL,
    "doge": "its index is a gate of attention with a gradient, where other models' only choose keys",
    "encoder-decoder": "this config has no cross-attention, so that the encoder's states reach nothing",
    "fnet": _POOLER,
    "funnel": "positions are pooled to half as many twice, then laid out again",
    "fuyu": _IMAGE,
    "gemma3n_text": _PER_LAYER,
    "gemma4": _PER_LAYER,
    "gemma4_text": _PER_LAYER,
    "gpt_neox": _ORDER,
    "hrm_text": "two stacks run in cycles (H_cycles × (L_cycles + 1) passes), all but the last under no_grad",
    "hy_v4": _RESIDUAL,
    "inkling2_text": "its map of relative positions is applied for every pair of tokens",
    "inkling_text": "its map of relative positions is applied for every pair of tokens",
    "jetmoe": "queries and outputs of attention are experts, in the same step as the block's own",
    "layoutlm": _POOLER,
    "layoutlmv3": _IMAGE,
    "led": _WINDOW,
    "lilt": "a second, narrow stream of layout beside the text's, which adapters of the text do not reach alike",
    "llama4": _DENSE,
    "llama4_text": _DENSE,
    "longcat_flash": "two attentions and two feed-forwards in a block, with experts beside them",
    "longformer": _WINDOW,
    "luke": _IMAGE,
    "markuplm": _IMAGE,
    "mobilebert": "a bottleneck in front of each block; its head is as wide as embedding and body together",
    "mra": "without its kernel for GPUs its attention returns zeros, which pass no gradient on",
    "musicgen": "one head for each codebook: a gradient of one head's input is not needed by the others",
    "musicgen_melody": "the condition goes in front of the text: twice as many positions in this instance",
    "nemo_speechlm": "speech is needed beside the text",
    "neomme": _IMAGE,
    "nllb-moe": "each expert gets as many tokens as its router sends, and some drop: their number is random here",
    "nystromformer": "a convolution over attention's values of every head, whose site is one head's",
    "pegasus_x": _WINDOW,
    "perceiver": "latents of a fixed number take the place of the tokens",
    "prophetnet": "predicts several tokens ahead, by streams of their own through every decoder layer",
    "qwen4_exp": _RESIDUAL,
    "qwen4_exp_text": _RESIDUAL,
    "recurrent_gemma": _BLOCKS,
    "reformer": "its reversible layers refuse a backward pass in evaluation mode",
    "roc_bert": "its projection stands between embeddings and body; an adapter there has no gradient below",
    "rwkv": "its gate multiplies what comes out of the down-projection, not what goes in",
    "squeezebert": _POOLER,
    "switch_transformers": "few experts get a token of a text this short",
    "t5gemma2": "self- and cross-attention are one: keys and values of the decoder read the encoder's states as well",
    "voxtral_realtime": "speech is needed beside the text",
    "xlnet": "its relative map reads positions of twice the length of the text",
    "xmod": "an adapter of its language stands behind the feed-forward and reads its result",
    "zamba": _BLOCKS,
    "zamba2": "adapters of one block that works at several depths: every depth runs its own alone",
    "zaya": "convolutions stand between projections and attention",
}
"""Type → why predicted and counted operations differ: from its code, or from operations that add up to it."""


def main() -> None:
    """Count every type, then write both files."""
    import torch
    import transformers

    asked = sys.argv[1:]
    rows = []
    for model_type in asked or zoo.types():
        if model_type in zoo.NEVER:
            continue
        rows.append(row(model_type, agreement(zoo.small(model_type), kept=COUNTS / f"{model_type}.json")))
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
        "total": list(found.total),
        "activations": list(found.activations),
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

    near = sum(abs(one["total"][0] / one["total"][1] - 1) <= NEAR for one in ran)
    return {
        "types": len(rows),
        "ran": len(ran),
        "near": near,
        "backward": total("backward"),
        "forward": total("forward"),
    }


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
        f"| all products of a step of `all`: **types within 1 %** | **{total['near']}** |",
        f"| backward: **types that agree in full** | **{back['types']}** |",
        f"| backward: matrices that agree | {back['agree']:,} of {back['compared']:,} "
        f"({back['agree'] / back['compared']:.2%}) |",
        f"| forward: types that agree in full | {forward['types']} |",
        f"| forward: matrices that agree | {forward['agree']:,} of {forward['compared']:,} "
        f"({forward['agree'] / forward['compared']:.2%}) |",
        "",
        "## What differs, and why",
        "",
        "*Total* is predicted over counted, all products of matrices in a step with `all` adapted. Then predicted / "
        "counted passes over a matrix in the backward pass; cases in brackets. An instance is narrow and its text of "
        f"{TOKENS} tokens is short, so that what is the same for any text (a pooler, a window) weighs most here.",
        "",
        "| type | total | backward | forward | largest differences | why |",
        "|---|--:|--:|--:|---|---|",
    ]
    for one in data["types"]:
        if one["does_not_run"]:
            lines.append(f"| {one['model_type']} | – | – | – | | does not run: {one['why']} |")
            continue
        (a, b), (c, d) = one["backward"], one["forward"]
        predicted, counted = one["total"]
        if a == b and c == d and abs(predicted / counted - 1) <= NEAR:
            continue
        said = [
            f"{x['adapted']} → {x['matrix']} {x['predicted']} / {x['counted']} ({x['cases']})"
            for x in one["differences"][:2]
        ]
        said += [
            f"forward of {name} × {ratio}" for name, ratio in list(one["forward_differences"].items())[:2]
        ]
        cells = [
            one["model_type"],
            f"{predicted / counted:.2f}",
            f"{a}/{b}",
            f"{c}/{d}",
            "<br>".join(said),
            one["why"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
