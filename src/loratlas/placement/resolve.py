"""From a parsed placement and an anatomy to the table: which sites, at which rank.

Terms are read from left to right: ``+`` puts sites in, ``-`` takes sites out. Every name of a term that puts sites
in must hold some, in every layer selection. A name that is taken away may hold none, as ``all - router`` does on
a model without routers; a quoted path and the end of a module name must hold some either way, being written for one
model. The end of a module name must hold sites of one role, in one tower: ``c_proj`` of GPT-2 is two matrices.

>>> from loratlas.anatomy.sites import Anatomy, Site
>>> sites = tuple(
...     Site(path=f"h.{i}.{part}.weight", module=f"h.{i}.{part}", layer=i, scope="decoder", role=f"attn.{part}",
...          shape=(8, 8), kind="linear")
...     for i in range(4) for part in "qv")
>>> anatomy = Anatomy(model="toy", model_type="toy", parameters=512, layers=4, sites=sites, config_digest="0",
...                   hidden=8, vocabulary=9, heads=1)
>>> from loratlas.placement.language import parse
>>> [(site.module, rank) for site, rank in resolve(parse("all@last1:4 + v@0..2:2"), anatomy)]
[('h.0.v', 2), ('h.1.v', 2), ('h.3.q', 4), ('h.3.v', 4)]
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.placement import refusals
from loratlas.placement.language import read_terms
from loratlas.placement.selection import Selection
from loratlas.placement.terms import Edit, Mistake, Name, Placement, Term
from loratlas.placement.unresolved import refuse_unsure

DEFAULT_RANK = 16
"""Rank of a term without one, where no budget is given (docs/decisions/default_rank.md)."""

MOST_VISITS = 1_000_000
"""Sites that the terms of one placement may put in and take out in all: about a second's work."""

Default: TypeAlias = int | Literal["auto"]


def resolve(
    placement: Placement,
    anatomy: Anatomy,
    *,
    default: Default = DEFAULT_RANK,
    allow_unresolved: bool = False,
) -> list[tuple[Site, int | None]]:
    """Look a placement's sites up.

    Args:
        placement: as parsed.
        anatomy: of the model.
        default: rank of terms that carry none.
        allow_unresolved: go on where matrices that a name may mean are unidentified; they are left alone.

    Returns:
        (site, rank) in the anatomy's order; rank None is ``auto``.

    Raises:
        PlacementError: a name or layer that holds nothing, the end of a module name that several roles share, a site
            that cannot carry an adapter, a rank larger than a matrix allows, two ranks for one site, unidentified
            matrices, or nothing left at the end. Its suggestions are texts that resolve on this anatomy.
    """
    selection = Selection(anatomy)
    table = partial(_table, selection=selection, default=default, allow_unresolved=allow_unresolved)
    try:
        return table(placement)
    except Mistake as mistake:
        error = mistake.refusal(lambda text: table(read_terms(text)))
    raise error


def _table(
    placement: Placement, *, selection: Selection, default: Default, allow_unresolved: bool
) -> list[tuple[Site, int | None]]:
    if not allow_unresolved:
        refuse_unsure(placement, selection)
    chosen: dict[str, tuple[Term, int | None]] = {}
    named: dict[str, Name] = {}
    visits = 0
    for term in placement.terms:
        sites = _sites(placement, term, selection)
        visits += len(sites) + len(term.names)
        if visits > MOST_VISITS:
            raise Mistake(
                placement.source,
                term.position,
                found=f"terms that name more than {MOST_VISITS:,} sites in all",
                advice="each site once",
                edits=[Edit(0, len(placement.source), placement.terms[0].text)],
            )
        if not term.adds:
            for site, _ in sites:
                chosen.pop(site.path, None)
            continue
        rank = default if term.rank is None else term.rank
        rank = None if rank == "auto" else rank
        for site, name in sites:
            if rank is not None and rank > site.max_rank:
                refusals.rank_too_large(placement, term, [site for site, _ in sites], rank)
            if site.path in chosen and chosen[site.path][1] != rank and not term.force:
                refusals.contradiction(placement, term, site, rank, chosen[site.path])
            chosen[site.path], named[site.path] = (term, rank), name
    if not chosen:
        refusals.nothing_left(placement)
    table = [(site, chosen[site.path][1]) for site in selection.anatomy.sites if site.path in chosen]
    for site, _ in table:
        refusals.unless_adaptable(placement, named[site.path], site, selection)
    return table


def _sites(placement: Placement, term: Term, selection: Selection) -> list[tuple[Site, Name]]:
    """The sites of one term, each once, with the name that holds it."""
    held: dict[str, tuple[Site, Name]] = {}
    for name in term.names:
        sites = selection.of(name, term.layers)
        if not sites:
            if term.layers is not None and selection.of(name):
                refusals.no_such_layers(placement, term, name, selection)
            if term.adds or name.kind != "word":
                refusals.no_such_name(placement, term, name, selection)
        if name.kind == "suffix" and len({(site.scope, site.role) for site in sites}) > 1:
            refusals.several_roles(placement, name, sites, selection)
        for site in sites:
            held[site.path] = (site, name)
    return list(held.values())
