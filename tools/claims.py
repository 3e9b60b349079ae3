"""Collect the evidence on the founding study's claims from the committed results, and write the page.

    python tools/claims.py

Reads docs/results/*.json and benchmarks/results; writes src/loratlas/claims/evidence, docs/claims.md, the page of
all studies, the founding study's page with its figures (`tools.founding`), and the table of placements in the README
and the guide.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from loratlas.claims.evidence_files import AUTO, PLACEMENT, SPEED, STUDIES

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "src/loratlas/claims/evidence"
PAGE = ROOT / "docs/claims.md"
STUDY = ROOT / "docs/results/founding-study.md"
LEDGERS = ROOT / "docs/results/studies.md"
IMAGES = ROOT / "docs/images"
RESULTS = ROOT / "benchmarks/results"
ADVISING = (ROOT / "README.md", ROOT / "docs/guide/placement.md")
"""Pages with the table of placements."""

SOURCES = {SPEED: RESULTS, PLACEMENT: RESULTS / "earlier", AUTO: RESULTS}
"""Evidence of benches → the folder that it is copied from."""


def collected() -> list[Any]:
    """The extract of every committed study."""
    from loratlas.claims.evidence_files import in_order
    from loratlas.claims.study_extract import extract

    return in_order([extract(study) for study in committed()])


def committed() -> list[Any]:
    """Every committed study."""
    read = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "docs/results").glob("*.json"))
    ]
    return [study for study in read if study.get("schema") == "loratlas.study"]


def founding() -> dict[Path, str]:
    """Path → what it should hold: the founding study's page, its figures, and the pages with the table."""
    import textwrap

    from tools.founding.advice import advice, replaced, table
    from tools.founding.page import page, pictures
    from tools.founding.studies import studies_page

    from loratlas.claims.claims_page import standing
    from loratlas.claims.evidence_files import packaged

    evidence = packaged()
    reach = standing(evidence)
    advised = f"{table(advice(evidence))}\n\n{textwrap.fill(reach[0].upper() + reach[1:], 120)}"
    made = {STUDY: page(evidence), LEDGERS: studies_page(committed())}
    made |= {IMAGES / name: svg for name, svg in pictures(evidence).items()}
    return made | {path: replaced(path.read_text(encoding="utf-8"), advised) for path in ADVISING}


def main() -> None:
    from loratlas.api.judge_claims import claims
    from loratlas.files import write_json, write_text

    EVIDENCE.mkdir(exist_ok=True)
    write_json(EVIDENCE / STUDIES, collected())
    for name, folder in SOURCES.items():
        if (folder / name).exists():
            shutil.copyfile(folder / name, EVIDENCE / name)
    write_text(PAGE, claims().page())
    for path, text in founding().items():
        write_text(path, text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
