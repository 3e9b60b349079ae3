"""A scan: signals measured on some rows of a task, and the plan that spends a budget by them.

Everything a scan has to say is in its JSON; a plan can be made from that file without the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import ModelError, RequestError, SettingsError
from loratlas.placement.allocate import Allocation, Limits, allocate
from loratlas.placement.language import parse
from loratlas.placement.plan import Plan, place_allocation
from loratlas.placement.resolve import DEFAULT_RANK, resolve
from loratlas.signals.ranking import tau

if TYPE_CHECKING:
    from loratlas.data.batches import Batch
    from loratlas.data.encode import Encoded
    from loratlas.placement.budget import Memory
    from loratlas.signals.base import Signal
    from loratlas.signals.measure import Measured, Reading

SCHEMA = "loratlas.scan"
VERSION = 1

AUTO = "auto"
"""The placement that a scan decides."""

NAMES = ("gradient", "activation", "alignment", "attention", "spectrum")
"""Signals that share the passes of one scan."""

DECIDES = "gradient"
"""The column that places adapters unless another is asked for."""

MOST_ROWS = 128
BATCH = 8
"""Rows of a pass."""

STEP = 16
"""Rows of the training step that a scan's cost is told in."""

GAINS = 64
"""Ranks per site whose gains are told."""

STREAM = 5
"""Word beside the seed that draws the calibration rows."""

LIKE = f"like=all:{DEFAULT_RANK}"
"""What a scan spends where no budget is given: what `all` without a rank does."""


