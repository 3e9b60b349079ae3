"""How large the update of each site is, and how many directions it uses: `loratlas show`.

>>> site = SiteSpectrum(path="h.0.q.weight", role="attn.q", layer=0, rank=8, norm=2.0, effective_rank=3.1, share=0.05,
...                     parameters=512, experts=None)
>>> AdapterSpectrum(adapter="run", base=None, sites=(site,)).by_role()["attn.q"][0].effective_rank
3.1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loratlas import formats
from loratlas.adapters.stored.read_adapter import AdapterFolder
from loratlas.display import Block, Displayed, Grid
from loratlas.placement.plan import ranks_in_words
from loratlas.spectra.low_rank_updates import (
    effective_rank,
    path_of,
    read_factors,
    singular_values,
    updates_of,
)
from loratlas.spectra.site_labels import label_of, sites_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from loratlas.anatomy.sites import Anatomy

STRIP = 12
"""Characters of a strip of layers; deeper models put several layers into one."""

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSpectrum:
    """The update of one site.

    Args:
        path: name of the parameter.
        role: what the matrix does. layer: index of its block.
        rank: r. norm: ‖s·B·A‖ (Frobenius); of a stack of experts the root of the sum of squares.
        effective_rank: see :func:`~loratlas.spectra.low_rank_updates.effective_rank`.
        share: ‖s·B·A‖ / ‖W‖; None where the base's weights were not read.
        parameters: of both factors. experts: stacked updates, None for one.
    """

    path: str
    role: str
    layer: int | None
    rank: int
    norm: float
    effective_rank: float
    share: float | None
    parameters: int
    experts: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpectrum(Displayed):
    """An adapter, site by site.

    Args:
        adapter: its folder. base: the base that it names.
        sites: in the model's order where it is known, else in that of the file.
        remarks: what the numbers do not hold.
    """

    adapter: str
    base: str | None
    sites: tuple[SiteSpectrum, ...] = field(repr=False)
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.show``."""
        return {
            "schema": "loratlas.show",
            "version": 1,
            "adapter": self.adapter,
            "base": self.base,
            "parameters": sum(site.parameters for site in self.sites),
            "sites": [
                {name: getattr(site, name) for name in SiteSpectrum.__dataclass_fields__}
                for site in self.sites
            ],
            "remarks": list(self.remarks),
        }

    def by_role(self) -> dict[str, list[SiteSpectrum]]:
        """The sites of each role, in the order of their first one."""
        groups: dict[str, list[SiteSpectrum]] = {}
        for site in self.sites:
            groups.setdefault(site.role, []).append(site)
        return groups

    def blocks(self) -> Sequence[Block]:
        """Role by role: a strip of norms over the layers, ranks, norms, directions in use, shares of the base."""
        layers = 1 + max((site.layer for site in self.sites if site.layer is not None), default=-1)
        largest = max(site.norm for site in self.sites)
        rows = tuple(
            (
                role,
                strip(group, layers, largest),
                str(len(group)),
                ranks_in_words([site.rank for site in group]),
                _range(site.norm for site in group),
                _range(site.effective_rank for site in group),
                _range(100 * site.share for site in group if site.share is not None),
            )
            for role, group in self.by_role().items()
        )
        columns = ("role", "‖BA‖ by layer", "sites", "rank", "‖BA‖", "eff. rank", "% of ‖W‖")
        shown = [i for i in range(7) if i not in (1, 6) or any(row[i] not in ("", "–") for row in rows)]
        parameters = sum(site.parameters for site in self.sites)
        return [
            f"{self.adapter}: {formats.count(parameters)} parameters at {len(self.sites)} sites"
            + (f", for {self.base}" if self.base else ""),
            Grid(
                columns=tuple(columns[i] for i in shown),
                rows=tuple(tuple(row[i] for i in shown) for row in rows),
            ),
            "‖BA‖: Frobenius norm with the scale in it, lowest to highest. eff. rank: exp of the entropy of the "
            "singular values' shares, the directions in use.",
            *self.remarks,
        ]

    def plot(self) -> Figure:
        """Layers across, roles down; norm, effective rank and, where it is known, share of the base's norm."""
        from plotly.graph_objects import Heatmap
        from plotly.subplots import make_subplots

        panels = {"‖BA‖": "norm", "effective rank": "effective_rank", "share of ‖W‖": "share"}
        if all(site.share is None for site in self.sites):
            del panels["share of ‖W‖"]
        roles = list(self.by_role())
        layers = sorted({site.layer for site in self.sites if site.layer is not None}) or [0]
        cells = {(site.role, site.layer or 0): site for site in self.sites}
        figure = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels), shared_yaxes=True)
        for column, name in enumerate(panels.values(), start=1):
            shades = [
                [getattr(cells[role, layer], name) if (role, layer) in cells else None for layer in layers]
                for role in roles
            ]
            figure.add_trace(
                Heatmap(x=layers, y=roles, z=shades, coloraxis=f"coloraxis{column}"), row=1, col=column
            )
            width = 1 / len(panels)
            figure.update_layout({
                f"coloraxis{column}": {
                    "colorbar": {"orientation": "h", "y": -0.3, "len": 0.8 * width, "x": (column - 0.5) * width}
                }
            })  # fmt: skip
            figure.update_xaxes(title="layer", row=1, col=column)
        return figure


