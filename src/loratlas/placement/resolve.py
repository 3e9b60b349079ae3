"""From a parsed placement and an anatomy to the table: which sites, at which rank.

Terms are read from left to right: ``+`` puts sites in, ``-`` takes sites out. Every name of a term that puts sites
in must find some, in every layer selection. A name that is taken away may find none, as ``all - router`` does on
a model without routers; a quoted path must find some either way, being written for one model.

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

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Literal, NoReturn

from loratlas.anatomy.role_table import TEXT_SCOPES, related_parts
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import PlacementError
from loratlas.placement.layer_ranges import Layers
from loratlas.placement.terms import Name, Placement, Term, fail
from loratlas.placement.unresolved import refuse_unsure
from loratlas.placement.vocabulary import holds

DEFAULT_RANK = 16
"""Rank of a term without one, where no budget is given (docs/decisions/default_rank.md)."""


def resolve(
    placement: Placement,
    anatomy: Anatomy,
    *,
    default: int | Literal["auto"] = DEFAULT_RANK,
    allow_unresolved: bool = False,
) -> list[tuple[Site, int | None]]:
    """Find a placement's sites.

    Args:
        placement: as parsed.
        anatomy: of the model.
        default: rank of terms that carry none.
        allow_unresolved: go on where matrices that a name may mean could not be told; they are left alone.

    Returns:
        (site, rank) in the anatomy's order; rank None is ``auto``.

    Raises:
        PlacementError: a name or layer that finds nothing, a site that cannot carry an adapter, a rank larger than
            a matrix allows, two ranks for one site, matrices that could not be told, or nothing left at the end.
    """
    if not allow_unresolved:
        refuse_unsure(placement, anatomy)
    found: dict[str, tuple[Term, int | None]] = {}
    named: dict[str, Name] = {}
    for term in placement.terms:
        sites = _term(placement, term, anatomy)
        if not term.adds:
            for site, _ in sites:
                found.pop(site.path, None)
            continue
        rank = default if term.rank is None else term.rank
        rank = None if rank == "auto" else rank
        for site, name in sites:
            _check_rank(placement, term, site, rank)
            if site.path in found and found[site.path][1] != rank and not term.force:
                _contradiction(placement, term, site, rank, found[site.path])
            found[site.path], named[site.path] = (term, rank), name
    if not found:
        raise PlacementError(
            given=placement.text,
            found="nothing is left after what was taken away",
            instead="a term that stays",
        )
    chosen = [(site, found[site.path][1]) for site in anatomy.sites if site.path in found]
    shared = _shared(anatomy)
    for site, _ in chosen:
        _check_site(placement, named[site.path], site, shared)
    return chosen


def select(name: Name, layers: Layers | None, anatomy: Anatomy) -> list[Site]:
    """The sites that one name finds in these layers, adaptable or not, in the anatomy's order."""
    test = _test(name)
    wanted = {scope: _layers_of(layers, anatomy, scope) for scope in _scopes(anatomy)}
    return [
        site
        for site in anatomy.sites
        if test(site)
        and (layers is None or (site.layer is not None and site.layer in (wanted[site.scope] or ())))
    ]


def depth(anatomy: Anatomy, scope: str) -> int:
    """Number of layers of a tower."""
    seen = max(
        (site.layer for site in anatomy.sites if site.scope == scope and site.layer is not None), default=-1
    )
    return max(seen + 1, anatomy.layers if scope == "decoder" else 0)


def _scopes(anatomy: Anatomy) -> list[str]:
    return list(dict.fromkeys(site.scope for site in anatomy.sites))


def _layers_of(layers: Layers | None, anatomy: Anatomy, scope: str) -> tuple[int, ...] | None:
    return layers.of(depth(anatomy, scope)) if layers is not None else None


def _test(name: Name) -> Callable[[Site], bool]:
    if name.quoted:
        pattern = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in name.word))
        return lambda site: bool(pattern.fullmatch(site.module) or pattern.fullmatch(site.path))
    scopes = {name.scope} if name.scope else TEXT_SCOPES
    return lambda site: site.scope in scopes and holds(name.word, site.role)


def _named(anatomy: Anatomy) -> dict[str, Site]:
    """A matrix that is called under several names is one site, whichever of them was meant."""
    return {path: site for site in anatomy.sites for path in site.called_as}


def _shared(anatomy: Anatomy) -> set[str]:
    """Matrices that others are tied to, and that are no single site for all of their names."""
    named = _named(anatomy)
    return {site.tied_to for site in anatomy.sites if site.tied_to and site.path not in named}


def _term(placement: Placement, term: Term, anatomy: Anatomy) -> list[tuple[Site, Name]]:
    first = _named(anatomy)
    found: dict[str, tuple[Site, Name]] = {}
    for name in term.names:
        sites = select(name, term.layers, anatomy)
        if not sites:
            anywhere = select(name, None, anatomy)
            if anywhere and term.layers is not None:
                _no_layers(placement, term, anatomy, anywhere)
            if term.adds or name.quoted:
                _nothing(placement, name, anatomy)
        for one in sites:
            site = first.get(one.path, one)
            found[site.path] = (site, name)
    return list(found.values())


