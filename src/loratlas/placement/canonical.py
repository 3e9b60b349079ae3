"""The exact text of a table: short where words hold exactly its sites, quoted paths where none do.

The text is checked by reading it again before it is handed out, so that plan → text → plan is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from loratlas.anatomy.role_table import SETS, TEXT_SCOPES, family_of
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.placement.language import parse
from loratlas.placement.layer_ranges import numbers
from loratlas.placement.resolve import resolve
from loratlas.placement.vocabulary import holds


def table_text(anatomy: Anatomy, ranks: Mapping[str, int]) -> str:
    """Write a table as a placement.

    Args:
        anatomy: of the model.
        ranks: path → rank, at least one.

    Returns:
        A placement that :func:`~loratlas.placement.resolve.resolve` turns into exactly this table. Terms come in
        falling order of the number of sites per rank.
    """
    by_rank: dict[int, list[Site]] = {}
    for site in anatomy.sites:
        if site.path in ranks:
            by_rank.setdefault(ranks[site.path], []).append(site)
    groups = sorted(by_rank.items(), key=lambda item: (-len(item[1]), item[0]))
    text = " + ".join(f"{term}:{rank}" for rank, sites in groups for term in _terms(anatomy, sites))
    table = resolve(parse(text), anatomy, allow_unresolved=True)
    if {site.path: rank for site, rank in table} != dict(ranks):
        # Words on an anatomy that they do not describe one to one; paths always do.
        text = " + ".join(f"{_paths(sites)}:{rank}" for rank, sites in groups)
    return text


def _terms(anatomy: Anatomy, sites: list[Site]) -> list[str]:
    """Terms without a rank that together hold exactly these sites."""
    left = {site.path for site in sites}
    terms: list[str] = []
    candidates = [(word, _held(anatomy, word)) for word in _words(anatomy, sites)]
    for word, held in candidates:
        if held and all(site.path in left for site in held):
            terms.append(word)
            left -= {site.path for site in held}
    for word, held in candidates:
        # Layers are counted per tower: a word that spans two of them cannot name layers of one.
        if len({site.scope for site in held}) == 1:
            layers = _whole_layers(held, left)
            if layers:
                terms.append(f"{word}@{numbers(layers).text}")
                left -= {site.path for site in held if site.layer in layers}
    rest = [site for site in sites if site.path in left]
    return _join(anatomy, terms) + ([_paths(rest)] if rest else [])


def _words(anatomy: Anatomy, sites: list[Site]) -> list[str]:
    """Words that could hold some of these sites, wide ones first."""
    words: list[str] = list(SETS)
    roles = list(dict.fromkeys(site.role for site in sites))
    words += [*dict.fromkeys(family_of(role) for role in roles if "." in role), *roles]
    scopes = list(dict.fromkeys(site.scope for site in sites))
    towers = {site.scope for site in anatomy.sites}
    bare = words if TEXT_SCOPES & set(scopes) else []
    scoped = [] if towers <= {"decoder"} else [f"{scope}.{word}" for word in words for scope in scopes]
    return [*bare, *scoped]


def _held(anatomy: Anatomy, word: str) -> list[Site]:
    scope, _, plain = word.partition(".")
    towers = {site.scope for site in anatomy.sites} | {"decoder"}
    scopes, word = ({scope}, plain) if scope in towers and plain else (TEXT_SCOPES, word)
    return [site for site in anatomy.sites if site.scope in scopes and holds(word, site.role)]


def _whole_layers(held: list[Site], left: set[str]) -> set[int]:
    """Layers of which every held site is still to be named."""
    layers = {site.layer for site in held if site.layer is not None}
    broken = {site.layer for site in held if site.path not in left}
    return {layer for layer in layers if layer not in broken}


def _join(anatomy: Anatomy, terms: list[str]) -> list[str]:
    """Names that share their layers become one comma list."""
    joined: dict[str, list[str]] = {}
    for term in terms:
        name, _, layers = term.partition("@")
        joined.setdefault(layers, []).append(name)
    return [",".join(names) + (f"@{layers}" if layers else "") for layers, names in joined.items()]


def _paths(sites: Iterable[Site]) -> str:
    return ",".join(f'"{site.module}"' for site in sites)
