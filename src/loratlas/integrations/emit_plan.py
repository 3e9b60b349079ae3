"""A plan in another trainer's words: the snippet or file by which that tool adapts exactly those sites at those ranks.

What is written is read back as the tool reads it, as a LoraConfig, and proven on a copy without weights. Where a tool
cannot say a plan, it is refused, and the nearest plan that the tool can say is named with what it loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from loratlas.adapters.patterns import anchored
from loratlas.adapters.peft_check import prove_on_meta
from loratlas.errors import AttachError, PlacementError, RequestError, printable
from loratlas.integrations.trainer_tools import (
    LEAVES,
    NAMES,
    TOOLS,
    UNSLOTH_LEAVES,
    OneRankPlan,
    TrainerTool,
)
from loratlas.placement.canonical import table_text
from loratlas.placement.peft_code import plan_code, readable
from loratlas.placement.plan import Plan, place

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy

NAMES_OF_TOOLS = ("peft", *TOOLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedPlan:
    """What a tool reads.

    Args:
        tool: its name. file: a name for the text.
        text: as it is written.
    """

    tool: str
    file: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.emit``."""
        return {
            "schema": "loratlas.emit",
            "version": 1,
            "tool": self.tool,
            "file": self.file,
            "text": self.text,
        }


def emit(plan: Plan, anatomy: Anatomy, config: PretrainedConfig, tool: str, *, model: str) -> EmittedPlan:
    """Write a plan for a trainer.

    Args:
        plan: to be written. anatomy: of its model. config: of its model.
        tool: ``peft``, ``trl``, ``axolotl``, ``llama-factory``, ``swift`` or ``unsloth``.
        model: folder or Hub id of the base, as the tool loads it.

    Raises:
        PlacementError: the tool cannot say this plan; ``suggestions`` has the nearest one that it can.
        RequestError: an unknown tool.
    """
    if tool == "peft":
        return _python(plan, anatomy, config, model, tool)
    if tool not in TOOLS:
        near = get_close_matches(tool.lower(), NAMES_OF_TOOLS, n=1, cutoff=0.0)[0]
        raise RequestError(
            given=f"--emit {printable(tool)}", found=f"trainers are {', '.join(NAMES_OF_TOOLS)}", instead=near
        )
    kind = TOOLS[tool]
    lost = _cannot(plan, anatomy, kind)
    if lost and tool == "trl":  # in Python its trainers take any LoraConfig
        return _python(plan, anatomy, config, model, tool)
    if lost:
        raise _refusal(plan, anatomy, config, kind, lost)
    said = _one_rank(plan, anatomy, config, kind, model)
    return EmittedPlan(tool=tool, file=kind.file, text=kind.write(said))


def _python(plan: Plan, anatomy: Anatomy, config: Any, model: str, tool: str) -> EmittedPlan:
    text = plan_code(plan, anatomy, config, model)
    if tool == "trl":
        text += "\n# SFTTrainer, DPOTrainer, GRPOTrainer and RewardTrainer take it as peft_config=config\n"
    return EmittedPlan(tool=tool, file="lora_config.py", text=text)


def _cannot(plan: Plan, anatomy: Anatomy, tool: TrainerTool) -> str:
    """Why a tool cannot say a plan; empty where it can."""
    if plan.dora and not tool.dora:
        return f"DoRA, and {tool.title} has no option for it"
    ranks, alphas = {row.rank for row in plan.rows}, {row.alpha for row in plan.rows}
    if len(ranks) > 1 or len(alphas) > 1:
        what = "ranks" if len(ranks) > 1 else "alphas"
        low, high = (f(ranks if len(ranks) > 1 else alphas) for f in (min, max))
        return f"{what} from {low:g} to {high:g}, and {tool.title} has one for all sites"
    if not float(next(iter(alphas))).is_integer():
        return f"an alpha of {next(iter(alphas)):g}, and {tool.title} reads whole numbers"
    stacks = [row.site.path for row in plan.rows if row.site.kind == "experts"]
    if stacks and not tool.parameters:
        return f"stacks of experts such as {stacks[0]}, which {tool.title} cannot name"
    if tool.sites == LEAVES:
        odd = [row.site.module for row in plan.rows if _leaf(row.site.module) not in UNSLOTH_LEAVES]
        if odd:
            return f"{odd[0]}, and {tool.title} adapts {', '.join(UNSLOTH_LEAVES)} alone"
        wanted, leaves, layers = _grid(plan)
        held = {
            site.path for site in anatomy.sites
            if site.adaptable and _leaf(site.module) in leaves and site.layer in layers
        }  # fmt: skip
        if held != wanted:
            return f"other modules in one layer than in another, and {tool.title} has one list for all layers"
    return ""


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _grid(plan: Plan) -> tuple[set[str], set[str], set[int | None]]:
    """Paths, last words and layers of a plan."""
    return (
        {row.site.path for row in plan.rows},
        {_leaf(row.site.module) for row in plan.rows},
        {row.site.layer for row in plan.rows},
    )


