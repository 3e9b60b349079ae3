"""Rules about values: unknown fields, numbers that cannot be, layers that are not there, modules trained whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from loratlas.adapters.stored.lora_options import LARGEST_SCALE
from loratlas.anatomy.sites import Site
from loratlas.lint.lint_finding import LintFinding
from loratlas.lint.module_targets import entries_of, hit_by, nearest_names

_OTHER_WORDS = {
    "rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "targets": "target_modules", "lora_target": "target_modules", "lora_target_modules": "target_modules",
    "modules": "target_modules", "rslora": "use_rslora", "dora": "use_dora", "base_model": "base_model_name_or_path",
    "layers": "layers_to_transform",
}  # fmt: skip

_INITS = ("gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "lora_ga", "mica")
"""PEFT's words for how factors are started; ``pissa_niter_N`` besides."""

_HEADS = ("score", "classifier", "classification_head", "qa_outputs")


def unknown_fields(config: Mapping[str, Any], known: Sequence[str]) -> Iterator[LintFinding]:
    """Fields that PEFT does not have.

    Args:
        config: as written.
        known: names of PEFT's fields.
    """
    for name, value in config.items():
        if name in known or value in (None, False, [], {}, ""):
            continue  # a later version of PEFT writes its new options with the value that changes nothing
        near = _OTHER_WORDS.get(name.lower()) or next(
            iter(get_close_matches(name, known, n=1, cutoff=0.6)), ""
        )
        yield LintFinding(
            rule="unknown-field",
            where=name,
            given=str(value)[:60],
            found="a field that PEFT's LoraConfig does not have",
            instead=near or "no such field",
        )


def numbers(config: Mapping[str, Any]) -> Iterator[LintFinding]:
    """Ranks, scales and dropout that cannot be."""
    ranks = {"r": config.get("r", 8), **_items(config, "rank_pattern")}
    for where, value in ranks.items():
        if type(value) is not int or value < 1:
            yield _value(where, value, "a rank that is no whole number from 1", "e.g. 8")
    scales = {"lora_alpha": config.get("lora_alpha", 8), **_items(config, "alpha_pattern")}
    for where, value in scales.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            yield _value(where, value, "a scale that is not above 0: the adapter would do nothing", "e.g. 16")
        elif value > LARGEST_SCALE:
            yield _value(where, value, "a scale with which float32 does not compute", "e.g. 16")
    dropout = config.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        yield _value("lora_dropout", dropout, "no probability below 1", "0, or e.g. 0.05")


