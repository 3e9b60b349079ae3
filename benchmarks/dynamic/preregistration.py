"""What is judged, and how, written down before anything is judged.

``preregistered.json`` names cases, arms, policies with their settings, rates, lengths and seeds. It is committed first;
results carry its SHA-256 and that commit. A judging run reads its orders from the file alone, and refuses to begin
while the file differs from what was committed.
"""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dynamic.arms import REFERENCE
from benchmarks.dynamic.cases import Case
from benchmarks.dynamic.queue import FIRST_FRESH, Protocol
from loratlas.files import sha256

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).parents[1] / "results" / "preregistered.json"

START = FILE.with_name("preregistered_start.json")
"""Another question, registered by itself: where adapters begin."""

RANKS = FILE.with_name("preregistered_ranks.json")
"""A third one: ranks by the explained variance of inputs, with adapters that begin along them."""

THIRD = FILE.with_name("preregistered_auto.json")
"""The third edition: `auto` with adapters that begin along their inputs, on cases of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preregistered:
    """The file as it stands.

    Args:
        digest: SHA-256 of its bytes. commit: that holds it. content: what it says.
    """

    digest: str
    commit: str
    content: Mapping[str, Any]

    def cases(self) -> list[tuple[Case, bool]]:
        """(case, whether nothing was chosen on it), in the order in which they are judged."""
        return [(_case(entry), bool(entry["unseen"])) for entry in self.content["cases"]]

    def protocol(self, case: Case, arms: Sequence[str]) -> Protocol:
        """How a case is judged, for some of the arms; the reference is always among them."""
        entry = next(each for each in self.content["cases"] if _case(each) == case)
        return Protocol(
            arms=[REFERENCE, *(arm for arm in arms if arm != REFERENCE)],
            rates=self.content["rates"],
            lengths=[entry["steps"]],
            reference_lengths=[
                entry["steps"],
                *(round(entry["steps"] * more) for more in self.content["longer"]),
            ],
            tuning_lengths=[entry["steps"]],
            tuning_seeds=self.content["tuning_seeds"],
            fresh_seeds=self.content["fresh_seeds"],
            first_fresh=first_fresh(case),
            drop_hopeless=False,
        )


def first_fresh(case: Case) -> int:
    """The first evaluation seed of a case: each has its own, none is a tuning seed.

    >>> first_fresh(Case(base="demo:llama-mini", task="e2e")) >= FIRST_FRESH
    True
    """
    return FIRST_FRESH + 100 * (zlib.crc32(case.name.encode()) % 10_000)


def load(path: Path = FILE) -> Preregistered:
    """Read the file, as it was committed.

    Raises:
        SystemExit: it is not there, not committed, or was changed since.
    """
    if not path.exists():
        raise SystemExit(f"{path} is missing: write and commit it before anything is judged")
    commit = _git(path, "log", "-1", "--format=%H", "--", path.name)
    if not commit or _git(path, "status", "--porcelain", "--", path.name):
        raise SystemExit(f"{path} is not what was committed: commit it before anything is judged")
    return Preregistered(
        digest=sha256(path), commit=commit, content=json.loads(path.read_text(encoding="utf-8"))
    )


def code_changed(registered: Preregistered, root: Path = ROOT) -> list[str]:
    """The registered files that are not what was registered: changed since, or gone.

    What is judged with other code than was registered says which code that is.

    Args:
        registered: ``code`` of its content has each file's path in the repository and the first digits of its
            SHA-256; a registration without it names no file.
        root: the repository.
    """
    return [
        name
        for name, prefix in registered.content.get("code", {}).items()
        if not ((root / name).is_file() and sha256(root / name).startswith(prefix))
    ]


def _case(entry: Mapping[str, Any]) -> Case:
    return Case(
        base=entry["base"],
        task=entry["task"],
        budget=entry["budget"],
        batch=entry["batch"],
        held_out=entry["held_out"],
    )


def _git(path: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=path.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()  # empty too where nothing was committed yet
