"""A plan as Python that anybody can paste: one readable ``LoraConfig(…)``, proven on a copy without weights."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.sites import Anatomy, Site
from loratlas.errors import AttachError
from loratlas.placement.module_names import ends
from loratlas.placement.plan import Plan

if TYPE_CHECKING:
    from peft import LoraConfig

_ORDER = ("base_model_name_or_path", "task_type", "r", "lora_alpha", "target_modules")
_NOT_WRITTEN = {"peft_type", "peft_version", "inference_mode", "runtime_config"}
_NUMBERED = re.compile(r"((?:.*?\.)?)(\d+)(\..*)", re.DOTALL)
WIDTH = 80
"""Columns of what is written for a plan without short names."""

_BY_RANK = """\
by_rank = {}
for name, ranks in RANKS.items():  # one rank for each layer, 0 for none
    for layer, rank in enumerate(ranks):
        by_rank.setdefault(rank, []).append(name.format(layer))
by_rank.pop(0, None)
"""


def plan_code(plan: Plan, anatomy: Anatomy, model: Any, base: str) -> str:
    """A plan as Python that can be pasted, in the shortest form that PEFT reads as exactly this plan.

    Short module names where they hold its sites (:func:`readable`); else, of several ranks, a table by layer; else one
    expression.

    Args:
        plan: to be written.
        anatomy: of its model.
        model: its config, for the proof.
        base: folder or Hub id of the model, written as ``base_model_name_or_path``.
    """
    exact = plan.to_peft(model)
    short = readable(plan, anatomy, exact, model)
    varied = short is exact and len(set(plan.ranks.values())) > 1
    return (varied and _layer_table(plan, exact, model, base)) or python_code(short, base)


def python_code(config: LoraConfig, base: str) -> str:
    """The config as an import and one call, with the fields that differ from PEFT's defaults.

    Args:
        config: see :meth:`~loratlas.placement.plan.Plan.to_peft` and :func:`readable`.
        base: what the base is called: written as ``base_model_name_or_path``.
    """
    values: dict[str, Any] = {"base_model_name_or_path": base.removesuffix("/config.json")}
    for one in fields(config):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        value = getattr(config, one.name)
        if one.init and one.name not in (*_NOT_WRITTEN, *values) and value != default:
            values[one.name] = value
    values.setdefault("r", config.r)
    values.setdefault("lora_alpha", config.lora_alpha)
    names = [name for name in _ORDER if name in values] + [name for name in values if name not in _ORDER]
    written = "".join(f"    {name}={_literal(values[name])},\n" for name in names)
    return f"from peft import LoraConfig\n\nconfig = LoraConfig(\n{written})"


def readable(plan: Plan, anatomy: Anatomy, config: LoraConfig, model: Any) -> LoraConfig:
    """The config with module names instead of one long expression, where they adapt the same sites at the same ranks.

    Args:
        plan: to be written.
        anatomy: of its model.
        config: the exact one.
        model: a config or a model, for the proof.

    Returns:
        A new config, proven; or the one that was given, where no short names hold exactly these sites.
    """
    import copy

    from loratlas.adapters.peft_check import prove_on_meta

    named = _short_names(plan, anatomy)
    if named is None or config.target_parameters:
        return config
    groups = Counter(named.values())
    (rank, alpha), _ = max(groups.items(), key=lambda item: item[1])
    short = copy.deepcopy(config)
    short.target_modules = list(named)  # pyright: ignore[reportAttributeAccessIssue]  # any collection will do
    short.r, short.lora_alpha = rank, alpha  # pyright: ignore[reportAttributeAccessIssue]
    short.rank_pattern = {name: r for name, (r, _) in named.items() if r != rank}
    short.alpha_pattern = {name: a for name, (_, a) in named.items() if a != alpha}
    try:
        prove_on_meta(plan.rows, short, model)
    except AttachError:
        return config
    return short


def _layer_table(plan: Plan, exact: LoraConfig, model: Any, base: str) -> str | None:
    """The ranks of every layer as a table, and a LoraConfig that is made of it; None where that is not this plan.

    Of 210 matrices with ranks of their own this is 35 lines, where expressions are thousands of characters.
    """
    from peft import LoraConfig

    from loratlas.adapters.peft_check import prove_on_meta

    scales = {row.alpha / row.rank for row in plan.rows}
    alphas = {row.alpha for row in plan.rows}
    if exact.target_parameters or min(len(scales), len(alphas)) > 1:
        return None
    ranks: dict[str, dict[int, int]] = {}
    for row in plan.rows:
        for name in row.modules:
            numbered = _NUMBERED.fullmatch(name)
            before, layer, after = numbered.groups() if numbered else (name, "0", "")
            ranks.setdefault(f"{before}{{}}{after}" if numbered else name, {})[int(layer)] = row.rank
    by_rank: dict[int, list[str]] = {}
    for name, own in ranks.items():
        for layer, rank in own.items():
            by_rank.setdefault(rank, []).append(name.format(layer))
    common = Counter(row.rank for row in plan.rows).most_common(1)[0][0]
    scale = next(iter(scales)) if len(scales) == 1 else None
    alpha = next(iter(alphas)) if scale is None else scale * common
    fields_ = {
        "task_type": getattr(exact.task_type, "value", exact.task_type),
        "r": common,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        **({"use_rslora": True} if exact.use_rslora else {}),
    }
    keys = {rank: "|".join(names) for rank, names in by_rank.items()}
    made = LoraConfig(
        **fields_,
        target_modules=[name for names in by_rank.values() for name in names],
        rank_pattern={key: rank for rank, key in keys.items()},
        alpha_pattern={} if scale is None else {key: scale * rank for rank, key in keys.items()},
    )
    try:
        prove_on_meta(plan.rows, made, model)
    except AttachError:
        return None
    written = {"base_model_name_or_path": base.removesuffix("/config.json"), **fields_}
    lines = "".join(f"    {key}={_literal(value)},\n" for key, value in written.items() if value is not None)
    names = '{"|".join(n): %s for rank, n in by_rank.items()}'
    lines += "    target_modules=sum(by_rank.values(), []),\n"
    lines += f"    rank_pattern={names % 'rank'},\n"
    lines += f"    alpha_pattern={names % f'{_literal(scale)} * rank'},\n" if scale is not None else ""
    return (
        f"from peft import LoraConfig\n\nRANKS = {{\n{_rank_rows(ranks)}}}\n{_BY_RANK}"
        f"config = LoraConfig(\n{lines})"
    )


def _rank_rows(ranks: dict[str, dict[int, int]]) -> str:
    """One entry of a dictionary for each name, with a list by layer."""
    rows = []
    for name, own in ranks.items():
        numbers = ", ".join(str(own.get(layer, 0)) for layer in range(max(own) + 1))
        first = f"    {_literal(name)}: ["
        rows += textwrap.wrap(
            f"{numbers}],", WIDTH, initial_indent=first, subsequent_indent=" " * 8, break_long_words=False
        )
    return "".join(f"{row}\n" for row in rows)


def _short_names(plan: Plan, anatomy: Anatomy) -> dict[str, tuple[int, float]] | None:
    """Ends of module names → rank and alpha, which together hold exactly the plan's sites; None if there are none."""
    wanted = {row.site.path: (row.rank, row.alpha) for row in plan.rows}
    chosen: dict[str, tuple[int, float]] = {}
    for row in plan.rows:
        words = row.site.module.split(".")
        if any(ends(name)(row.site.module) for name in chosen):
            continue
        for count in (1, 2):
            name = ".".join(words[-count:])
            held: list[Site] = [site for site in anatomy.sites if ends(name)(site.module)]
            if {wanted.get(site.path) for site in held} == {(row.rank, row.alpha)}:
                chosen[name] = (row.rank, row.alpha)
                break
        else:
            return None
    return chosen if len(chosen) < 20 else None


def _literal(value: Any) -> str:
    """As a person would write it in Python."""
    if isinstance(value, str):
        text = str(getattr(value, "value", value))
        if "\\" in text and '"' not in text and not text.endswith("\\"):
            return f'r"{text}"'
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return "[" + ", ".join(_literal(item) for item in items) + "]"
    return repr(value)
