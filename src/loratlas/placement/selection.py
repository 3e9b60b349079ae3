"""Which sites of an anatomy a name holds, in which layers."""

from __future__ import annotations

from collections.abc import Callable

from loratlas.anatomy.role_table import TEXT_SCOPES
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.placement.layer_ranges import LayerRange
from loratlas.placement.legacy import names_of
from loratlas.placement.module_names import ends, glob
from loratlas.placement.terms import Name
from loratlas.placement.vocabulary import holds

_NO_LINEAR = frozenset({"head.lm", "head.cls"})


class Selection:
    """An anatomy with an index for names; what was asked once is kept, so that long placements stay quick.

    Args:
        anatomy: of the model.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.scopes = list(dict.fromkeys(site.scope for site in anatomy.sites))
        self.depths = {scope: depth(anatomy, scope) for scope in self.scopes}
        # A matrix that is called under several names is one site, whichever of them was meant.
        self.first = {path: site for site in anatomy.sites for path in site.called_as}
        self.shared = {s.tied_to for s in anatomy.sites if s.tied_to and s.path not in self.first}
        self._paths: dict[str, list[Site]] = {}
        for site in anatomy.sites:
            for path in {site.module, site.path}:
                self._paths.setdefault(path, []).append(site)
        self._kept: dict[tuple[str | None, str, str, LayerRange | None], list[Site]] = {}

    def of(self, name: Name, layers: LayerRange | None = None) -> list[Site]:
        """The sites that one name holds in these layers, adaptable or not, in the anatomy's order."""
        key = (name.scope, name.word, name.kind, layers)
        if key not in self._kept:
            self._kept[key] = self._look_up(name, layers)
        return self._kept[key]

    def _look_up(self, name: Name, layers: LayerRange | None) -> list[Site]:
        if name.quoted and "*" not in name.word and "?" not in name.word:
            sites = self._paths.get(name.word, [])
        else:
            test = test_of(name)
            sites = [site for site in self.anatomy.sites if test(site)]
        if layers is not None:
            wanted = {scope: frozenset(layers.of(count) or ()) for scope, count in self.depths.items()}
            sites = [site for site in sites if site.layer in wanted[site.scope]]
        return list({one.path: one for one in (self.first.get(site.path, site) for site in sites)}.values())


def test_of(name: Name) -> Callable[[Site], bool]:
    """Whether a name holds a site."""
    if name.kind == "path":
        fits = glob(name.word)
        return lambda site: fits(site.module) or fits(site.path)
    if name.kind == "suffix":
        fits = ends(name.word)
        return lambda site: (
            (name.scope is None or site.scope == name.scope) and (fits(site.module) or fits(site.path))
        )
    if name.kind == "legacy":
        fit = [ends(word) for word in names_of(name.word)]
        return lambda site: any(fits(site.module) for fits in fit)
    if name.kind == "linear":
        # As PEFT reads it: every linear layer of every tower but the output layer.
        return lambda site: site.kind in ("linear", "conv1d") and site.role not in _NO_LINEAR
    scopes = {name.scope} if name.scope else TEXT_SCOPES
    return lambda site: site.scope in scopes and holds(name.word, site.role)


def depth(anatomy: Anatomy, scope: str) -> int:
    """Number of layers of a tower."""
    seen = max(
        (site.layer for site in anatomy.sites if site.scope == scope and site.layer is not None), default=-1
    )
    return max(seen + 1, anatomy.layers if scope == "decoder" else 0)
