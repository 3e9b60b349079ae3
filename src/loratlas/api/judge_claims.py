"""`loratlas.claims`: what holds of the study that this project comes from, by its evidence and by your own studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.display import Block, Displayed, Grid

if TYPE_CHECKING:
    from loratlas.claims.claim_verdict import ClaimVerdict
    from loratlas.claims.evidence_files import ClaimEvidence

SCHEMA, VERSION = "loratlas.claims", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims(Displayed):
    """Eight claims with their verdicts.

    Args:
        verdicts: in the order of the claims.
        evidence: what they rest on.

    >>> import loratlas
    >>> loratlas.claims().verdicts[0].verdict
    'does not hold'
    """

    verdicts: tuple[ClaimVerdict, ...]
    evidence: ClaimEvidence

    def blocks(self) -> list[Block]:
        """The verdicts, and what they rest on."""
        from loratlas.claims.claims_page import standing

        rows = tuple((str(one.number), one.claim, one.verdict) for one in self.verdicts)
        return [Grid(columns=("#", "claim", "verdict"), rows=rows), standing(self.evidence)]

    def page(self) -> str:
        """All claims with their numbers, as Markdown."""
        from loratlas.claims.claims_page import page

        return page(self.verdicts, self.evidence)

    def to_json(self) -> dict[str, Any]:
        """Plain data, schema ``loratlas.claims``."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "claims": [one.to_json() for one in self.verdicts],
            "studies": [
                {
                    name: study[name]
                    for name in ("name", "base", "task", "complete", "superseded", "spec_digest")
                }
                for study in self.evidence.studies
            ],
        }


def claims(*studies: str | Path | Mapping[str, Any]) -> Claims:
    """What holds of the founding study's claims: a verdict on each, with its numbers.

    Args:
        studies: of your own, judged beside those that come with the package: folders that a study wrote, the JSON that
            `loratlas study --json` printed, or `loratlas.Study.numbers`. One of the same name replaces the package's.

    Returns:
        Verdicts; ``page()`` has the tables behind them.

    Raises:
        DataError: no study there.

    >>> import loratlas
    >>> [one.number for one in loratlas.claims().verdicts]
    [1, 2, 3, 4, 5, 6, 7, 8]
    """
    from loratlas.claims.evidence_files import packaged, read_study, with_studies
    from loratlas.claims.verdicts import judge_claims

    read = [study if isinstance(study, Mapping) else read_study(study) for study in studies]
    evidence = with_studies(packaged(), read) if read else packaged()
    return Claims(verdicts=tuple(judge_claims(evidence)), evidence=evidence)
