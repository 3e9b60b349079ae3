"""What the public functions return: numbers that print well, in a terminal and in a notebook, and plot themselves.

>>> import loratlas
>>> found = loratlas.evaluate("demo:llama-mini", [{"prompt": "2+2=", "completion": "4"}])
>>> print(str(found).splitlines()[0])
 evaluation
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.display import Block, Displayed, Grid
from loratlas.errors import OutputError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from loratlas.anatomy.sites import Anatomy, Site
    from loratlas.loss_audit.definitions import Definition
    from loratlas.placement.allocate import Allocation
    from loratlas.placement.plan import Plan
    from loratlas.scan.scores import Scan
    from loratlas.training.run_events import CurvePoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Displayed):
    """A training run that ended.

    Args:
        numbers: what ``loratlas train --json`` prints.
        plan: where the adapters are; None where the run went on with an adapter.
        model: the trained `PeftModel`.
        curve: points of the training curve.
        temporary: the folder that goes with this object, where none was named.
    """

    numbers: Mapping[str, Any]
    plan: Plan | None
    model: Any = field(repr=False)
    curve: tuple[CurvePoint, ...] = field(repr=False)
    temporary: Any = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        """Steps that were trained."""
        return self.numbers["steps"]

    @property
    def trainable(self) -> int | None:
        """Parameters of the adapters."""
        return self.numbers["trainable"]

    @property
    def train_nll(self) -> float:
        """Mean loss over the counted tokens of the last steps, nats."""
        return self.numbers["train_nll"]

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """What was measured on the evaluation rows; None where there were none."""
        return self.numbers["eval"]

    @property
    def moves(self) -> Sequence[Mapping[str, Any]]:
        """Changes of rank within the run: step, path, before, after, reason, price, gain, losses."""
        return self.numbers["moves"]

    @property
    def adapter(self) -> Path:
        """The folder of the adapter, as PEFT loads it."""
        return Path(self.numbers["adapter"])

    def save(self, folder: str | Path) -> Path:
        """Copy the adapter to a folder of its own.

        Raises:
            OutputError: the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise OutputError(given=str(folder), found="something is there already", instead="a new folder")
        return Path(shutil.copytree(self.adapter, folder))

    def blocks(self) -> Sequence[Block]:
        """The run in a few rows."""
        numbers = self.numbers
        rows = [("steps", formats.count(self.steps)), ("loss on the last steps", f"{self.train_nll:.4f}")]
        for name, value in (self.evaluation or {}).items():
            if name in ("token_mean_nll", "mean_nll", "perplexity", "accuracy", "macro_f1"):
                rows.append((f"evaluation: {name.replace('_', ' ')}", f"{value:.4f}"))
        if self.trainable:
            rows.append(("trainable parameters", formats.count(self.trainable)))
        if numbers["decisions"]:
            rows.append(("sites whose rank moved", str(len({move["path"] for move in self.moves}))))
        rows.append(("tokens per second", formats.count(numbers["tokens_per_second"])))
        return [
            Grid(columns=("run", ""), rows=tuple(rows), title=f"{numbers['model']} on {numbers['data']}"),
            f"Adapter: {self.adapter}",
        ]

    def plot_placement(self) -> Figure:
        """Site by step: rank as colour, moves marked, what each was expected to gain under the pointer.

        Raises:
            OutputError: the run went on with an adapter, and has no plan.
        """
        from loratlas.report.placement_figure import placement_figure

        if self.plan is None:
            raise OutputError(
                given="plot_placement()",
                found="a run that went on with an adapter and moved nothing",
                instead="plot(), which draws its loss",
            )
        return placement_figure(self.plan.ranks, self.moves, self.steps)

    def plot(self) -> Figure:
        """The loss against steps, with that on the evaluation rows where it was measured."""
        from plotly.graph_objects import Figure, Scatter

        figure = Figure(layout={"xaxis": {"title": "steps"}, "yaxis": {"title": "nats per token"}})
        figure.add_trace(
            Scatter(
                x=[p.step for p in self.curve], y=[p.nll for p in self.curve], name="training", mode="lines"
            )
        )
        measured = [point for point in self.curve if point.evaluation is not None]
        if measured:
            figure.add_trace(
                Scatter(
                    x=[p.step for p in measured],
                    y=[p.evaluation for p in measured],
                    name="evaluation",
                    mode="lines+markers",
                )
            )
        return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Displayed):
    """What a model reaches on rows.

    Args:
        numbers: what ``loratlas eval --json`` prints.
        definitions: of the loss, where they were asked for.
        notes: sentences about how it was computed.
        computed: the dtype, in words.
    """

    numbers: Mapping[str, Any]
    definitions: tuple[Definition, ...] = field(repr=False)
    notes: tuple[str, ...]
    computed: str

    @property
    def nll(self) -> float:
        """Mean loss: nats per counted token, or per row of a classification."""
        return self.numbers.get("token_mean_nll", self.numbers.get("mean_nll"))

    @property
    def perplexity(self) -> float | None:
        """exp of the mean loss per token; None for a classification."""
        return self.numbers.get("perplexity")

    @property
    def rows(self) -> int:
        """Rows that were measured."""
        return self.numbers["data"]["kept"]

    def blocks(self) -> Sequence[Block]:
        """The numbers that people read first, and every definition that was asked for."""
        names = ("token_mean_nll", "mean_nll", "perplexity", "accuracy", "macro_f1")
        rows = [
            (n.replace("_", " "), f"{self.numbers[n]:.4f}") for n in names if self.numbers.get(n) is not None
        ]
        rows.append(("rows", formats.count(self.rows)))
        blocks: list[Block] = [Grid(columns=("evaluation", ""), rows=tuple(rows)), self.computed]
        values = self.numbers.get("definitions") or {}
        if self.definitions and values:
            listed = tuple((d.name, f"{values[d.name]:.4f}") for d in self.definitions if d.name in values)
            blocks.append(Grid(columns=("definition", "value"), rows=listed))
        return [*blocks, *self.notes]

    def plot(self) -> Figure:
        """Every definition of the loss beside the others."""
        from plotly.graph_objects import Bar, Figure

        values = self.numbers.get("definitions") or {"token_mean": self.nll}
        drawn = {name: value for name, value in values.items() if isinstance(value, float)}
        return Figure(
            data=[Bar(x=list(drawn.values()), y=list(drawn), orientation="h")],
            layout={"xaxis": {"title": "nats"}},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A plan that scores have made.

    Args:
        plan: the plan. allocation: how the budget was distributed.
        peft: its LoraConfig, as plain data.
    """

    plan: Plan
    allocation: Allocation
    peft: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult(Displayed):
    """What a scan found.

    Args:
        scan: the scores, by signal.
        anatomy: of the base.
        sites: that were chosen from.
        placed: the plan by the deciding score; None where no score said anything.
        numbers: what ``loratlas scan --json`` prints.
        is_plain: whether the plan follows from the scores and the budget alone.
    """

    scan: Scan = field(repr=False)
    anatomy: Anatomy = field(repr=False)
    sites: tuple[Site, ...] = field(repr=False)
    placed: Placed | None
    numbers: Mapping[str, Any] = field(repr=False)
    is_plain: bool

    @property
    def plan(self) -> Plan | None:
        """The plan by the deciding score."""
        return self.placed.plan if self.placed else None

    @property
    def values(self) -> Mapping[str, float]:
        """Path → value of the deciding score."""
        return self.scan.readings[self.scan.by].values

    def blocks(self) -> Sequence[Block]:
        """Mean score by role, the plan, and what such plans were worth."""
        by_role: dict[str, list[float]] = {}
        for site in self.sites:
            if site.path in self.values:
                by_role.setdefault(site.role, []).append(self.values[site.path])
        rows = tuple((role, str(len(v)), f"{sum(v) / len(v):.4g}") for role, v in by_role.items())
        blocks: list[Block] = [Grid(columns=("role", "sites", self.scan.by), rows=rows)]
        if self.plan is not None:
            blocks.append(
                f"Plan: {self.plan.trainable:,} parameters at {len(self.plan.rows)} sites: {self.plan.text}"
            )
        return [*blocks, *self.numbers["notes"], self.numbers["track_record"]]

    def plot(self) -> Figure:
        """Site by site: layers across, roles down, the deciding score as colour."""
        from plotly.graph_objects import Figure, Heatmap

        roles = list(dict.fromkeys(site.role for site in self.sites))
        layers = sorted({site.layer for site in self.sites if site.layer is not None})
        cells = {(site.role, site.layer): self.values.get(site.path) for site in self.sites}
        shades = [[cells.get((role, layer)) for layer in layers] for role in roles]
        return Figure(data=[Heatmap(x=layers, y=roles, z=shades)], layout={"xaxis": {"title": "layer"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(Displayed):
    """What a study found.

    Args:
        numbers: what ``loratlas study --json`` prints.
    """

    numbers: Mapping[str, Any]

    @property
    def findings(self) -> Sequence[Mapping[str, Any]]:
        """One for each arm but the reference: difference, interval, verdict, sentence."""
        return self.numbers["findings"]

    @property
    def page(self) -> Path:
        """The page, one HTML file that opens offline."""
        return Path(self.numbers["page"])

    def blocks(self) -> Sequence[Block]:
        """Arms, then the findings in words."""
        rows = tuple(
            (
                arm["name"],
                "–" if arm.get("lr") is None else f"{arm['lr']:g}",
                "–" if arm.get("nll") is None else formats.loss(arm["nll"]),
                formats.count(arm["trainable"]),
            )
            for arm in self.numbers["arms"]
        )
        sentences = [finding["sentence"] for finding in self.findings]
        return [
            Grid(columns=("arm", "rate", "loss", "trainable"), rows=rows),
            *sentences,
            f"Page: {self.page}",
        ]

    def plot(self) -> Figure:
        """Differences from the reference with their intervals; left of zero is better."""
        from plotly.graph_objects import Figure, Scatter

        known = [
            f
            for f in self.findings
            if f.get("difference") is not None and None not in (f.get("ci") or [None])
        ]
        return Figure(
            data=[
                Scatter(
                    x=[f["difference"] for f in known],
                    y=[f["arm"] for f in known],
                    mode="markers",
                    error_x={
                        "array": [f["ci"][1] - f["difference"] for f in known],
                        "arrayminus": [f["difference"] - f["ci"][0] for f in known],
                    },
                )
            ],
            layout={"xaxis": {"title": "nats, less than the reference is better", "zeroline": True}},
        )
