"""The claims as a page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loratlas.claims.claim_tables import short_of_protocol
from loratlas.claims.claim_verdict import ClaimVerdict
from loratlas.claims.evidence_files import ClaimEvidence


def page(claims: Sequence[ClaimVerdict], evidence: ClaimEvidence) -> str:
    """The page: all verdicts in one table, then each claim with its numbers."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("loratlas.claims"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = made.get_template("claims.md.j2").render(claims=claims, standing=standing(evidence))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def standing(evidence: ClaimEvidence) -> str:
    """Which studies the verdicts rest on, and by which edition of the protocol."""
    judged = evidence.standing
    old = sum(study["superseded"] for study in judged)
    unfinished = sum(not study["complete"] for study in evidence.studies)
    left = sum(study["superseded"] for study in evidence.studies) - old
    text = f"{len(judged)} finished studies are behind these verdicts"
    if old:
        which = "all" if old == len(judged) else str(old)
        text += (
            f"; {which} of them are of the protocol's first edition, with learning rates too far apart, and "
            "superseded: a verdict that rests on them may turn"
        )
    elif left:
        text += f"; {left} of the protocol's first edition are superseded and left out"
    short = sum(short_of_protocol(study) for study in judged)
    if short:
        text += f"; {short} of them chose learning rates by fewer tuning seeds than the protocol asks for"
    if unfinished:
        text += f"; {unfinished} are unfinished and left out"
    return text + "."