def _one_rank(plan: Plan, anatomy: Anatomy, config: Any, tool: TrainerTool, model: str) -> OneRankPlan:
    exact = plan.to_peft(config)
    parameters = list(exact.target_parameters or ())
    names = [name for row in plan.rows for name in row.modules if row.site.path not in parameters]
    leaves = list(dict.fromkeys(_leaf(name) for name in names))
    used = sorted({row.site.layer for row in plan.rows if row.site.layer is not None})
    every = sorted({s.layer for s in anatomy.sites if s.layer is not None and _leaf(s.module) in leaves})
    layers = None if used == every else used
    if tool.sites == LEAVES:
        fields: dict[str, Any] = {"target_modules": leaves, "layers_to_transform": layers}
    else:
        fields = {"target_modules": _modules(plan, anatomy, config, tool, exact, names)}
    _prove(plan, config, tool, {**fields, "target_parameters": parameters or None})
    return OneRankPlan(
        model=model.removesuffix("/config.json"),
        rank=plan.rows[0].rank,
        alpha=int(plan.rows[0].alpha),
        rslora=plan.rslora,
        dora=plan.dora,
        modules=fields["target_modules"],
        parameters=parameters,
        leaves=leaves,
        layers=layers,
        task=str(getattr(exact.task_type, "value", exact.task_type) or "CAUSAL_LM"),
    )


def _modules(
    plan: Plan, anatomy: Anatomy, config: Any, tool: TrainerTool, exact: Any, names: list[str]
) -> str | list[str]:
    """Short names where they hold exactly the plan; else full ones, or one expression."""
    short = readable(plan, anatomy, exact, config).target_modules
    listed = sorted(short) if not isinstance(short, str) and short else []
    if tool.sites == NAMES:
        return listed or names
    if len(listed) > 1 and tool.name != "swift":
        return listed
    # Of converted models with experts PEFT cuts expressions to their leaves: a list of full names is needed there.
    return (
        anchored(names)
        if isinstance(exact.target_modules, str) and names
        else list(exact.target_modules or ())
    )


def _prove(plan: Plan, config: Any, tool: TrainerTool, fields: Mapping[str, Any]) -> None:
    """Read what is written as the tool hands it to PEFT, on a copy without weights.

    Raises:
        AttachError: PEFT would adapt other sites.
    """
    from peft import LoraConfig

    from loratlas.adapters.peft_check import expected_warnings

    with expected_warnings():
        made = LoraConfig(
            r=plan.rows[0].rank,
            lora_alpha=int(plan.rows[0].alpha),
            use_rslora=plan.rslora,
            use_dora=plan.dora,
            **fields,
        )
    prove_on_meta(plan.rows, made, config)


def _refusal(plan: Plan, anatomy: Anatomy, config: Any, tool: TrainerTool, lost: str) -> PlacementError:
    nearest = nearest_plan(plan, anatomy, tool)
    if nearest is not None:
        try:
            _one_rank(nearest, anatomy, config, tool, nearest.model)
        except AttachError:
            nearest = None
    words = _losses(plan, nearest) if nearest is not None else ""
    return PlacementError(
        given=f"{plan.placement} for {tool.title}",
        found=f"{lost}{f'; the nearest plan that it can: {words}' if words else ''}",
        instead=f'--placement "{nearest.text}"' if nearest is not None else "--emit peft, or --emit trl",
        suggestions=(nearest.text,) if nearest is not None else (),
    )


def nearest_plan(plan: Plan, anatomy: Anatomy, tool: TrainerTool) -> Plan | None:
    """The plan that a tool can say which adapts most of the same sites at no more parameters.

    Sites that it cannot name are left out; where it has one list of names for all layers, sites that this list holds
    come in; one rank, the largest whose parameters are not above the plan's, is given to all.

    Args:
        plan: that it cannot say. anatomy: of its model. tool: which.

    Returns:
        The plan; None where nothing is left, or one rank everywhere costs more.
    """
    paths = {row.site.path for row in plan.rows if tool.parameters or row.site.kind != "experts"}
    if tool.sites == LEAVES:
        kept = [row.site for row in plan.rows if _leaf(row.site.module) in UNSLOTH_LEAVES]
        leaves, layers = {_leaf(site.module) for site in kept}, {site.layer for site in kept}
        paths = {
            site.path for site in anatomy.sites
            if site.adaptable and _leaf(site.module) in leaves and site.layer in layers
        }  # fmt: skip
    sites = [site for site in anatomy.sites if site.path in paths]
    unit = sum(site.lora_parameters(1) for site in sites)
    dora = plan.dora and tool.dora
    left = plan.trainable - (sum(site.dora_parameters for site in sites) if dora else 0)
    rank = min([left // unit, *(site.max_rank for site in sites)]) if sites else 0
    if rank < 1:
        return None
    text = table_text(anatomy, dict.fromkeys((site.path for site in sites), rank))
    return replace(place(anatomy, text, rslora=plan.rslora, dora=dora), model=plan.model)


def _losses(plan: Plan, nearest: Plan) -> str:
    """What becomes of a plan, in words."""
    before, after = set(plan.ranks), set(nearest.ranks)
    ranks = sorted(set(plan.ranks.values()))
    now = nearest.rows[0].rank
    parts = []
    if len(ranks) > 1:
        parts.append(f"ranks {ranks[0]} to {ranks[-1]} become {now} everywhere")
    if before - after:
        parts.append(f"{len(before - after)} sites are left out")
    if after - before:
        parts.append(f"{len(after - before)} sites come in")
    if plan.dora and not nearest.dora:
        parts.append("DoRA becomes LoRA (no --dora)")
    share = nearest.trainable / plan.trainable
    return ", ".join([*parts, f"{share:.1%} of the parameters"])
