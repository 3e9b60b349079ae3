"""Placements on a model with unidentified matrices: refused, until the user has seen which."""

from __future__ import annotations

from loratlas.anatomy.role_table import TEXT_SCOPES
from loratlas.anatomy.sites import Unresolved
from loratlas.placement.legacy import names_of
from loratlas.placement.module_names import ends, glob, shapes_of
from loratlas.placement.selection import Selection
from loratlas.placement.terms import Edit, Mistake, Name, Placement
from loratlas.placement.vocabulary import holds


def refuse_unsure(placement: Placement, selection: Selection) -> None:
    """Refuse a placement that may mean a matrix whose role is unknown.

    A path means what it says; a role may stand for an unresolved matrix as well, if a reader took the matrix for
    one of that role, or if no reader took it for anything.

    Raises:
        Mistake: with the matrices and the way on.
    """
    anatomy = selection.anatomy
    if not anatomy.unresolved:
        return
    checked: set[tuple[str | None, str]] = set()
    for term in placement.terms:
        for name in term.names if term.adds else ():
            if name.quoted or (name.scope, name.word) in checked:
                continue
            checked.add((name.scope, name.word))
            unsure = [item for item in anatomy.unresolved if _may_be(item, name)]
            if unsure:
                listed = "; ".join(f"{item.path} ({item.reason})" for item in unsure[:3])
                raise Mistake(
                    placement.source,
                    name.position,
                    found=f"{len(unsure)} matrices of {anatomy.model} are unidentified and may belong to "
                    f"{name.text}: {listed}{'; …' if len(unsure) > 3 else ''}",
                    advice="or --allow-unresolved to leave them out and adapt the rest (in a study file, "
                    "allow_unresolved: true; `loratlas map` lists them all)",
                    edits=_as_paths(name, selection),
                )


def _as_paths(name: Name, selection: Selection) -> list[Edit]:
    """The name as quoted paths of what it certainly holds."""
    sites = {site.path for site in selection.of(name) if site.adaptable and not site.tied_to}
    modules = [site.module for site in selection.anatomy.sites if site.path in sites]
    shapes = [f'"{shape}"' for shape in shapes_of(modules)]
    fits = [glob(shape.strip('"')) for shape in shapes]
    exact = all(
        site.path in sites
        for site in selection.anatomy.sites
        if any(fit(site.module) or fit(site.path) for fit in fits)
    )
    paths = ",".join(shapes if exact else [f'"{module}"' for module in modules])
    first = next((site.module for site in selection.anatomy.adaptable if site.max_rank > 1), None)
    return [Edit(name.position, name.end, text) for text in (paths, f'"{first}"') if text]


def _may_be(item: Unresolved, name: Name) -> bool:
    if name.kind == "suffix":
        return ends(name.word)(item.path) or ends(name.word)(item.module)
    if name.kind == "legacy":
        return any(ends(word)(item.module) for word in names_of(name.word))
    if item.scope not in ({name.scope} if name.scope else TEXT_SCOPES) and name.kind != "linear":
        return False
    roles = [opinion.partition(": ")[2] for opinion in item.opinions]
    # A family alone, or a stack that may be routed or shared, is any of its parts.
    return (
        not roles
        or name.kind == "linear"
        or any(holds(name.word, role) or "." not in role or role.startswith("*") for role in roles)
    )
