"""Why a placement cannot be met on a model: each refusal with the changes of the text that may mend it.

Which of the changes work is tried by :meth:`~loratlas.placement.terms.Mistake.refusal` before any is suggested.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from loratlas.anatomy.role_table import FAMILIES, PARTS, SETS, TEXT_SCOPES, related_parts
from loratlas.anatomy.sites import Site
from loratlas.placement.layer_ranges import Ends, LayerRange, Numbers, numbers
from loratlas.placement.module_names import endings, part_of, shapes_of
from loratlas.placement.selection import Selection
from loratlas.placement.terms import Edit, Mistake, Name, Placement, Term
from loratlas.placement.vocabulary import ALIASES, holds

_LONGEST = 100
"""Characters of a wrong word that are compared with right ones; the comparison is quadratic."""

_WORDS = (*SETS, *ALIASES, *FAMILIES, *PARTS)


def unless_adaptable(placement: Placement, name: Name, site: Site, selection: Selection) -> None:
    """Refuse a site that cannot carry an adapter of its own.

    Raises:
        Mistake: it is tied to another, or no adapter can be put on it by name.
    """
    if site.tied_to or site.path in selection.shared:
        partner = (
            f"shares its weights with {site.tied_to}" if site.tied_to else "shares its weights with the head"
        )
        raise Mistake(
            placement.source,
            name.position,
            found=f"{site.module} {partner}; an adapter would act in one place only and be merged into both",
            advice="attention, feedforward and all leave tied matrices alone",
            edits=[*_without(placement, name), Edit(name.position, name.end, "all")],
        )
    if site.adaptable:
        return
    kind = "of no effect there" if "inert" in site.flags else f"not possible on a matrix of kind {site.kind}"
    reason, less = f"an adapter by name is {kind}: {site.path} ({site.role})", site.role
    if site.kind == "experts":
        reason = (
            f"{site.path} ({site.role}) is read outside the module that holds it: an adapter would not act "
            "while training, and change the model when it is merged"
        )
        less = site.family
    end = len(placement.source)
    scoped = less if site.scope in TEXT_SCOPES else f"{site.scope}.{less}"
    raise Mistake(
        placement.source,
        name.position,
        found=reason,
        advice=f"the same without {scoped}",
        edits=[
            Edit(end, end, f" - {scoped}"),
            *_without(placement, name),
            Edit(name.position, name.end, f"all - {scoped}"),
        ],
    )


def rank_too_large(placement: Placement, term: Term, sites: Sequence[Site], rank: int) -> NoReturn:
    """A rank above the smaller side of a matrix."""
    site = min(sites, key=lambda site: site.max_rank)
    written = term.rank is not None
    most = site.max_rank
    edit = (
        Edit(term.rank_position, term.rank_end, f"{most}{'!' if term.force else ''}")
        if written
        else Edit(term.layers_end, term.layers_end, f":{most}")
    )
    raise Mistake(
        placement.source,
        term.rank_position if written else term.position,
        found=f"rank {rank}{'' if written else ' (the default)'}, while {site.module} is "
        f"{site.shape[0]} by {site.shape[1]}",
        advice=f"a rank of at most {most}",
        edits=[edit],
    )


def contradiction(
    placement: Placement, term: Term, site: Site, rank: int | None, earlier: tuple[Term, int | None]
) -> NoReturn:
    """Two ranks for one site."""

    def said(value: int | None, by: Term) -> str:
        return f"{'auto' if value is None else value}{'' if by.rank is not None else ' (the default)'}"

    first, before = earlier
    edits: list[Edit] = []
    if rank is not None:
        forced = f"{rank}!"
        edits.append(
            Edit(term.rank_position, term.rank_end, forced)
            if term.rank is not None
            else Edit(term.layers_end, term.layers_end, f":{forced}")
        )
    if term.rank is not None and before is not None:
        edits.append(Edit(term.rank_position, term.rank_end, str(before)))
    if first.rank is not None and rank is None:
        edits.append(Edit(first.rank_position, first.rank_end, "auto"))
    raise Mistake(
        placement.source,
        term.rank_position if term.rank is not None else term.position,
        found=f"two ranks for {site.module}: {said(before, first)} from {first.text}, "
        f"and {said(rank, term)} here",
        advice="if this term is to win" if rank is not None else "one rank for both",
        edits=edits,
    )


def nothing_left(placement: Placement) -> NoReturn:
    """Everything was taken away."""
    last = placement.terms[-1]
    text = placement.terms[0].text
    raise Mistake(
        placement.source,
        last.position,
        found="nothing is left after what was taken away",
        advice="a term that stays",
        edits=[Edit(0, len(placement.source), text)],
    )


def no_such_layers(placement: Placement, term: Term, name: Name, selection: Selection) -> NoReturn:
    """A name that holds sites, but none in these layers."""
    assert term.layers is not None
    anywhere = selection.of(name)
    inside = sorted({site.layer for site in anywhere if site.layer is not None})
    scope = anywhere[0].scope
    count = selection.depths[scope]
    start, end = term.layers_position, term.layers_end
    near = [numbers(inside).text] if inside else []
    if not inside:
        reason, advice = f"{name.text} is in no layer", "the name without @"
    elif term.layers.of(count) is None:
        reason = (
            f"layers {term.layers.text}, while the {scope} of {selection.anatomy.model} has {count}: 0 to "
        )
        reason += f"{count - 1}"
        advice = f"layers below {count}" if count > 1 else "layer 0"
        near = [*_clipped(term.layers, count), *near]
    else:
        reason = f"no such matrix in layers {term.layers.text}"
        advice = f"layers among {', '.join(map(str, inside[:12]))}{', …' if len(inside) > 12 else ''}"
    raise Mistake(
        placement.source,
        start,
        found=reason,
        advice=advice,
        edits=[*(Edit(start, end, text) for text in near), Edit(term.names_end, end, "")][
            : 2 if inside else 1
        ],
    )


def _clipped(layers: LayerRange, count: int) -> list[str]:
    """The nearest layers that a tower of so many has."""
    if isinstance(layers, Ends):
        return [f"{layers.where}{count}"]
    if isinstance(layers, Numbers):
        spans = tuple((a, min(b, count)) for a, b in layers.spans if a < count)
        return [Numbers(spans=spans).text if spans else str(count - 1)]
    return ["last1" if layers.where == "top" else "first1"]


def several_roles(placement: Placement, name: Name, sites: Sequence[Site], selection: Selection) -> NoReturn:
    """The end of a module name that matrices of several roles share: the mistake of suffix lists, refused."""
    groups: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.scope, site.role), []).append(site)
    listed = "; ".join(
        f"{_role(scope, role)} ({group[0].module}{', …' if len(group) > 1 else ''})"
        for (scope, role), group in list(groups.items())[:4]
    )
    roles = [_role(scope, role) for scope, role in groups]
    raise Mistake(
        placement.source,
        name.position,
        found=f"{name.text} is the end of {len(groups)} kinds of matrices in {selection.anatomy.model}: {listed}"
        f"{'; …' if len(groups) > 4 else ''}",
        advice="whichever you mean",
        edits=[Edit(name.position, name.end, text) for text in (*roles[:2], ",".join(roles))],
    )


def _role(scope: str, role: str) -> str:
    return role if scope in TEXT_SCOPES else f"{scope}.{role}"


def no_such_name(placement: Placement, term: Term, name: Name, selection: Selection) -> NoReturn:
    """A name that holds nothing."""
    anatomy = selection.anatomy
    unsure = [item for item in anatomy.unresolved if name.word in (item.path, item.module)]
    if unsure:
        reason = f"{unsure[0].path} is unresolved: {unsure[0].reason}"
        advice = "a matrix whose role is known (`loratlas map`)"
        words = _near_paths(name.word, selection)
    else:
        unresolved = (
            f"; {len(anatomy.unresolved)} matrices are unresolved there" if anatomy.unresolved else ""
        )
        shown = name.text if len(name.text) <= _LONGEST else f"{name.text[:_LONGEST]}…"
        reason = f"{shown} matches nothing in {anatomy.model} ({anatomy.model_type}){unresolved}"
        words, advice = _near(name, selection)
    less = not term.adds or len(placement.terms) > 1 or len(term.names) > 1
    raise Mistake(
        placement.source,
        name.position,
        found=reason,
        advice=advice,
        edits=[
            *(Edit(name.position, name.end, word) for word in words),
            *(_without(placement, name) if less else ()),
        ],
    )


def _near(name: Name, selection: Selection) -> tuple[list[str], str]:
    """Words to write instead of a name that holds nothing, the likeliest first, and what else to say."""
    if name.quoted:
        return _near_paths(name.word, selection), "whole module names"
    if name.scope is None and name.word in selection.scopes:
        return [f"{name.word}.all", f"{name.word}.attention"], "a scope and what to adapt in it"
    scopes = {name.scope} if name.scope else TEXT_SCOPES
    if name.scope and name.scope not in selection.scopes:
        has = ", ".join(selection.scopes)
        return [name.word, "all"], f"of the towers that it has: {has}"
    sites = [site for site in selection.anatomy.sites if site.scope in scopes]
    roles = list(dict.fromkeys(site.role for site in sites))
    if not roles and selection.scopes:
        return [
            f"{scope}.all" for scope in selection.scopes
        ], f"one of its towers: {', '.join(selection.scopes)}"
    prefix = f"{name.scope}." if name.scope else ""
    part = name.word.rpartition(".")[2] if name.kind == "word" else part_of(name.word)
    words = _meant(name, part, roles)
    if words:
        return [prefix + word for word in words], "which this model has instead"
    # By the words of the language, by the model's own roles, by the ends of its module names.
    known = [word for word in _WORDS if any(holds(word, role) for role in roles)]
    same = dict.fromkeys(s.role for s in sites if s.module.rpartition(".")[2] == name.word)
    written = name.word[:_LONGEST]
    leaves = list(endings(site.module for site in sites))
    close = get_close_matches(written, [*known, *roles, *leaves], n=3, cutoff=0.6)
    close = close or get_close_matches(written.lower(), known, n=2, cutoff=0.6)
    words = [prefix + word for word in (*same, *close, *_by_parts(written, roles))]
    # Where nothing is near: what most people want, and what every model with an adaptable matrix has.
    last = next((f'"{s.module}"' for s in sites if s.adaptable and not s.tied_to), "all")
    return (
        words or [f"{prefix}all", f"{prefix}attention", *(prefix + role for role in roles[:3]), last],
        f"its roles are {', '.join(roles[:12])}{', …' if len(roles) > 12 else ''}",
    )


def _meant(name: Name, part: str, roles: Sequence[str]) -> list[str]:
    """Roles of the model that hold, or are held by, the part that a name stands for."""
    if part in roles:
        return [part]
    exact = [role for role in roles if role.rpartition(".")[2] == part]
    made = [role for role in roles if role.rpartition(".")[2] in related_parts(part)]
    if name.kind == "word":
        family = name.word.rpartition(".")[0]
        of_family = [role for role in made if not family or holds(family, role)]
        return of_family or made
    return exact or made


def _by_parts(written: str, roles: Sequence[str]) -> list[str]:
    """``ffn.donw`` → ``ffn.down``: the right family with a part that is close."""
    family, _, part = written.rpartition(".")
    within = [role.partition(".")[2] for role in roles if family and holds(family, role)]
    return [f"{family}.{near}" for near in get_close_matches(part, within, n=2, cutoff=0.3)]


def _near_paths(word: str, selection: Selection) -> list[str]:
    shapes = shapes_of(site.module for site in selection.anatomy.sites)
    starred = next(iter(shapes_of([word[:_LONGEST]])))
    close = get_close_matches(starred, shapes, n=2, cutoff=0.4)
    # A path that was cut short ("attn.c_proj") is far from every whole one by edit distance.
    end = starred.lstrip("*.")
    close = [shape for shape in shapes if end and shape.endswith(end)][:3] or close or list(shapes)[:1]
    same_layer = (_numbered(shape, word) for shape in close)
    names = [*same_layer, *(shapes[shape] for shape in close)]
    return [f'"{name}"' for name in dict.fromkeys(names)]


def _numbered(shape: str, word: str) -> str:
    """The name of that shape with the numbers of the word that was written."""
    digits = iter([part for part in word.split(".") if part.isdigit()])
    return ".".join(next(digits, "0") if part == "*" else part for part in shape.split("."))


def _without(placement: Placement, name: Name) -> Iterable[Edit]:
    """The text without a name: it and its comma, or its whole term where it stands alone."""
    for index, term in enumerate(placement.terms):
        if name not in term.names:
            continue
        if len(term.names) > 1:
            at = term.names.index(name)
            if at:
                return [Edit(term.names[at - 1].end, name.end, "")]
            return [Edit(name.position, term.names[1].position, "")]
        start, end = term.position, max(term.names_end, term.layers_end, term.rank_end)
        if index:
            # With its sign, which stands behind the term before it.
            before = placement.terms[index - 1]
            return [Edit(max(before.names_end, before.layers_end, before.rank_end), end, "")]
        if len(placement.terms) > 1 and placement.terms[1].adds:
            return [Edit(start, placement.terms[1].position, "")]
    return []
