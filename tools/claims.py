"""Collect the evidence on the founding study's claims from the committed results, and write the page.

    python tools/claims.py

Reads docs/results/*.json and benchmarks/results; writes src/loratlas/claims/evidence and docs/claims.md.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "src/loratlas/claims/evidence"
PAGE = ROOT / "docs/claims.md"


def collected() -> list[Any]:
    """The extract of every committed study."""
    from loratlas.claims.evidence_files import in_order
    from loratlas.claims.study_extract import extract

    read = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "docs/results").glob("*.json"))
    ]
    return in_order([extract(study) for study in read if study.get("schema") == "loratlas.study"])


def main() -> None:
    from loratlas.api.judge_claims import claims
    from loratlas.claims.evidence_files import PLACEMENT, SPEED, STUDIES
    from loratlas.files import write_json, write_text

    EVIDENCE.mkdir(exist_ok=True)
    write_json(EVIDENCE / STUDIES, collected())
    for name in (SPEED, PLACEMENT):
        if (ROOT / "benchmarks/results" / name).exists():
            shutil.copyfile(ROOT / "benchmarks/results" / name, EVIDENCE / name)
    write_text(PAGE, claims().page())


if __name__ == "__main__":
    main()