def words(config: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[LintFinding]:
    """Words that PEFT does not know where it takes one of a few, and an initialisation that ranks do not allow.

    Args:
        config: as written.
        tasks: PEFT's words for ``task_type``.
    """
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and not (
        init.lower() in _INITS or re.fullmatch(r"pissa_niter_\d+", init.lower())
    ):
        near = get_close_matches(init.lower(), _INITS, n=1, cutoff=0.4)
        yield _value("init_lora_weights", init, "no initialisation of PEFT's", near[0] if near else "true")
    if isinstance(init, str) and init.lower() == "orthogonal":
        for where, rank in {"r": config.get("r", 8), **_items(config, "rank_pattern")}.items():
            if type(rank) is int and rank % 2:
                yield _value(where, rank, "an odd rank, which an orthogonal start halves", f"{rank + 1}")
    for where, value, known in (
        ("bias", config.get("bias", "none"), ("none", "all", "lora_only")),
        ("task_type", config.get("task_type"), tasks),
    ):
        if value is not None and str(getattr(value, "value", value)) not in known:
            near = get_close_matches(str(value), known, n=1, cutoff=0.0)
            yield _value(where, value, f"none of {', '.join(known)}", near[0])


def _items(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    table = config.get(field) or {}
    return {f"{field}[{key}]": value for key, value in table.items()} if isinstance(table, Mapping) else {}


def _value(where: str, given: Any, found: str, instead: str) -> LintFinding:
    return LintFinding(rule="value", where=where, given=str(given)[:60], found=found, instead=instead)


def layers(
    config: Mapping[str, Any], sites: Mapping[str, Site], modules: Sequence[str]
) -> Iterator[LintFinding]:
    """Layers that the model does not have, and words for them that no name holds."""
    given = config.get("layers_to_transform")
    pattern = config.get("layers_pattern")
    if given is None and pattern is None:
        return
    if isinstance(config.get("target_modules"), str):
        yield LintFinding(
            rule="layers",
            where="layers_to_transform" if given is not None else "layers_pattern",
            given=str(given if given is not None else pattern),
            found="layers together with an expression, which PEFT refuses",
            instead="target_modules as a list of names",
        )
        return
    wanted = [given] if isinstance(given, int) else list(given or ())
    there = sorted({site.layer for site in sites.values() if site.layer is not None})
    missing = [layer for layer in wanted if layer not in there]
    if missing and there:
        yield LintFinding(
            rule="layers",
            where="layers_to_transform",
            given=", ".join(map(str, missing[:6])),
            found=f"layers that the model does not have: it has {there[0]} to {there[-1]}",
            instead=f"numbers from {there[0]} to {there[-1]}",
        )
    for word in [pattern] if isinstance(pattern, str) else entries_of(pattern):
        try:
            matching = any(re.match(rf"(?:^|.*?\.){word}\.\d+\.", name) for name in modules)
        except re.error:
            matching = False
        if not matching:
            right = {match[1] for name in sites if (match := re.match(r"(?:^|.*?\.)([^.]+)\.\d+\.", name))}
            yield LintFinding(
                rule="layers",
                where="layers_pattern",
                given=word,
                found="no list of layers of that name",
                instead=" or ".join(sorted(right)),
            )


def trained_whole(
    config: Mapping[str, Any], sites: Mapping[str, Site], modules: Sequence[str], tied: Mapping[str, str]
) -> Iterator[LintFinding]:
    """Modules to save that are not there, or that share their matrix with another.

    Args:
        config: fields of a LoraConfig.
        sites: module → site. modules: all names. tied: module → the module whose matrix it is, both ways.
    """
    for entry in entries_of(config.get("modules_to_save")):
        hit = [name for name in modules if name == entry or name.endswith(f".{entry}")]
        if not hit and not (entry in _HEADS and str(config.get("task_type")).endswith(("_CLS", "_ANS"))):
            yield LintFinding(
                rule="no-match",
                where="modules_to_save",
                given=entry,
                found="no module of this name, nor of one that ends with it",
                instead=" or ".join(nearest_names(entry, list(modules))),
            )
        yield from _tied(entry, hit, "modules_to_save", tied)
        both = [t for t in entries_of(config.get("target_modules")) if set(hit_by(t, hit))]
        if both:
            yield LintFinding(
                rule="twice",
                where="modules_to_save",
                given=entry,
                found=f"target_modules names it as well ({both[0]}): PEFT trains it whole, without an adapter",
                instead=f"{entry} in one of the two",
            )
    for entry in entries_of(config.get("target_modules")):
        yield from _tied(entry, hit_by(entry, sites), "target_modules", tied)


def _tied(entry: str, hit: Sequence[str], where: str, tied: Mapping[str, str]) -> Iterator[LintFinding]:
    for name in hit:
        if name in tied:
            yield LintFinding(
                rule="tied",
                where=where,
                given=entry,
                found=f"{name} shares its matrix with {tied[name]}: what is trained here is not there, and merging "
                "changes both",
                instead="neither of the two, or a base whose embeddings are not tied",
            )
            return


def large_ranks(adapted: Mapping[str, tuple[int, float]], sites: Mapping[str, Site]) -> Iterator[LintFinding]:
    """Ranks above the smaller side of a matrix, which buy nothing."""
    large = [
        (name, rank) for name, (rank, _) in adapted.items() if name in sites and rank > sites[name].max_rank
    ]
    if large:
        name, rank = large[0]
        yield LintFinding(
            rule="rank",
            where="r" if len({r for _, r in large}) == 1 else "rank_pattern",
            given=str(rank),
            found=f"a rank above the smaller side of {name} ({sites[name].max_rank}) and {len(large) - 1} more",
            instead=f"at most {sites[name].max_rank} there",
        )
