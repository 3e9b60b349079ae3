"""What a scan found, as a file: scores of every column, and from when on they can be trusted.

Everything a scan has to say is in its JSON; a plan can be made from that file without the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from loratlas.errors import RequestError
from loratlas.scan.advice import DECIDED_BEFORE, about_length
from loratlas.sealed_json import read_sealed
from loratlas.signals.rank_correlation import tau
from loratlas.signals.registry import TRIAL_COLUMNS

if TYPE_CHECKING:
    from loratlas.signals.measure_signals import Reading

SCHEMA = "loratlas.scan"
VERSION = 1

RESULT = "scan.json"
"""Of a scan's folder."""

STEP = 16
"""Rows of the training step that a scan's cost is given in."""

GAINS = 64
"""Ranks per site whose gains are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a scan found.

    Args:
        model: as the user wrote it; model_type, config_digest: of the base.
        source: where the rows came from; digest: of all of them.
        by: the column that decides.
        readings: by column.
        rows: rows that were read, each counted once. visits: as often as they were read; trials read rows again.
        tokens: of all visits; labelled: counted ones.
        loss: of those rows before training, nats per counted token; None where no pass was made.
        settled: whether the order of the deciding column had settled; None where it was not watched.
        cost_in_steps: in training steps of `STEP` rows.
        seconds: that it took.
        trial_steps: of each trial; None where nothing was trained.
    """

    model: str
    model_type: str
    config_digest: str
    source: str
    digest: str
    by: str
    readings: Mapping[str, Reading]
    rows: int
    visits: int
    tokens: int
    labelled: int
    loss: float | None
    settled: bool | None
    cost_in_steps: float
    seconds: float
    trial_steps: int | None = None

    def agreement(self) -> list[dict[str, Any]]:
        """Kendall's τ between every two columns that have a signal, more being better in both."""
        speaking = [(name, r.worth) for name, r in self.readings.items() if r.silent is None]
        return [{"one": a, "two": b, "tau": tau(x, y)} for (a, x), (b, y) in combinations(speaking, 2)]

    def notes(self, by: str | None = None) -> list[str]:
        """What a reader has to know, in sentences; of the column that decides unless another is named."""
        said, by = [], by or self.by
        reading = self.readings.get(by)
        if self.settled is False and reading is not None and reading.repeats is not None:
            two, more = f"two halves of {self.rows} rows agree", " More rows (--rows) may settle it."
            if by in TRIAL_COLUMNS:
                two, more = "two trials, each on rows of its own, agree", ""
            said.append(f"The order by {by} has not settled: {two} with τ = {reading.repeats:.2f}.{more}")
        if by in TRIAL_COLUMNS and self.trial_steps is not None:
            shorter = about_length(self.trial_steps, by)
            said += [shorter] if shorter else []
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
        from loratlas.signals.column import Column
        from loratlas.signals.measure_signals import Reading

        if data.get("schema") != SCHEMA or data.get("version") != VERSION:
            raise RequestError(
                given=f"an object of schema {data.get('schema')!r}, version {data.get('version')!r}",
                found=f"scores have schema {SCHEMA!r}, version {VERSION}",
                instead="what `loratlas scan MODEL DATA --json` prints",
            )
        readings = {}
        for entry in data["signals"]:
            scores = [score for score in data["scores"] if score["signal"] == entry["name"]]
            readings[entry["name"]] = Reading(
                column=Column(**{key: entry[key] for key in ("name", "unit", "pays", "adam")}),
                values={score["path"]: score["value"] for score in scores},
                errors={s["path"]: s["error"] for s in scores if s["error"] is not None},
                repeats=entry["repeats"],
                repeats_top=entry["repeats_top"],
                silent=entry["silent"],
                gains=data.get("gains", {}).get(entry["name"]),
            )
        # Older files have none of these.
        known = {"by": DECIDED_BEFORE, "visits": data.get("rows"), "trial_steps": None} | dict(data)
        return cls(**{name: known[name] for name in _PLAIN}, readings=readings)


_PLAIN = (
    "model",
    "model_type",
    "config_digest",
    "source",
    "digest",
    "by",
    "rows",
    "visits",
    "tokens",
    "labelled",
    "loss",
    "settled",
    "cost_in_steps",
    "seconds",
    "trial_steps",
)


def load_scan(path: Any) -> Scan:
    """Read a scan's JSON file, or the folder that `scan --out` wrote.

    Raises:
        RequestError: no such file, no JSON, or no scan.
    """
    path = Path(path)
    path = path / RESULT if path.is_dir() else path
    instead = "what `loratlas scan MODEL DATA --out` wrote, or --json printed"
    try:
        data = read_sealed(path)
    except (OSError, ValueError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise RequestError(given=f"the scores {path}", found=why, instead=instead) from error
    return Scan.from_json(data)
