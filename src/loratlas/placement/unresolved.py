"""Placements on a model of which some matrices could not be told: refused, until the user has seen which."""

from __future__ import annotations

from loratlas.anatomy.role_table import TEXT_SCOPES
from loratlas.anatomy.sites import Anatomy, Unresolved
from loratlas.placement.terms import Name, Placement, fail
from loratlas.placement.vocabulary import holds


def refuse_unsure(placement: Placement, anatomy: Anatomy) -> None:
    """Refuse a placement that may mean a matrix whose role is unknown.

    A path means what it says; a role may stand for an unresolved matrix as well, if a reader took the matrix for
    one of that role, or if no reader took it for anything.

    Raises:
        PlacementError: with the matrices and the way on.
    """
    for term in placement.terms:
        for name in term.names if term.adds else ():
            unsure = [item for item in anatomy.unresolved if not name.quoted and _may_be(item, name)]
            if unsure:
                listed = "; ".join(f"{item.path} ({item.reason})" for item in unsure[:3])
                fail(
                    placement.source,
                    name.position,
                    found=f"{len(unsure)} matrices of {anatomy.model} could not be told and may belong to "
                    f"{name.text}: {listed}{'; …' if len(unsure) > 3 else ''}",
                    instead="--allow-unresolved to leave them alone and go on with the rest (in a study file, "
                    "allow_unresolved: true; `loratlas map` lists them all), or exact paths in quotes",
                )


def _may_be(item: Unresolved, name: Name) -> bool:
    if item.scope not in ({name.scope} if name.scope else TEXT_SCOPES):
        return False
    roles = [opinion.partition(": ")[2] for opinion in item.opinions]
    # A family alone, or a stack that may be routed or shared, is any of its parts.
    return not roles or any(
        holds(name.word, role) or "." not in role or role.startswith("*") for role in roles
    )
