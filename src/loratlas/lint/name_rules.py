"""Rules about names: what every entry of a config holds, and what it holds besides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loratlas.anatomy.role_table import TEXT_SCOPES, in_set
from loratlas.anatomy.sites import Site
from loratlas.lint.lint_finding import LintFinding
from loratlas.lint.module_targets import ALL_LINEAR, entries_of, hit_by, hit_by_expression, nearest_names
from loratlas.placement.module_names import ends

ODD_ROLES = ("router", "shared_gate", "attn.index", "attn.relbias", "residual", "vector")
"""Matrices that hardly anybody adapts on purpose: a change there reroutes tokens instead of refining them."""

_SUBLAYERS = {"xattn": "attn", "shared": "ffn", "moe": "ffn", "mixer": "attn"}


def no_match(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[LintFinding]:
    """Entries and expressions that name no matrix.

    Args:
        config: fields of a LoraConfig.
        names: of the modules that can be adapted.
    """
    listed = list(names)
    for field in ("target_modules", "exclude_modules"):
        value = config.get(field)
        if isinstance(value, str) and value != ALL_LINEAR:
            try:
                hits = hit_by_expression(value, listed)
            except re.error as error:
                yield LintFinding(
                    rule="expression",
                    where=field,
                    given=value,
                    found=f"an expression that does not parse ({error})",
                    instead="a list of names",
                )
                continue
            if not hits:
                plain = re.fullmatch(r"[\w.]+", value)
                yield LintFinding(
                    rule="no-match",
                    where=field,
                    given=value,
                    found="an expression, which has to match the whole name of a module, and matches none",
                    instead=_expression_instead(value, listed) if plain else _whole_names(value, listed),
                )
        for entry in entries_of(value):
            if hit_by(entry, listed):
                continue
            yield LintFinding(
                rule="no-match",
                where=field,
                given=entry,
                found="no matrix of this name, nor of one that ends with it",
                instead=" or ".join(nearest_names(entry, listed)),
            )


def _expression_instead(value: str, names: list[str]) -> str:
    """A single name written without a list is an expression to PEFT."""
    return f'["{value}"], a list' if hit_by(value, names) else f'["{nearest_names(value, names)[0]}"], a list'


def _whole_names(value: str, names: list[str]) -> str:
    wider = rf".*\.(?:{value})"
    try:
        if hit_by_expression(wider, names):
            return wider
    except re.error:
        pass
    return f"an expression for names such as {names[0]}"


def pattern_keys(config: Mapping[str, Any], adapted: Sequence[str]) -> Iterator[LintFinding]:
    """Keys of ``rank_pattern`` and ``alpha_pattern`` that no adapted module gets.

    Args:
        config: fields of a LoraConfig.
        adapted: names of what is adapted.
    """
    for field in ("rank_pattern", "alpha_pattern"):
        taken: dict[str, list[str]] = {}
        keys = [str(key) for key in config.get(field) or {}]
        for key in keys:
            try:
                matching = [name for name in adapted if re.match(rf"(.*\.)?({key})$", name)]
            except re.error as error:
                yield LintFinding(
                    rule="expression",
                    where=field,
                    given=key,
                    found=f"an expression that does not parse ({error})",
                    instead="the name of a module",
                )
                continue
            earlier = {name for names in taken.values() for name in names}
            taken[key] = matching
            if not matching:
                yield LintFinding(
                    rule="pattern-no-match",
                    where=field,
                    given=key,
                    found="a key that matches no adapted module, so that it changes nothing",
                    instead=" or ".join(nearest_names(key, list(adapted))) if adapted else "no such key",
                )
            elif set(matching) <= earlier:
                first = next(k for k, names in taken.items() if set(names) & set(matching))
                yield LintFinding(
                    rule="pattern-shadowed",
                    where=field,
                    given=key,
                    found=f"a key all of whose modules an earlier key takes first, such as {first}",
                    instead=f"{key} before {first}",
                )


def collisions(config: Mapping[str, Any], sites: Mapping[str, Site]) -> Iterator[LintFinding]:
    """Entries that hold matrices which do different things.

    Args:
        config: fields of a LoraConfig.
        sites: module → site, of all that can be adapted.
    """
    for entry in entries_of(config.get("target_modules")):
        hit = [sites[name] for name in hit_by(entry, sites)]
        text = [site for site in hit if site.scope in TEXT_SCOPES]
        other = [site for site in hit if site.scope not in TEXT_SCOPES]
        if text and other:
            yield LintFinding(
                rule="other-tower",
                where="target_modules",
                given=entry,
                found=f"{len(text)} matrices of the language model and {len(other)} of the {other[0].scope} tower, "
                f"such as {other[0].module}",
                instead=_separate(text + other, sites),
            )
        # What is meant by one name is one job: the queries of self- and cross-attention are alike in that.
        jobs: dict[tuple[str, str], list[Site]] = {}
        for site in text:
            jobs.setdefault((_SUBLAYERS.get(site.family, site.family), site.part), []).append(site)
        if len({part for _, part in jobs}) > 1:
            what = ", ".join(f"{len(group)} {group[0].role}" for group in jobs.values())
            yield LintFinding(
                rule="collision",
                where="target_modules",
                given=entry,
                found=f"matrices that do different things: {what}",
                instead=_separate(text, sites),
            )
        odd = [site for site in text if site.role in ODD_ROLES]
        if odd and len(odd) == len(text) and "." not in entry and odd[0].role not in entry:
            yield LintFinding(
                rule="router",
                where="target_modules",
                given=entry,
                found=f"{len(odd)} {odd[0].role} alone, such as {odd[0].module}",
                instead=" or ".join(_feedforward(sites)) or f"{odd[0].module}, if it is meant",
            )


def swept_up(config: Mapping[str, Any], adapted: Mapping[str, Site]) -> Iterator[LintFinding]:
    """What ``all-linear`` or an expression adapts besides the layers of the language model.

    Args:
        config: fields of a LoraConfig.
        adapted: module → site, of what PEFT adapts.
    """
    target = config.get("target_modules")
    if not isinstance(target, str):
        return
    words = set(re.split(r"[^a-z]+", target.lower()))
    groups: dict[tuple[str, str], list[Site]] = {}
    for site in adapted.values():
        if site.scope not in TEXT_SCOPES and not words & {
            site.scope,
            f"{site.scope}_tower",
            "vision",
            "visual",
        }:
            groups.setdefault(("other-tower", f"the {site.scope} tower"), []).append(site)
        elif site.role in ODD_ROLES and not words >= set(re.split(r"[^a-z]+", site.module.lower())[-2:]):
            groups.setdefault(("router", site.role), []).append(site)
    for (rule, what), members in groups.items():
        if len(members) == len(adapted):
            continue
        names = sorted({site.module.rpartition(".")[2] for site in members})
        yield LintFinding(
            rule=rule,
            where="target_modules",
            given=target,
            found=f"{len(members)} matrices of {what} as well, such as {members[0].module}",
            instead=f"exclude_modules: {_excluding(members, adapted, names)}",
        )


def _excluding(found: list[Site], adapted: Mapping[str, Site], names: list[str]) -> str:
    """What keeps exactly these out: leaves where they are their own, else an expression for the tower."""
    taken = {site.module for site in found}
    if all(set(hit_by(name, adapted)) <= taken for name in names):
        return str(names).replace("'", '"')
    tower = found[0].module.split(".")
    for count in range(1, len(tower)):
        prefix = re.escape(".".join(tower[:count]))
        held = hit_by_expression(rf"{prefix}\..*", adapted)
        if set(held) == taken:
            return rf'"{prefix}\..*"'
    return str(sorted(taken)[:3]).replace("'", '"')


def _separate(hit: Sequence[Site], sites: Mapping[str, Site]) -> str:
    """Names that hold one job each: ends of names where one will do, else an expression."""
    jobs: dict[tuple[str, str], list[Site]] = {}
    for site in hit:
        scope = "" if site.scope in TEXT_SCOPES else f"{site.scope}."
        jobs.setdefault((scope, site.role), []).append(site)
    separate = [(_name_of(group, sites), f"{scope}{role}") for (scope, role), group in jobs.items()]
    return " or ".join(f"{name} ({job})" for name, job in separate if name)


def _name_of(group: Sequence[Site], sites: Mapping[str, Site]) -> str:
    """The shortest end of names that holds such matrices alone; an expression where none does."""
    words = group[0].module.split(".")
    last = max((i for i, word in enumerate(words) if word.isdigit()), default=-1)
    for count in range(1, len(words) - last):
        name = ".".join(words[-count:])
        held = [site for module, site in sites.items() if ends(name)(module)]
        if all((one.role, one.scope) == (group[0].role, group[0].scope) for one in held):
            return name
    first = next((i for i, word in enumerate(words) if word.isdigit()), len(words))
    tail = re.escape(".".join(words[last + 1 :]))
    for head in (r".*\.\d+", re.escape(".".join(words[:first])) + r"\..*"):
        expression = rf"{head}\.{tail}"
        if set(hit_by_expression(expression, sites)) == {site.module for site in group}:
            return f'"{expression}"'
    return ""


def _feedforward(sites: Mapping[str, Site]) -> list[str]:
    leaves = {
        site.module.rpartition(".")[2]: None
        for site in sites.values()
        if in_set("feedforward", site.role) and site.experts is None and site.scope in TEXT_SCOPES
    }
    return list(leaves)[:3]
