"""The evidence that comes with the package, and studies of the reader's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from loratlas.claims.comparisons import contrasts
from loratlas.claims.study_extract import extract
from loratlas.errors import DataError

STUDIES, SPEED = "studies.json", "placement_speed.json"
PLACEMENT, AUTO = "placement-2.json", "placement.json"
"""Of `auto` that only places, and of `auto` as it is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimEvidence:
    """What the claims are judged by.

    Args:
        studies: extracts (`loratlas.claims.study_extract`), by base and task.
        speed: of each published arm's step on DialoGPT-medium's shape, with PEFT's layers and ours; None: not measured.
        placement: placements decided inside the run against `all` on cases that chose nothing; None: not measured.
        auto: the same of `auto` as it is now, which begins its adapters along their inputs as well, on other cases.
    """

    studies: tuple[Mapping[str, Any], ...]
    speed: Mapping[str, Any] | None
    placement: Mapping[str, Any] | None
    auto: Mapping[str, Any] | None = None

    @property
    def moves(self) -> Mapping[str, Any] | None:
        """`auto` against `all` that begins as it does and moves nothing: in how many cases ``better`` and ``worse``."""
        pooled = (self.auto or {}).get("pooled_unseen") or {}
        return pooled.get("auto_against", {}).get("begun")

    @property
    def standing(self) -> list[Mapping[str, Any]]:
        """Finished studies of the present protocol; one of the first stands until its question is answered anew.

        The question: a half of a model against all layers at equal parameters, for a kind of model and a task.
        """
        finished = [study for study in self.studies if study["complete"]]
        present = [study for study in finished if not study["superseded"]]
        answered = {_question(one.study) for one in contrasts(present) if one.equal}
        return [study for study in finished if not study["superseded"] or _question(study) not in answered]


def _question(study: Mapping[str, Any]) -> tuple[str, str]:
    return study["kind"], study["task"]


def packaged() -> ClaimEvidence:
    """The evidence that this project's own studies and benchmarks left."""
    return ClaimEvidence(
        studies=tuple(_packaged(STUDIES) or ()),
        speed=_packaged(SPEED),
        placement=_packaged(PLACEMENT),
        auto=_packaged(AUTO),
    )


def with_studies(evidence: ClaimEvidence, studies: Sequence[Mapping[str, Any]]) -> ClaimEvidence:
    """The evidence, with studies of the reader's own beside it; one of the same name takes the other's place."""
    added = [extract(study) for study in studies]
    names = {study["name"] for study in added}
    kept = [study for study in evidence.studies if study["name"] not in names]
    return replace(evidence, studies=tuple(in_order([*kept, *added])))


def in_order(studies: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By base and task, the way pages list them."""
    return sorted(
        studies, key=lambda study: (-study["parameters"], study["base"], study["task"], study["name"])
    )


def read_study(path: str | Path) -> Mapping[str, Any]:
    """A study's result: from its folder, or from the JSON that `loratlas study --json` printed.

    Raises:
        DataError: neither is there.
    """
    from loratlas.errors import OutputError
    from loratlas.sealed_json import read_sealed
    from loratlas.study.results.study_result import load_study

    path = Path(path)
    try:
        if path.is_dir():
            return load_study(path).to_json()
        value = read_sealed(path)
    except OutputError as error:
        raise DataError(given=str(path), found=error.found, instead="a folder that a study wrote") from error
    except (OSError, ValueError) as error:
        raise DataError(
            given=str(path),
            found="no such file" if isinstance(error, FileNotFoundError) else str(error),
            instead="a study's folder, or what `loratlas study --json` printed",
        ) from error
    if value.get("schema") != "loratlas.study":
        raise DataError(
            given=str(path),
            found="JSON of another schema",
            instead="a study's folder, or what `loratlas study --json` printed",
        )
    return value


def _packaged(name: str) -> Any:
    file = files("loratlas.claims").joinpath("evidence", name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
