"""`loratlas.shrink`: the closest adapter of a budget, and what the loss says to it.

>>> Shrinkage(numbers={"path": "small", "loss": {"verdict": "equivalent"}}).verdict
'equivalent'
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.api.folders import adapter_folder, check_out
from loratlas.api.listener import Listener, Silent
from loratlas.display import Block, Displayed, Grid
from loratlas.errors import BudgetError, DataError

if TYPE_CHECKING:
    from loratlas.api.results import Run

DELTA = 0.01
"""Margin of equivalence, nats per token: that of studies."""

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinkage(Displayed):
    """An adapter that was made smaller.

    Args:
        numbers: what ``loratlas shrink --json`` prints.
    """

    numbers: Mapping[str, Any] = field(repr=False)

    @property
    def path(self) -> Path:
        """The folder of the smaller adapter."""
        return Path(self.numbers["path"])

    @property
    def verdict(self) -> str | None:
        """``equivalent``, ``better``, ``worse`` or ``undetermined``; None where no rows were given."""
        loss = self.numbers["loss"]
        return None if loss is None else loss["verdict"]

    def blocks(self) -> Sequence[Block]:
        """Parameters and ranks before and after, the distance, and the loss where it was measured."""
        n = self.numbers
        ranks = [(site["before"], site["after"]) for site in n["sites"]]
        dropped = sum(after == 0 for _, after in ranks)
        rows = [
            ("parameters", formats.count(n["before"]["parameters"]), formats.count(n["after"]["parameters"])),
            ("sites", str(len(ranks)), str(len(ranks) - dropped)),
            ("mean rank", *(f"{sum(r[i] for r in ranks) / len(ranks):.3g}" for i in (0, 1))),
        ]
        loss = n["loss"]
        if loss is not None:
            rows.append(("loss", formats.loss(loss["before"]), formats.loss(loss["after"])))
        blocks: list[Block] = [
            Grid(columns=("", "before", "after"), rows=tuple(rows)),
            f"Kept: {n['kept']:.2%} of the squared norm of all updates; no adapter of this budget keeps more than "
            f"{n['bound']:.2%}.",
        ]
        if loss is not None:
            blocks.append(loss["sentence"])
        return [*blocks, *n["remarks"], f"Adapter: {n['path']}"]


def shrink(
    adapter: str | Path | Run,
    out: str | Path,
    *,
    budget: str,
    data: Any = None,
    base: str | None = None,
    limit: int | None = None,
    max_length: int = 512,
    delta: float = DELTA,
    listener: Listener | None = None,
) -> Shrinkage:
    """Write the closest adapter of a budget: the largest singular directions of all sites, per parameter.

    Args:
        adapter: a run, its folder, or any PEFT adapter's folder.
        out: a new folder.
        budget: ``"params=200k"``, a share of the base's parameters (``"params=0.1%"``), or ``"like=q,v:4"``.
        data: rows to measure the loss on, before and after; as in :func:`loratlas.evaluate`. They should not be those
            that the adapter was trained on.
        base: where the base lies, if elsewhere than the adapter says.
        limit, max_length: of the rows.
        delta: margin of equivalence, nats per token.
        listener: hears of progress.

    Returns:
        Ranks, parameters and distance; with rows the losses and a verdict by the rule of studies: the 95 % interval
        of the paired difference inside ±delta is *equivalent*, else without 0 *better* or *worse*, else
        *undetermined*. It is about these two adapters on new rows, not about new seeds.

    Raises:
        BudgetError: a budget that does not parse, of something else than parameters, or below one direction.
        ModelError: no adapter there, or one whose update is not s·B·A alone (DoRA, PiSSA as saved, expert stacks).
        DataError: rows that cannot be read. OutputError: something lies in ``out``. Nothing is written then.

    >>> import loratlas
    >>> loratlas.shrink("nowhere", "out", budget="params=100k")
    Traceback (most recent call last):
    loratlas.errors.ModelError: ...
    """
    from loratlas.adapters.stored.read_adapter import read_adapter
    from loratlas.api.results import Run
    from loratlas.sources import model_source
    from loratlas.spectra.shrink_adapter import check_shrinkable
    from loratlas.spectra.shrink_adapter import shrink as write

    hear = listener or Silent()
    folder = adapter_folder(adapter.adapter if isinstance(adapter, Run) else Path(adapter))
    contents = read_adapter(folder)
    check_shrinkable(contents)
    check_out(Path(out), what="adapter")
    source = model_source(base) if base else contents.base
    allowed = allowance_of(budget, source)
    if data is not None and source is None:
        raise DataError(
            given="--data",
            found="an adapter that does not name its base, to measure the loss with",
            instead="--base MODEL",
        )
    before = _losses(source, data, folder, limit, max_length, hear) if data is not None else None
    made = write(contents, Path(out), budget=allowed)
    loss = None
    if before is not None:
        loss = compared(before, _losses(source, data, Path(out), limit, max_length, hear), delta=delta)
    remarks = []
    if allowed >= made.before:
        remarks.append(
            f"The budget of {allowed:,} parameters is no less than the adapter has: nothing was cut off."
        )
    total = made.kept.total or 1.0
    return Shrinkage(
        numbers={
            "schema": "loratlas.shrink",
            "version": 1,
            "adapter": str(folder),
            "path": made.path,
            "budget": budget,
            "before": {"parameters": made.before},
            "after": {"parameters": made.after},
            "kept": made.kept.kept / total,
            "bound": made.kept.bound / total,
            "distance": made.kept.distance,
            "sites": [{"module": m, "before": b, "after": a} for m, (b, a) in made.ranks.items()],
            "loss": loss,
            "remarks": remarks,
        }
    )


def allowance_of(budget: str, source: str | None) -> int:
    """Parameters that a budget allows.

    Raises:
        BudgetError: see :func:`shrink`.
    """
    from loratlas.placement.budget import allowance, parse_budget
    from loratlas.spectra.site_labels import base_anatomy

    parsed = parse_budget(budget)
    if parsed.quantity != "params":
        raise BudgetError(
            given=f"--budget {budget}",
            found="a quantity that is not known of an adapter alone",
            instead="params=200k, params=0.1% (of the base) or like=q,v:4",
        )
    if parsed.amount is not None:
        return math.floor(parsed.amount)
    anatomy = base_anatomy(source)
    if anatomy is None:
        raise BudgetError(
            given=f"--budget {budget}",
            found="a budget that is measured by the base, whose config is not to be had",
            instead="params=200k, or --base MODEL",
        )
    return allowance(parsed, anatomy)


def _losses(
    source: Any, data: Any, folder: Path, limit: int | None, max_length: int, hear: Listener
) -> tuple[Any, Any, str]:
    """Summed losses and counted tokens of the rows, and what a loss is per."""
    from loratlas.api.evaluate_model import evaluate
    from loratlas.evaluation.loss_files import EXAMPLES, read_columns

    with tempfile.TemporaryDirectory(prefix="loratlas-") as out:
        judged = evaluate(
            source,
            data,
            adapter=folder,
            limit=limit,
            max_length=max_length,
            out=Path(out) / "scores",
            listener=hear,
        )
        table = read_columns(Path(out) / "scores", EXAMPLES, ("n", "nll"))
    return table["nll"], table["n"], "row" if "accuracy" in judged.numbers else "token"


def compared(before: tuple[Any, Any, str], after: tuple[Any, Any, str], *, delta: float) -> dict[str, Any]:
    """The paired difference of two adapters on the same rows, with its interval and verdict.

        D = Σ(after − before) / Σn,   r_i = ((after − before)_i − D·n_i) / n̄,   V = s²(r) / N

    The t interval with N − 1 degrees of freedom; see `loratlas.study.results.findings` for the rule.

    Args:
        before, after: summed losses [N], counted tokens [N], "token" or "row".
        delta: margin of equivalence.
    """
    import numpy as np
    from scipy.stats import t

    from loratlas.study.results.findings import decide

    (old, n, per), (new, _, _) = before, after
    n = np.asarray(n, dtype=np.float64)
    d = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    D, N = float(d.sum() / n.sum()), len(d)
    half = math.nan
    if N > 1:
        r = (d - D * n) / n.mean()
        half = float(t.ppf(0.5 + LEVEL / 2, N - 1) * r.std(ddof=1) / math.sqrt(N))
    verdict = decide((D - half, D + half), delta=delta)
    words = {
        "equivalent": f"The smaller adapter is equivalent within ±{delta:g} nats per {per}",
        "better": f"The smaller adapter is better by {formats.loss(abs(D))} nats per {per}",
        "worse": f"The smaller adapter is worse by {formats.loss(abs(D))} nats per {per}",
        "undetermined": "Whether the smaller adapter is worse is undetermined",
    }[verdict]
    interval = "" if N < 2 else f", 95 % interval {formats.signed(D - half)} to {formats.signed(D + half)}"
    return {
        "per": per,
        "before": float(np.sum(old) / n.sum()),
        "after": float(np.sum(new) / n.sum()),
        "difference": D,
        "ci": [None, None] if N < 2 else [D - half, D + half],
        "level": LEVEL,
        "delta": delta,
        "examples": N,
        "verdict": verdict,
        "sentence": f"{words}: {formats.signed(D)} on {formats.count(N)} rows{interval}. It is about these two "
        "adapters and new rows, not about new seeds.",
    }
