"""Plans: the resolved table that training obeys, site by site.

>>> from transformers import LlamaConfig
>>> config = LlamaConfig(num_hidden_layers=2, hidden_size=48, num_attention_heads=6, num_key_value_heads=2,
...                      intermediate_size=80, vocab_size=96)
>>> plan = place(config, "feedforward@top/2:4 + q,v:2")
>>> plan.trainable, plan.text, len(plan.rows)
(2176, 'attn.q,attn.v:2 + feedforward@1:4', 7)
>>> Plan.from_json(plan.to_json()) == plan
True
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from loratlas import formats
from loratlas.adapters.plan_row import PlanRow, rows_of_json
from loratlas.adapters.variants import refuse_stacks, variants_in_words
from loratlas.anatomy.role_table import TEXT_SCOPES, in_set
from loratlas.anatomy.sites import Anatomy
from loratlas.display import Block, Displayed, Grid
from loratlas.errors import PlacementError, SettingsError
from loratlas.placement.budget import Budget, Memory, check_auto, parse_budget, solve
from loratlas.placement.canonical import table_text
from loratlas.placement.language import parse
from loratlas.placement.legacy import held_by_lists
from loratlas.placement.resolve import DEFAULT_RANK, resolve

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from loratlas.placement.allocate import Allocation

SCHEMA = "loratlas.plan"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Displayed):
    """Which sites carry an adapter, of which rank and alpha. Nothing else decides what trains.

    Args:
        placement: the text it came from, canonical.
        text: canonical text of this exact table: ``place(anatomy, plan.text)`` has the same sites and ranks.
        budget: the budget that its ranks were solved from, as text; None where the ranks were given.
        model: what was read, as in the anatomy.
        model_type: transformers' name of the architecture.
        config_digest: of the base's config.
        rows: in the model's order, at least one.
        rslora: whether adapters are scaled by α/√r instead of α/r.
        parameters: of the base, tied ones counted once.
        full_unit: parameters of ``all`` at rank 1, the measure of "full LoRA".
        why: row by row why it got its rank, where the plan came from an allocation; None where the ranks were written
            or shared out alike.
    """

    placement: str
    text: str
    budget: str | None = None
    model: str
    model_type: str
    config_digest: str
    rows: tuple[PlanRow, ...]
    rslora: bool = False
    parameters: int
    full_unit: int
    why: tuple[str, ...] | None = None

    def blocks(self) -> list[Block]:
        """What it costs, and ranks by role."""
        rows: dict[str, list[PlanRow]] = {}
        for row in self.rows:
            rows.setdefault(row.site.role, []).append(row)
        listed = tuple(
            (
                role,
                str(len(group)),
                ranks_in_words([row.rank for row in group]),
                formats.count(sum(row.trainable for row in group)),
            )
            for role, group in rows.items()
        )
        return [
            f"{self.placement} on {self.model} ({self.model_type}): {formats.count(self.trainable)} parameters at "
            f"{len(self.rows)} sites, {self.of_model:.2%} of the model",
            Grid(columns=("role", "sites", "rank", "trainable"), rows=listed),
            *self.variants,
            *self.warnings,
        ]

    @property
    def variants(self) -> list[str]:
        """What these adapters do besides α/r · B A, each as a sentence."""
        return variants_in_words(rslora=self.rslora, dora=self.dora)

    @property
    def dora(self) -> bool:
        """Whether each row of an adapted matrix has a trained length of its own (DoRA)."""
        return any(row.dora for row in self.rows)

    @property
    def trainable(self) -> int:
        """Parameters that train: Σ r·(d_in + d_out), and with DoRA a length for each output."""
        return sum(row.trainable for row in self.rows)

    @property
    def warnings(self) -> list[str]:
        """What to know before training by it: which matrices a list in PEFT's form holds."""
        return held_by_lists(parse(self.placement), [row.site for row in self.rows])

    @property
    def of_model(self) -> float:
        """Share of the base's parameters."""
        return self.trainable / self.parameters

    @property
    def of_full_lora(self) -> float | None:
        """Share of what ``all`` costs at the same rank: Σ(d_in + d_out) here over the same sum of ``all``.

        Of ranks that differ, the mean that gives this plan's ``trainable`` counts as the rank, so that the share
        says how much of the model is covered, whatever the ranks. None where a model has nothing in ``all``.
        """
        return (
            sum(row.site.lora_parameters(1) for row in self.rows) / self.full_unit if self.full_unit else None
        )

    @property
    def ranks(self) -> dict[str, int]:
        """Path → rank, in the model's order."""
        return {row.site.path: row.rank for row in self.rows}

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name what this plan does to a base, however it was written."""
        table = [(row.site.path, row.rank, row.alpha) for row in self.rows]
        # A plan without DoRA has the digest that it had before there was DoRA.
        content = json.dumps([self.config_digest, self.rslora, table, *(["dora"] if self.dora else [])])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def attach(
        self,
        model: Any,
        *,
        seed: int = 0,
        dropout: float = 0.0,
        init: bool | str = True,
        adapter_name: str = "default",
    ) -> PeftModel:
        """Put adapters on a live model, in place; see :func:`loratlas.adapters.attach.attach`."""
        from loratlas.adapters.attach import attach

        return attach(
            self.rows,
            model,
            seed=seed,
            rslora=self.rslora,
            dropout=dropout,
            init=init,
            adapter_name=adapter_name,
        )

    def to_peft(
        self, model: Any = None, *, dropout: float = 0.0, init: bool | str = True, prove: bool = True
    ) -> LoraConfig:
        """This plan as PEFT's config, proven on a copy of the model without weights.

        Args:
            model: a model, or what :func:`loratlas.read` takes: a config, a directory, a Hub id.
            dropout, init, prove: as for :func:`loratlas.adapters.attach.lora_config`.

        Raises:
            AttachError: PEFT would adapt other sites; the message names them.
        """
        from loratlas.adapters.attach import lora_config
        from loratlas.models.config import load_config

        if isinstance(model, (str, Path)):
            model = load_config(model)
        return lora_config(
            self.rows, model=model, rslora=self.rslora, dropout=dropout, init=init, prove=prove
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.plan``; the inverse is :meth:`from_json`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **{name: getattr(self, name) for name in _PLAIN},
            **({"dora": True} if self.dora else {}),
            "trainable": self.trainable,
            "of_model": self.of_model,
            "of_full_lora": self.of_full_lora,
            "digest": self.digest,
            **({"warnings": self.warnings} if self.warnings else {}),
            "sites": [
                {**row.site.to_json(), "rank": row.rank, "alpha": row.alpha, **({"why": why} if why else {})}
                for row, why in zip(self.rows, self.why or [""] * len(self.rows), strict=True)
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlacementError: another schema or version, or a table that is not the one its digest names.
        """
        if data.get("schema") != SCHEMA or data.get("version") != VERSION:
            raise PlacementError(
                given=f"an object of schema {data.get('schema')!r}, version {data.get('version')!r}",
                found=f"a plan has schema {SCHEMA!r}, version {VERSION}",
                instead="what `loratlas plan MODEL --placement TEXT --json` prints",
            )
        why = [item.get("why", "") for item in data["sites"]]
        plan = cls(
            **{name: data[name] for name in _PLAIN},
            rows=rows_of_json(data),
            why=tuple(why) if any(why) else None,
        )
        if data.get("digest", plan.digest) != plan.digest:
            raise PlacementError(
                given=f"a plan with digest {data['digest']}",
                found=f"a table whose digest is {plan.digest}",
                instead="the plan as it was written, or without its digest",
            )
        return plan