def is_auto(placement: str | None) -> bool:
    """Whether a placement is left to a scan.

    >>> is_auto(" auto "), is_auto("all:auto"), is_auto(None)
    (True, False, False)
    """
    return placement is not None and placement.strip() == AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a scan found.

    Args:
        model: as the user wrote it; model_type, config_digest: of the base.
        source: where the rows came from; digest: of all of them.
        readings: by column.
        rows: calibration rows read. tokens: all tokens; labelled: counted ones.
        loss: of those rows before training, nats per counted token; None where no pass was made.
        settled: whether the order of the deciding column had settled; None where it was not watched.
        cost_in_steps: in training steps of `STEP` rows.
        seconds: that it took.
    """

    model: str
    model_type: str
    config_digest: str
    source: str
    digest: str
    readings: Mapping[str, Reading]
    rows: int
    tokens: int
    labelled: int
    loss: float | None
    settled: bool | None
    cost_in_steps: float
    seconds: float

    def agreement(self) -> list[dict[str, Any]]:
        """Kendall's τ between every two columns that have a signal, more being better in both."""
        speaking = [(name, r.worth) for name, r in self.readings.items() if r.silent is None]
        return [{"one": a, "two": b, "tau": tau(x, y)} for (a, x), (b, y) in combinations(speaking, 2)]

    def notes(self, by: str = DECIDES) -> list[str]:
        """What a reader has to know, in sentences."""
        said = []
        reading = self.readings.get(by)
        if self.settled is False and reading is not None and reading.repeats is not None:
            said.append(
                f"The order by {by} has not settled: two halves of {self.rows} rows agree with "
                f"τ = {reading.repeats:.2f}. More rows (--rows) may tell more."
            )
        for name, one in self.readings.items():
            if one.silent is not None:
                said.append(f"{name}: no signal, {one.silent}.")
        return said

    def to_json(self, *, gains: bool = True) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.scan``; the inverse is :meth:`from_json`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            "signals": [
                {
                    "name": name,
                    "unit": r.column.unit,
                    "pays": r.column.pays,
                    "adam": r.column.adam,
                    "repeats": r.repeats,
                    "repeats_top": r.repeats_top,
                    "silent": r.silent,
                }
                for name, r in self.readings.items()
            ],
            "scores": [
                {
                    "path": path,
                    "signal": name,
                    "value": value,
                    "unit": r.column.unit,
                    "error": r.errors.get(path),
                }
                for name, r in self.readings.items()
                for path, value in r.values.items()
            ],
            "agreement": self.agreement(),
            "gains": {
                name: {path: [float(f"{g:.6g}") for g in listed[:GAINS]] for path, listed in r.gains.items()}
                for name, r in self.readings.items()
                if gains and r.gains is not None
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            RequestError: another schema or version.
        """
        from loratlas.signals.base import Column
        from loratlas.signals.measure import Reading

        if data.get("schema") != SCHEMA or data.get("version") != VERSION:
            raise RequestError(
                given=f"an object of schema {data.get('schema')!r}, version {data.get('version')!r}",
                found=f"scores have schema {SCHEMA!r}, version {VERSION}",
                instead="what `loratlas scan MODEL DATA --json` prints",
            )
        readings = {}
        for told in data["signals"]:
            scores = [score for score in data["scores"] if score["signal"] == told["name"]]
            readings[told["name"]] = Reading(
                column=Column(**{key: told[key] for key in ("name", "unit", "pays", "adam")}),
                values={score["path"]: score["value"] for score in scores},
                errors={s["path"]: s["error"] for s in scores if s["error"] is not None},
                repeats=told["repeats"],
                repeats_top=told["repeats_top"],
                silent=told["silent"],
                gains=data.get("gains", {}).get(told["name"]),
            )
        return cls(**{name: data[name] for name in _PLAIN}, readings=readings)


_PLAIN = (
    "model",
    "model_type",
    "config_digest",
    "source",
    "digest",
    "rows",
    "tokens",
    "labelled",
    "loss",
    "settled",
    "cost_in_steps",
    "seconds",
)


def candidates(anatomy: Anatomy, among: str = "all") -> list[Site]:
    """The sites that a scan may choose from.

    Args:
        anatomy: of the model.
        among: a placement; ranks in it are not looked at.

    Raises:
        PlacementError: it finds nothing.
        SettingsError: a site that no signal can be measured at.
    """
    sites = [site for site, _ in resolve(parse(among), anatomy, default="auto")]
    odd = [site for site in sites if site.kind == "embedding"]
    if odd:
        raise SettingsError(
            given=f"a scan among {among}",
            found=f"{odd[0].module} looks rows up; signals are measured at matrices that multiply",
            instead="all, or roles inside the layers",
        )
    return sites


def scan(
    model: Any,
    anatomy: Anatomy,
    rows: Encoded,
    *,
    signals: Sequence[str] = NAMES,
    by: str = DECIDES,
    among: str = "all",
    most_rows: int = MOST_ROWS,
    seed: int = 0,
    packed: bool | None = None,
    fisher: bool = False,
    on_pass: Callable[[int, int], None] | None = None,
) -> Scan:
    """Measure signals on some rows of a task.

    Args:
        model: the bare base, on its device; left as it was.
        anatomy: of it.
        rows: encoded rows of the task; some are drawn.
        signals: names among `NAMES`, and ``probe`` (short trial training, see `loratlas.study.probe`).
        by: the column whose order must settle before reading ends.
        among: the sites to choose from, as a placement.
        most_rows: rows that are read at most; fewer when the order settles earlier.
        seed: draws rows and sketches.
        packed: whether batches are packed; None decides by the model's own proof.
        fisher: measure per-example second moments as well.
        on_pass: told (passes made, passes at most).

    Raises:
        SettingsError: an unknown signal, or one that decides and is not measured.
        DataError, ModelError: see `loratlas.signals.watch.one_pass`.
    """
    from loratlas.data.packing import prove_packing
    from loratlas.evaluation.losses import token_losses
    from loratlas.signals.measure import measure

    began = time.perf_counter()
    sites = candidates(anatomy, among)
    made = _made(signals, seed, fisher or by == "fisher")
    known = {column.name for signal in made for column in signal.columns}
    if "probe" in signals:
        from loratlas.study.probe import COLUMNS

        known |= {column.name for column in COLUMNS}
    if by not in known:
        raise SettingsError(
            given=f"a scan that decides by {by}",
            found="it is not measured",
            instead=f"one of {', '.join(sorted(known))}",
        )
    packed = prove_packing(model).exact if packed is None else packed
    batches = calibration(rows, most_rows=most_rows, seed=seed, packed=packed)

    def told(passes: int) -> None:
        if on_pass is not None:
            on_pass(passes, len(batches))

    watched = [by] if any(by == column.name for signal in made for column in signal.columns) else []
    found = measure(model, sites, batches, made, token_losses, watched=watched, ranks=4 * GAINS, on_pass=told)
    readings, cost = dict(found.readings), found.rows / STEP * (1.0 if found.backward else 0.5)
    if "probe" in signals:
        from loratlas.study.probe import probe

        more, steps = probe(model, sites, rows, batches, seed=seed, packed=packed)
        readings, cost = readings | more, cost + steps
    return _scan(anatomy, rows, readings, found, cost, time.perf_counter() - began)


def signal_of(column: str) -> str:
    """The signal that has this column, as `scan` takes it.

    >>> signal_of("gradient_energy"), signal_of("stable_rank")
    ('gradient', 'spectrum')
    """
    from loratlas.study.probe import COLUMNS

    owners = {column.name: "probe" for column in COLUMNS}
    for signal in _made(NAMES, 0, True):
        owners |= {column.name: signal.name for column in signal.columns}
    if column not in owners:
        raise SettingsError(
            given=f"--by {column}", found="no such score", instead=f"one of {', '.join(owners)}"
        )
    return owners[column]


def _scan(
    anatomy: Anatomy,
    rows: Encoded,
    readings: Mapping[str, Reading],
    found: Measured,
    cost: float,
    seconds: float,
) -> Scan:
    return Scan(
        model=anatomy.model,
        model_type=anatomy.model_type,
        config_digest=anatomy.config_digest,
        source=rows.source,
        digest=rows.digest,
        readings=readings,
        rows=found.rows,
        tokens=found.tokens,
        labelled=found.labelled,
        loss=found.loss if found.rows else None,
        settled=found.settled,
        cost_in_steps=cost,
        seconds=seconds,
    )


def calibration(rows: Encoded, *, most_rows: int, seed: int, packed: bool) -> list[Batch]:
    """Batches of the rows that a scan reads: drawn by the seed, in the order drawn."""
    from loratlas.data.batches import collate
    from loratlas.signals.base import FOLDS

    if most_rows < FOLDS:
        raise SettingsError(
            given=f"a scan of {most_rows} rows",
            found="too few to tell whether an order repeats",
            instead=f"{FOLDS} rows or more",
        )
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, STREAM])))
    order = stream.permutation(len(rows))[:most_rows].tolist()
    size = max(1, min(BATCH, len(order) // FOLDS))
    return [
        collate([rows.examples[i] for i in part], packed=packed, pad_id=rows.pad_id, rows=part)
        for part in (order[start : start + size] for start in range(0, len(order), size))
    ]


def check_signals(names: Sequence[str]) -> None:
    """Refuse names that are no signals, or none at all.

    Raises:
        SettingsError: so.
    """
    unknown = [name for name in names if name not in (*NAMES, "probe")]
    if unknown or not names:
        raise SettingsError(
            given=f"the signal {unknown[0]!r}" if unknown else "no signal",
            found="no such signal" if unknown else "nothing to measure",
            instead=f"among {', '.join(NAMES)}, probe",
        )


def _made(names: Sequence[str], seed: int, fisher: bool) -> list[Signal]:
    from loratlas.signals.activation import Activation
    from loratlas.signals.alignment import Alignment
    from loratlas.signals.attention import Attention
    from loratlas.signals.gradient import Gradient
    from loratlas.signals.spectrum import Spectrum

    kinds: dict[str, Callable[[], Signal]] = {
        "gradient": lambda: Gradient(seed=seed, fisher=fisher),
        "activation": lambda: Activation(seed=seed),
        "alignment": lambda: Alignment(seed=seed),
        "attention": lambda: Attention(seed=seed),
        "spectrum": lambda: Spectrum(seed=seed),
    }
    check_signals(names)
    return [kinds[name]() for name in dict.fromkeys(names) if name != "probe"]


def gains(reading: Reading, sites: Sequence[Site], *, ranks: int = 4 * GAINS) -> dict[str, list[float]]:
    """Path → what rank 1, 2, … adds by a column.

    A column with one number per site counts it as √r: v·(√j − √(j − 1)) for rank j. Of a column in which low values pay
    it is 1/v that counts.
    """
    if reading.gains is not None:
        return {site.path: list(reading.gains[site.path]) for site in sites if site.path in reading.gains}
    root = np.diff(np.sqrt(np.arange(ranks + 1)))
    found = {}
    for site in sites:
        value = reading.values.get(site.path)
        if value is not None:
            worth = max(value, 0.0) if reading.column.pays == "high" else 1 / max(value, 1e-12)
            found[site.path] = (worth * root[: site.max_rank]).tolist()
    return found


def plan_from(
    scan: Scan,
    anatomy: Anatomy,
    *,
    budget: str | None = None,
    by: str = DECIDES,
    among: str = "all",
    limits: Limits | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    memory: Memory | None = None,
) -> tuple[Plan, Allocation]:
    """Spend a budget by a scan's scores.

    Args:
        scan: of this model.
        anatomy: of the model.
        budget: what may be spent; None for `LIKE`.
        by: the column that decides.
        among: the sites to choose from.
        limits: see `loratlas.placement.allocate.Limits`.
        alpha, rslora, memory: as for `loratlas.placement.plan.place`.

    Raises:
        ModelError: the scores are of another model.
        SettingsError: no signal, or a column that was not measured.
        BudgetError: see `loratlas.placement.allocate.allocate`.
    """
    if scan.config_digest != anatomy.config_digest:
        raise ModelError(
            given=f"scores of {scan.model} (config {scan.config_digest})",
            found=f"a model with another config: {anatomy.model} ({anatomy.config_digest})",
            instead=f"the scores of a scan of {anatomy.model}",
        )
    reading = scan.readings.get(by)
    if reading is None:
        raise SettingsError(
            given=f"a plan by {by}", found="it was not measured", instead=f"one of {', '.join(scan.readings)}"
        )
    if reading.silent is not None:
        raise SettingsError(
            given=f"a plan by {by} on {scan.source}",
            found=f"no signal: {reading.silent}",
            instead="a placement in words, such as all, other rows, or another signal (--by)",
        )
    allocation = allocate(anatomy, gains(reading, candidates(anatomy, among)), budget or LIKE, limits, memory)
    return place_allocation(anatomy, allocation, alpha=alpha, rslora=rslora), allocation


def load_scan(path: Any) -> Scan:
    """Read a scan's JSON file.

    Raises:
        RequestError: no such file, no JSON, or no scan.
    """
    import json
    from pathlib import Path

    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = (
            "no such file" if isinstance(error, FileNotFoundError) else f"no JSON that can be read ({error})"
        )
        raise RequestError(
            given=f"the scores {path}", found=why, instead="what `loratlas scan MODEL DATA --json` printed"
        ) from error
    if not isinstance(data, dict):
        raise RequestError(
            given=f"the scores {path}",
            found="JSON that is no object",
            instead="what `loratlas scan MODEL DATA --json` printed",
        )
    return Scan.from_json(data)


def renamed(scan: Scan, model: str) -> Scan:
    """The scan under the name that the user wrote."""
    return replace(scan, model=model)
