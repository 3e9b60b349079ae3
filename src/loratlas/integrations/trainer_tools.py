"""What other trainers can say about LoRA's sites and ranks, and how they write it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXPRESSION, NAMES, LEAVES = "expression", "names", "leaves"

UNSLOTH_LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Modules that Unsloth adapts with its own kernels; others it leaves to the model's code, or refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRankPlan:
    """A plan of one rank, in the pieces that a trainer's config has.

    Args:
        model: the base's name.
        rank: r. alpha: α. rslora: scale by α/√r. dora: trained lengths of rows as well.
        modules: an expression, or names. parameters: full names of stacked experts.
        leaves: last words of the names. layers: where not all layers have them.
        task: PEFT's word for it.
    """

    model: str
    rank: int
    alpha: int
    rslora: bool
    dora: bool
    modules: str | Sequence[str]
    parameters: Sequence[str]
    leaves: Sequence[str]
    layers: Sequence[int] | None
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerTool:
    """One trainer.

    Args:
        name: as ``--emit`` takes it. title: as people write it.
        sites: how it names sites: by ``expression``, by ``names``, or by ``leaves`` and layers.
        patterns: whether ranks may differ.
        parameters: whether stacks of experts can be named.
        file: a name for what is written.
        write: the text for a plan of one rank.
        remark: what else to know, "" for nothing.
        dora: whether it has an option for DoRA.
    """

    name: str
    title: str
    sites: str
    patterns: bool
    parameters: bool
    file: str
    write: Callable[[OneRankPlan], str]
    remark: str = ""
    dora: bool = True


def _yaml(fields: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(fields), sort_keys=False, width=10_000, allow_unicode=True)


def _trl(plan: OneRankPlan) -> str:
    # TRL hands a list of one entry on as text, which PEFT reads as an expression.
    modules = [plan.modules] if isinstance(plan.modules, str) else list(plan.modules)
    return _yaml({
        "model_name_or_path": plan.model,
        "use_peft": True,
        "lora_r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": 0.0,
        "lora_target_modules": modules,
        **({"lora_target_parameters": list(plan.parameters)} if plan.parameters else {}),
        "lora_task_type": plan.task,
        "use_rslora": plan.rslora,
        **({"use_dora": True} if plan.dora else {}),
    })  # fmt: skip


def _axolotl(plan: OneRankPlan) -> str:
    return _yaml({
        "base_model": plan.model,
        "adapter": "lora",
        "lora_r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": 0.0,
        "lora_target_modules": plan.modules if isinstance(plan.modules, str) else list(plan.modules),
        **({"lora_target_parameters": list(plan.parameters)} if plan.parameters else {}),
        "peft_use_rslora": plan.rslora,
        **({"peft_use_dora": True} if plan.dora else {}),
    })  # fmt: skip


def _llama_factory(plan: OneRankPlan) -> str:
    return _yaml({
        "model_name_or_path": plan.model,
        "finetuning_type": "lora",
        "lora_rank": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": 0.0,
        "lora_target": ",".join(plan.modules),
        "use_rslora": plan.rslora,
        **({"use_dora": True} if plan.dora else {}),
    })  # fmt: skip


def _swift(plan: OneRankPlan) -> str:
    words = [
        ("--model", plan.model),
        ("--lora_rank", str(plan.rank)),
        ("--lora_alpha", str(plan.alpha)),
        ("--lora_dropout", "0"),
        ("--use_rslora", str(plan.rslora).lower()),
        *([("--use_dora", "true")] if plan.dora else []),
        ("--target_regex", str(plan.modules)),
    ]
    return "swift sft \\\n" + " \\\n".join(f"    {name} {shlex.quote(value)}" for name, value in words) + "\n"


def _unsloth(plan: OneRankPlan) -> str:
    layers = f"    layers_to_transform={list(plan.layers)},\n" if plan.layers is not None else ""
    names = ", ".join(f'"{leaf}"' for leaf in plan.leaves)
    return (
        "from unsloth import FastLanguageModel\n\n"
        f"model, tokenizer = FastLanguageModel.from_pretrained({plan.model!r})\n"
        "model = FastLanguageModel.get_peft_model(\n"
        "    model,\n"
        f"    r={plan.rank},\n"
        f"    lora_alpha={plan.alpha},\n"
        "    lora_dropout=0,\n"
        f"    target_modules=[{names}],\n"
        f"{layers}"
        f"    use_rslora={plan.rslora},\n"
        ")\n"
    )


TOOLS: dict[str, TrainerTool] = {
    tool.name: tool
    for tool in (
        TrainerTool(
            name="trl", title="TRL's command line", sites=EXPRESSION, patterns=False, parameters=True,
            file="trl.yaml", write=_trl,
        ),
        TrainerTool(
            name="axolotl", title="axolotl", sites=EXPRESSION, patterns=False, parameters=True,
            file="axolotl.yaml", write=_axolotl,
        ),
        TrainerTool(
            name="llama-factory", title="LLaMA-Factory", sites=NAMES, patterns=False, parameters=False,
            file="llama_factory.yaml", write=_llama_factory,
        ),
        TrainerTool(
            name="swift", title="ms-swift", sites=EXPRESSION, patterns=False, parameters=False,
            file="swift.sh", write=_swift,
        ),
        TrainerTool(
            name="unsloth", title="Unsloth", sites=LEAVES, patterns=False, parameters=False,
            file="unsloth_model.py", write=_unsloth, dora=False,
        ),
    )
}  # fmt: skip
"""Name → trainer, without PEFT itself and TRL in Python, which take any LoraConfig."""
