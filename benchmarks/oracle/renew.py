"""Rules whose plans have changed, added to cases that are finished: only what is new is trained.

Kept losses are paired with new ones by seed and row, so that they serve as long as the same runs give the same losses.
That is proven each time: the reference is trained again, and its loss has to be the kept one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.oracle.choices import REFERENCE, Choice, merged
from benchmarks.oracle.run import Case, cases, prepare, train
from benchmarks.oracle.tasks import Size
from benchmarks.oracle.truth import Truth, kept_losses, plans_of, predictions, truth
from loratlas.anatomy.read import read
from loratlas.errors import SettingsError
from loratlas.scan.scores import Scan
from loratlas.sources import model_source

SAME = 0.01
"""Nats per token that the reference may differ from its kept loss, or its standard error over seeds where that is
more: in long bfloat16 runs the company of a fleet alone moves a loss by so much."""


def renew(
    size: Size,
    rules: Sequence[str],
    out: Path,
    results: Path,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[tuple[Case, Truth, dict[str, Choice]]]:
    """Train what ``rules`` choose now in the size's cases that are kept under ``results``; yields each case whole.

    A rule's earlier plan stays in the choice set, as ``earlier …``; choices that the size has gained are trained too.

    Raises:
        SettingsError: the reference does not come out as it was kept.
    """
    size = replace(size, rules=tuple(rules))
    for case in cases(size, out):
        path = results / f"{case.folder.name}.json"
        if not path.exists():
            say(f"{case.name}: nothing is kept in {path}; train it whole")
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        found, made = prepare(case, size)
        anatomy = read(model_source(case.base))
        wanted = {n: c for n, c in made.items() if c.kind == "rule" or n not in record["choices"]}
        chosen, names = merged(record, wanted, anatomy)
        new = {name: choice for name, choice in chosen.items() if name == REFERENCE or name not in names}
        result = train(case, size, new, workers=workers, say=say)
        trained = truth(case.name, found, new, result.to_json(), case.folder / "study" / "runs")
        yield case, joined(trained, record, path, chosen, names, found, anatomy), chosen


def joined(
    new: Truth,
    record: Mapping[str, Any],
    path: Path,
    chosen: Mapping[str, Choice],
    names: Mapping[str, str],
    found: Scan,
    anatomy: Any,
) -> Truth:
    """Kept and new losses as one case."""
    losses, tokens = kept_losses(path.with_suffix(".parquet"))
    _prove(new, losses, tokens, record["case"])
    old = {name: kept for name, kept in names.items() if kept in losses}
    told = record["choices"]
    whole = {name: losses[kept] for name, kept in old.items()}
    whole |= {name: seeds for name, seeds in new.losses.items() if name != REFERENCE}
    screened = {name: told[kept]["screened"] for name, kept in old.items()}
    screened |= {name: nll for name, nll in new.screened.items() if name != REFERENCE}
    fresh = {name: told[kept]["fresh"] for name, kept in old.items()}
    fresh |= {name: nll for name, nll in new.fresh.items() if name != REFERENCE}
    # What a score that was not measured anew says of earlier choices stands; of new ones it says nothing.
    predicted = {
        column: {name: said[kept] for name, kept in old.items() if kept in said}
        for column, said in record["predicted"].items()
    }
    return replace(
        new,
        screened=screened,
        fresh=fresh,
        losses=whole,
        kinds={name: chosen[name].kind for name in fresh},
        predicted=predicted | predictions(found, plans_of(anatomy, chosen, fresh)),
    )


def _prove(new: Truth, losses: Mapping[str, Mapping[int, np.ndarray]], tokens: np.ndarray, case: str) -> None:
    """That the reference came out as it was kept, on the same rows."""
    if not np.array_equal(new.tokens, tokens):
        raise SettingsError(
            given=f"a renewal of {case}",
            found=f"other rows to judge on: {new.tokens.sum():.0f} counted tokens, {tokens.sum():.0f} kept",
            instead="the case trained whole, without --renew",
        )
    kept = {seed: float(nll.sum() / tokens.sum()) for seed, nll in losses[REFERENCE].items()}
    again = {seed: float(nll.sum() / tokens.sum()) for seed, nll in new.losses[REFERENCE].items()}
    apart = abs(float(np.mean([again[seed] - kept[seed] for seed in again])))
    noise = float(np.std(list(kept.values()), ddof=1)) / len(kept) ** 0.5
    if apart > max(SAME, noise):
        raise SettingsError(
            given=f"a renewal of {case}",
            found=f"{REFERENCE} came out {apart:.4f} nats per token from its kept loss; seeds leave {noise:.4f} open",
            instead="the case trained whole, without --renew",
        )