_PLAIN = (
    "placement",
    "text",
    "budget",
    "model",
    "model_type",
    "config_digest",
    "rslora",
    "parameters",
    "full_unit",
)


def place(
    model: Any,
    text: str,
    *,
    budget: str | Budget | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    allow_unresolved: bool = False,
    memory: Memory | None = None,
) -> Plan:
    """Turn a placement into a plan for a model.

    Args:
        model: an anatomy, or anything that :func:`loratlas.read` takes; no weights are read.
        text: in the placement language.
        budget: what the plan may spend (see :func:`~loratlas.placement.budget.parse_budget`). With one, terms
            without a rank are solved from it; without, they get rank 16.
        alpha: α of every site; None for 2r, a scale of 2 at any rank.
        rslora: scale by α/√r.
        dora: train a length for each row of the adapted matrices as well (DoRA); a budget of parameters counts them.
        allow_unresolved: leave unidentified matrices alone, where the placement's names may mean them.
        memory: tells the peak bytes of a table of ranks, for a budget of memory; see
            :class:`loratlas.cost.peak_memory.PeakMemory`.

    Raises:
        PlacementError: see :func:`~loratlas.placement.resolve.resolve`; or ``auto`` without a budget.
        BudgetError: the budget does not parse, or is smaller than one rank everywhere.
        SettingsError: an alpha that is not above 0; DoRA on experts in one stack, or under a budget of time or memory.
    """
    _check_alpha(alpha)
    placement = parse(text)
    if isinstance(model, Anatomy):
        anatomy = model
    else:
        from loratlas.anatomy.read import read

        anatomy = read(model)
    if isinstance(budget, str):
        budget = parse_budget(budget)
    table = resolve(
        placement,
        anatomy,
        default=DEFAULT_RANK if budget is None else "auto",
        allow_unresolved=allow_unresolved,
    )
    if budget is None:
        check_auto(placement, table)
        ranks = {site.path: rank for site, rank in table if rank is not None}
    else:
        ranks = solve(table, budget, anatomy, memory, dora=dora)
    return _plan(
        anatomy,
        ranks,
        placement=placement.text,
        budget=budget.text if budget is not None else None,
        alpha=alpha,
        rslora=rslora,
        dora=dora,
    )


