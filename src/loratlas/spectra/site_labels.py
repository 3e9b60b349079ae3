"""What the adapted matrices are: by the plan that an adapter brings, by its base's config, or by their names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratlas.anatomy.sites import Site
from loratlas.errors import ModelError

if TYPE_CHECKING:
    from loratlas.adapters.stored.read_adapter import AdapterFolder
    from loratlas.anatomy.sites import Anatomy


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLabel:
    """Where an adapted matrix stands and what it does.

    Args:
        path: name of the parameter.
        role: as in the anatomy; the leaf of its name where nothing else is known.
        layer: index of its block; None outside the blocks.
        site: in the anatomy, where that is known.
    """

    path: str
    role: str
    layer: int | None
    site: Site | None = None


def label_of(module: str, path: str, sites: Mapping[str, Site]) -> SiteLabel:
    """The label of one adapted matrix.

    Args:
        module: name of the module, or of the module that holds the parameter.
        path: name of the parameter.
        sites: by parameter and by module, as :func:`sites_of` returns them.

    >>> label_of("h.3.attn.c_attn", "h.3.attn.c_attn.weight", {})
    SiteLabel(path='h.3.attn.c_attn.weight', role='c_attn', layer=3, site=None)
    """
    site = sites.get(path) or sites.get(module)
    if site is not None:
        role = site.role if site.scope == "decoder" else f"{site.scope}.{site.role}"
        return SiteLabel(path=site.path, role=role, layer=site.layer, site=site)
    number = re.search(r"(?:^|\.)(\d+)\.", path)
    words = path.removesuffix(".weight").split(".")
    role = next((word for word in reversed(words) if not word.isdigit()), path)
    return SiteLabel(path=path, role=role, layer=int(number[1]) if number else None)


def sites_of(contents: AdapterFolder, anatomy: Anatomy | None) -> dict[str, Site]:
    """The sites that an adapter may stand at, by the names of their parameters and modules.

    Args:
        contents: of an adapter's folder; the plan in it names sites, too.
        anatomy: of the base, where it is known.
    """
    sites: dict[str, Site] = {}
    plan = contents.notes.get("plan") or {}
    own = [
        Site.from_json({k: v for k, v in item.items() if k not in ("rank", "alpha", "why")})
        for item in plan.get("sites", ())
    ]
    for site in (*(anatomy.sites if anatomy else ()), *own):
        for path in (site.path, *site.called_as):
            sites[path] = site
            if site.kind != "experts":
                sites[path.rpartition(".")[0]] = site
    return sites


def base_anatomy(source: str | None) -> Anatomy | None:
    """The anatomy of a base by its name; None where it cannot be had."""
    from loratlas.anatomy.anatomy_cache import cached_anatomy

    if source is None:
        return None
    try:
        return cached_anatomy(source)
    except ModelError:
        return None