def _check_site(placement: Placement, name: Name, site: Site, shared: set[str]) -> None:
    if site.tied_to or site.path in shared:
        partner = (
            f"shares its weights with {site.tied_to}" if site.tied_to else "shares its weights with the head"
        )
        fail(
            placement.source,
            name.position,
            found=f"{site.module} {partner}; an adapter would act in one place only and be merged into both",
            instead="attention, feedforward or all, which leave tied matrices alone",
        )
    if not site.adaptable:
        kind = (
            "of no effect there" if "inert" in site.flags else f"not possible on a matrix of kind {site.kind}"
        )
        found, less = f"an adapter by name is {kind}: {site.path} ({site.role})", site.role
        if site.kind == "experts":
            found = (
                f"{site.path} ({site.role}) is read outside the module that holds it: an adapter would not act "
                "while training, and change the model when it is merged"
            )
            less = site.family
        fail(
            placement.source,
            name.position,
            found=found,
            instead=f"the same without it, e.g. {placement.text} - {less}",
        )


def _check_rank(placement: Placement, term: Term, site: Site, rank: int | None) -> None:
    if rank is not None and rank > site.max_rank:
        written = term.rank is not None
        fail(
            placement.source,
            term.rank_position if written else term.position,
            found=f"rank {rank}{'' if written else ' (the default)'}, while {site.module} is "
            f"{site.shape[0]} by {site.shape[1]}",
            instead=f"a rank of at most {site.max_rank}",
        )


def _contradiction(
    placement: Placement, term: Term, site: Site, rank: int | None, earlier: tuple[Term, int | None]
) -> NoReturn:
    def said(value: int | None, by: Term) -> str:
        return f"{'auto' if value is None else value}{'' if by.rank is not None else ' (the default)'}"

    winner = f"{term.text.partition(':')[0]}:{rank}!" if rank is not None else "one rank for both"
    fail(
        placement.source,
        term.rank_position if term.rank is not None else term.position,
        found=f"two ranks for {site.module}: {said(earlier[1], earlier[0])} from {earlier[0].text}, "
        f"and {said(rank, term)} here",
        instead=f"{winner}, if this term is to win",
    )


def _no_layers(placement: Placement, term: Term, anatomy: Anatomy, anywhere: Iterable[Site]) -> NoReturn:
    assert term.layers is not None
    inside = sorted({site.layer for site in anywhere if site.layer is not None})
    scope = next(iter(anywhere)).scope
    count = depth(anatomy, scope)
    if not inside:
        found = f"{term.names[0].text} stands in no layer"
        instead = "the name without @"
    elif term.layers.of(count) is None:
        found = (
            f"layers {term.layers.text}, while the {scope} of {anatomy.model} has {count}: 0 to {count - 1}"
        )
        instead = f"layers below {count}" if count > 1 else "layer 0"
    else:
        found = f"no such matrix in layers {term.layers.text}"
        instead = f"layers among {', '.join(map(str, inside[:12]))}{', …' if len(inside) > 12 else ''}"
    fail(placement.source, term.layers_position, found=found, instead=instead)


def _nothing(placement: Placement, name: Name, anatomy: Anatomy) -> NoReturn:
    unsure = [item for item in anatomy.unresolved if name.quoted and name.word in (item.path, item.module)]
    if unsure:
        fail(
            placement.source,
            name.position,
            found=f"{unsure[0].path} is unresolved: {unsure[0].reason}",
            instead="a matrix whose role is known (`loratlas map`)",
        )
    near = _near_paths(name.word, anatomy) if name.quoted else _near_roles(name, anatomy)
    unresolved = f"; {len(anatomy.unresolved)} matrices are unresolved there" if anatomy.unresolved else ""
    fail(
        placement.source,
        name.position,
        found=f"{name.text} matches nothing in {anatomy.model} ({anatomy.model_type}){unresolved}",
        instead=near,
    )


def _near_paths(word: str, anatomy: Anatomy) -> str:
    modules = [site.module for site in anatomy.sites]
    near = get_close_matches(word, modules, n=3, cutoff=0.4)
    # A path that was cut short ("attn.c_proj") is far from every whole one by edit distance.
    near = near or [module for module in modules if module.endswith(word.lstrip("*."))][:3]
    if not near:
        return f"a whole module or parameter name, e.g. {modules[0]}" if modules else "another model"
    return "the whole name, e.g. " + " or ".join(f'"{module}"' for module in near)


def _near_roles(name: Name, anatomy: Anatomy) -> str:
    scopes = {name.scope} if name.scope else TEXT_SCOPES
    roles = list(dict.fromkeys(site.role for site in anatomy.sites if site.scope in scopes))
    if not roles:
        return f"one of the towers it has: {', '.join(_scopes(anatomy))}"
    last = name.word.rpartition(".")[2]
    near = [role for role in roles if role.rpartition(".")[2] in related_parts(last)]
    if near:
        return f"{', '.join(near)}, which this model has instead"
    near = get_close_matches(name.word, roles, n=3, cutoff=0.6)
    return f"one of {', '.join(near or roles)}"
