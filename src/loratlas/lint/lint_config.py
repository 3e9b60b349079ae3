"""`loratlas lint`: what a LoraConfig would do to a model, before any training; the model's config is enough.

Every entry is looked up by PEFT's own rules, and the config as a whole is tried on a copy of the model without
weights: where the two differ (PEFT rewrites targets of some models with experts), that is a finding, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.expressions import excess
from loratlas.bounded_yaml import load_yaml
from loratlas.display import Block, Displayed
from loratlas.errors import ModelError
from loratlas.files import read_json
from loratlas.lint.lint_finding import LintFinding, some_names
from loratlas.lint.module_targets import by_name, entries_of
from loratlas.lint.name_rules import collisions, no_match, pattern_keys, swept_up
from loratlas.lint.peft_trial import PeftTrial, try_config
from loratlas.lint.value_rules import large_ranks, layers, numbers, trained_whole, unknown_fields, words

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy, Site

_LARGEST = 10_000_000  # bytes of a config
_MOST_VALUES = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport(Displayed):
    """What was found in a config.

    Args:
        config: its file, or a word for it. model: what it is for.
        findings: none where all is as it reads.
        adapted: how many matrices PEFT adapts.
    """

    config: str
    model: str
    findings: tuple[LintFinding, ...]
    adapted: int

    def to_json(self) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.lint``."""
        return {
            "schema": "loratlas.lint",
            "version": 1,
            "config": self.config,
            "model": self.model,
            "adapted": self.adapted,
            "findings": [finding.to_json() for finding in self.findings],
        }

    def blocks(self) -> Sequence[Block]:
        """A paragraph for each finding."""
        if not self.findings:
            return [f"{self.config} on {self.model}: nothing found; PEFT adapts {self.adapted} matrices."]
        return [
            *(
                f"{f.rule} · {f.where}: {f.given}\n  found: {f.found}\n  instead: {f.instead}"
                for f in self.findings
            ),
            f"{len(self.findings)} found in {self.config} on {self.model}.",
        ]