def spectrum(
    contents: AdapterFolder, *, anatomy: Anatomy | None = None, base_norms: Mapping[str, float] | None = None
) -> AdapterSpectrum:
    """Measure the update of every site of an adapter.

    Args:
        contents: of its folder.
        anatomy: of its base, for the roles; without it those of the adapter's own plan, or the leaves of names.
        base_norms: ‖W‖ by parameter's name, for the shares.

    Raises:
        ModelError: factors that do not fit together, or numbers that are not finite.
    """
    labels = sites_of(contents, anatomy)
    position = {site.path: i for i, site in enumerate(dict.fromkeys(labels.values()))}
    measured = []
    for update, A, B in read_factors(contents, updates_of(contents)):
        values = singular_values(A, B, update.scale)
        label = label_of(update.module, path_of(update), labels)
        norm = float((values**2).sum().sqrt())
        whole = (base_norms or {}).get(label.path)
        measured.append(
            SiteSpectrum(
                path=label.path,
                role=label.role,
                layer=label.layer,
                rank=update.rank,
                norm=norm,
                effective_rank=effective_rank(values),
                share=norm / whole if whole else None,
                parameters=update.parameters,
                experts=update.experts if update.experts > 1 else None,
            )
        )
    return AdapterSpectrum(
        adapter=str(contents.folder),
        base=contents.base,
        sites=tuple(sorted(measured, key=lambda site: position.get(site.path, len(position)))),
        remarks=tuple(_remarks(contents, any(labels.values()))),
    )


def _remarks(contents: AdapterFolder, labelled: bool) -> Iterable[str]:
    if contents.changed_base:
        yield (
            f"Started by {contents.changed_base}: these are the factors as saved; what they change on the published "
            "base is their difference from the first ones. `loratlas export --for peft` writes that."
        )
    if contents.config.get("use_dora"):
        yield "DoRA: the direction's update alone; each row is rescaled to its trained magnitude afterwards."
    if not labelled:
        yield "Roles are the last words of the names: the base's config was not to be had (--base MODEL)."


def strip(group: Sequence[SiteSpectrum], layers: int, largest: float) -> str:
    """A bar for each stretch of layers, as high as its largest norm; ``·`` where no site is.

    Args:
        group: of one role. layers: of the model. largest: the norm of a full bar.

    >>> def site(layer, norm):
    ...     return SiteSpectrum(path="w", role="q", layer=layer, rank=1, norm=norm, effective_rank=1, share=None,
    ...                         parameters=1, experts=None)
    >>> strip([site(0, 1.0), site(1, 8.0), site(3, 4.0)], 4, 8.0)
    '▁█·▄'
    """
    if not layers or all(site.layer is None for site in group):
        return "–"
    width = -(-layers // STRIP)
    marks = []
    for start in range(0, layers, width):
        norms = [s.norm for s in group if s.layer is not None and start <= s.layer < start + width]
        level = round(max(norms, default=0.0) / largest * len(_BARS)) if largest else 1
        marks.append(_BARS[max(level, 1) - 1] if norms else "·")
    return "".join(marks)


def _range(values: Iterable[float]) -> str:
    """Lowest to highest, with two digits: a row of seven columns has 80 characters.

    >>> _range([0.0801, 0.0937]), _range([1.0, 123.4])
    ('0.08–0.094', '1–123')
    """
    listed = list(values)
    if not listed:
        return "–"
    low, high = (f"{end:.0f}" if 10 <= end < 1e5 else f"{end:.2g}" for end in (min(listed), max(listed)))
    return low if low == high else f"{low}–{high}"