def plan_of_allocation(
    anatomy: Anatomy, allocation: Allocation, *, alpha: float | None = None, rslora: bool = False
) -> Plan:
    """Turn an allocation into a plan whose rows say why they got their rank.

    Args:
        anatomy: that the allocation was made for.
        allocation: see :func:`loratlas.placement.allocate.allocate`.
        alpha, rslora: as for :func:`place`.

    Raises:
        SettingsError: an alpha that is not above 0.
    """
    _check_alpha(alpha)
    return _plan(
        anatomy,
        allocation.ranks,
        placement=table_text(anatomy, allocation.ranks),
        budget=allocation.budget,
        alpha=alpha,
        rslora=rslora,
        reasons=allocation.reasons,
    )


def _check_alpha(alpha: float | None) -> None:
    if alpha is not None and not 0 < alpha < math.inf:
        raise SettingsError(
            given=f"alpha {alpha}", found="a scale that is not above 0", instead="e.g. 32, or none for 2r"
        )


def _plan(
    anatomy: Anatomy,
    ranks: Mapping[str, int],
    *,
    placement: str,
    budget: str | None,
    alpha: float | None,
    rslora: bool,
    dora: bool = False,
    reasons: Mapping[str, str] | None = None,
) -> Plan:
    sites = [site for site in anatomy.sites if site.path in ranks]
    if dora:
        refuse_stacks(sites)
    return Plan(
        placement=placement,
        text=table_text(anatomy, ranks),
        budget=budget,
        model=anatomy.model,
        model_type=anatomy.model_type,
        config_digest=anatomy.config_digest,
        rows=tuple(
            PlanRow(
                site=site,
                rank=ranks[site.path],
                alpha=float(2 * ranks[site.path] if alpha is None else alpha),
                dora=dora,
            )
            for site in sites
        ),
        rslora=rslora,
        parameters=anatomy.parameters,
        full_unit=full_unit(anatomy),
        why=None if reasons is None else tuple(reasons[site.path] for site in sites),
    )


def full_unit(anatomy: Anatomy) -> int:
    """Parameters of ``all`` at rank 1."""
    return sum(
        site.lora_parameters(1)
        for site in anatomy.sites
        if site.scope in TEXT_SCOPES and in_set("all", site.role) and site.adaptable and not site.tied_to
    )


def ranks_in_words(ranks: Sequence[float]) -> str:
    """One number where all are equal, else the lowest and the highest.

    >>> ranks_in_words([4, 4]), ranks_in_words([2, 8])
    ('4', '2 to 8')
    """
    low, high = min(ranks), max(ranks)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