def read_lora_config(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A LoraConfig as a table, and what to call it.

    Args:
        source: a JSON or YAML file, a folder with ``adapter_config.json``, or the table itself.

    Raises:
        ModelError: no such file, one that is no table, or one of another method than LoRA.
    """
    if isinstance(source, Mapping):
        return dict(source), "the config"
    path = Path(source)
    path = path / "adapter_config.json" if path.is_dir() else path
    try:
        table = _read_yaml(path) if path.suffix in (".yaml", ".yml") else read_json(path, most=_LARGEST)
    except (OSError, ValueError, RecursionError) as error:
        raise _no_config(path, f"not readable: {str(error).splitlines()[0][:150]}") from error
    except Exception as error:  # yaml's errors share no class with any other
        raise _no_config(path, f"no YAML: {str(error).splitlines()[0][:150]}") from error
    if not isinstance(table, dict):
        raise _no_config(path, "no table of fields")
    kind = str(table.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise _no_config(path, f"a config of PEFT's method {kind[:40]}")
    return table, str(source)


def _read_yaml(path: Path) -> Any:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} bytes")
    return load_yaml(path.read_text(encoding="utf-8"), most=_MOST_VALUES)


def lint(
    config: Mapping[str, Any], anatomy: Anatomy, base: PretrainedConfig, *, name: str = "the config"
) -> LintReport:
    """Look for faults.

    Args:
        config: fields of a LoraConfig.
        anatomy: of the model. base: its config.
        name: of the config.

    Returns:
        The findings, in the order of the fields; each rule is named.
    """
    from peft import TaskType

    too_much = excess(config)
    faults = [] if too_much else list(numbers(config))
    trial = PeftTrial(modules=(), adapted={}) if faults or too_much else try_config(config, base)
    too_much = too_much or trial.slow
    if too_much is not None:  # whoever looks for what it names would not come back
        finding = LintFinding(
            rule="expression",
            where=too_much.where,
            given=too_much.given,
            found=too_much.found,
            instead=too_much.instead,
        )
        return LintReport(config=name, model=anatomy.model, findings=(finding,), adapted=0)
    tasks = [task.value for task in TaskType]
    findings = [*_unknown(config), *faults, *words(config, tasks), *_findings(config, anatomy, trial)]
    if trial.refusal and not findings:
        findings.append(
            LintFinding(
                rule="refused",
                where="the config",
                given=str(config.get("target_modules"))[:80],
                found=f"PEFT refuses it: {trial.refusal}",
                instead="what `loratlas plan MODEL --placement TEXT --peft` prints",
            )
        )
    return LintReport(config=name, model=anatomy.model, findings=tuple(findings), adapted=len(trial.adapted))


def _unknown(config: Mapping[str, Any]) -> Iterator[LintFinding]:
    import dataclasses

    from peft import LoraConfig

    yield from unknown_fields(config, [field.name for field in dataclasses.fields(LoraConfig)])


def _findings(config: Mapping[str, Any], anatomy: Anatomy, trial: PeftTrial) -> Iterator[LintFinding]:
    sites = {
        name.rpartition(".")[0]: site
        for site in anatomy.sites
        if site.kind in ("linear", "conv1d", "embedding", "conv", "parameter")
        and site.path.endswith(".weight")
        for name in (site.path, *site.called_as)
    }
    tied = _tied_modules(anatomy)
    every = {**sites, **{site.path: site for site in anatomy.sites}}
    rewritten = _rewritten(config, sites, trial)
    explained = {f.given for f in rewritten}
    for finding in no_match(config, list(sites)):
        if not _rescued(finding, trial, sites) or finding.given in explained:
            yield _of_experts(finding, anatomy)
    yield from collisions(config, sites)
    yield from swept_up(config, {n: every[n] for n in trial.adapted if n in every})
    yield from rewritten
    yield from _parameters(config, anatomy)
    yield from pattern_keys(config, list(trial.adapted) or by_name(config, list(sites)))
    yield from layers(config, sites, trial.modules or list(sites))
    yield from trained_whole(config, sites, trial.modules or list(sites), tied)
    yield from large_ranks(trial.adapted, every)


def _tied_modules(anatomy: Anatomy) -> dict[str, str]:
    """Module ↔ module of embeddings and heads that are one matrix."""
    tied: dict[str, str] = {}
    for site in anatomy.sites:
        if site.tied_to is not None and (site.role == "embed" or site.family == "head"):
            other = site.tied_to.rpartition(".")[0]
            tied[site.module], tied[other] = other, site.module
    return tied


_EXPERT_WORDS = frozenset({"w1", "w2", "w3", "wi", "wo", "gate_proj", "up_proj", "down_proj", "gate_up_proj"})


def _of_experts(finding: LintFinding, anatomy: Anatomy) -> LintFinding:
    """A name of one expert's matrix, where experts are stacked in parameters without names of their own."""
    words = set(finding.given.split("."))
    stacks = [site.path for site in anatomy.sites if site.kind == "experts"]
    if finding.where != "target_modules" or not stacks or not words & {"experts", *_EXPERT_WORDS}:
        return finding
    ends = sorted({".".join(path.split(".")[-2:]) for path in stacks})
    return replace(
        finding,
        found="no module of this name: the experts are stacked in parameters, which target_modules does not reach",
        instead=f"target_parameters: {json.dumps(ends)}",
    )


def _rescued(finding: LintFinding, trial: PeftTrial, sites: Mapping[str, Site]) -> bool:
    """Whether PEFT makes stacked experts of a name that the model no longer has."""
    return finding.where == "target_modules" and any(name not in sites for name in trial.adapted)


def _rewritten(config: Mapping[str, Any], sites: Mapping[str, Site], trial: PeftTrial) -> list[LintFinding]:
    """Where PEFT adapts more than the names say."""
    if (
        trial.refusal
        or config.get("target_modules") in (None, "all-linear")
        or config.get("target_parameters")
    ):
        return []
    named = set(by_name(config, list(sites)))
    stacks = [name for name in trial.adapted if name not in sites]
    if not stacks:
        return []
    rewritten = []
    for entry in entries_of(config.get("target_modules")):
        by_itself = [name for name in named if name == entry or name.endswith(f".{entry}")]
        words = entry.split(".")
        if by_itself and words[-1] in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "linear_fc1"):
            rewritten.append(
                LintFinding(
                    rule="experts",
                    where="target_modules",
                    given=entry,
                    found=f"{len(by_itself)} matrices by name, and PEFT adapts {some_names(stacks)} for it: the routed "
                    "experts of all layers",
                    instead=f"full names of parameters in target_parameters, such as {by_itself[0]}.weight, where the "
                    "routed experts are not meant",
                )
            )
        elif not by_itself and any(word.isdigit() for word in words):
            rewritten.append(
                LintFinding(
                    rule="experts",
                    where="target_modules",
                    given=entry,
                    found="one expert or layer by its number; experts are stacked here, and PEFT adapts "
                    f"{some_names(stacks)}",
                    instead=f"target_parameters: {json.dumps(stacks[:2])}",
                )
            )
    return rewritten


def _parameters(config: Mapping[str, Any], anatomy: Anatomy) -> Iterator[LintFinding]:
    """Entries of ``target_parameters`` that name no parameter."""
    paths = [site.path for site in anatomy.sites]
    for entry in entries_of(config.get("target_parameters")):
        if not any(path == entry or path.endswith(f".{entry}") for path in paths):
            stacks = [site.path for site in anatomy.sites if site.kind == "experts"] or paths
            leaf = entry.rpartition(".")[2]
            near = [path for path in stacks if path.endswith(f".{leaf}")] or stacks
            yield LintFinding(
                rule="no-match",
                where="target_parameters",
                given=entry,
                found="no parameter of this name, nor of one that ends with it",
                instead=near[0],
            )


def _no_config(path: Path, found: str) -> ModelError:
    return ModelError(
        given=str(path),
        found=found,
        instead="an adapter_config.json, or a YAML file with the fields of a LoraConfig",
    )
