"""The words of the anatomy: sites, unidentified matrices, and the whole of a model.

Nothing here knows torch or transformers, so that plans and reports can be read without either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Self

from loratlas.display import Block, Displayed, Grid
from loratlas.errors import ModelError

SCHEMA = "loratlas.map"
VERSION = 1

# Kinds that PEFT can adapt by the name of a module or (experts) of a parameter; others are mapped only.
_BY_NAME = frozenset({"linear", "conv1d", "embedding", "experts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One weight matrix of a model.

    Args:
        path: name of the parameter, e.g. ``"model.layers.0.self_attn.q_proj.weight"``.
        module: name of the module that holds it.
        layer: index of the block it stands in, counted within its scope; None outside the blocks.
        scope: the tower: ``decoder``, ``encoder``, ``vision``, ``audio`` or ``connector``.
        role: what the matrix does, ``family.part`` or a single word.
        shape: ``(d_out, d_in)`` of the linear map, whatever the orientation in memory; an embedding's
            as stored (rows, width).
        kind: ``linear``, ``conv1d``, ``conv``, ``experts``, ``embedding`` or ``parameter``.
        flags: of ``transposed`` (stored as (d_in, d_out)), ``interleaved``, ``tied``, ``shared`` and
            ``inert`` (an adapter put there by name would not act, or not as a linear map).
        layout: how the rows of a fused role are ordered, e.g. ``"per_head:q,k,v"``.
        experts: number of stacked experts, where there are any.
        input_group: equal for the sites that read the same tensor; None where that was not observed.
        tied_to: path of the parameter that is the same storage and is counted instead of this one.
        called_as: every name under which the matrix is called in this role, where there are several: one adapter
            serves them all. On the counted one only.

    >>> site = Site(path="h.0.attn.c_attn.weight", module="h.0.attn.c_attn", layer=0, scope="decoder",
    ...             role="attn.qkv", shape=(48, 16), kind="conv1d", flags=frozenset({"transposed"}))
    >>> site.family, site.part, site.lora_parameters(4), site.max_rank
    ('attn', 'qkv', 256, 16)
    """

    path: str
    module: str
    layer: int | None
    scope: str
    role: str
    shape: tuple[int, int]
    kind: str
    flags: frozenset[str] = field(default_factory=frozenset)
    layout: str | None = None
    experts: int | None = None
    input_group: str | None = None
    tied_to: str | None = None
    called_as: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The part of the role before the dot, e.g. ``"attn"``; the whole role where there is no dot."""
        return self.role.partition(".")[0]

    @property
    def part(self) -> str:
        """The part of the role after the dot, e.g. ``"q"``; empty where there is no dot."""
        return self.role.partition(".")[2]

    @property
    def adaptable(self) -> bool:
        """Whether an adapter put on the module by name acts as a low-rank change of this matrix."""
        return self.kind in _BY_NAME and "inert" not in self.flags

    @property
    def max_rank(self) -> int:
        """Largest useful rank, ``min(d_out, d_in)``."""
        return min(self.shape)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter: ``rank · (d_in + d_out) · experts``."""
        return rank * sum(self.shape) * (self.experts or 1)

    @property
    def dora_parameters(self) -> int:
        """Lengths that DoRA trains besides: one for each output of the map, so of an embedding one for each column."""
        return self.shape[1] if self.kind == "embedding" else self.shape[0]

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse is :meth:`from_json`."""
        data = {**asdict(self), "shape": list(self.shape), "flags": sorted(self.flags)}
        names = data.pop("called_as")
        return data | {"called_as": list(names)} if names else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        lists = {"shape": tuple(data["shape"]), "called_as": tuple(data.get("called_as", ()))}
        return cls(**{**data, **lists, "flags": frozenset(data["flags"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unresolved:
    """A parameter of two or more dimensions whose role is unidentified.

    Args:
        path: name of the parameter.
        module: name of the module that holds it.
        shape: its dimensions as stored.
        reason: why no role was given, in words.
        opinions: the roles that single readers would have given, e.g. ``("names: attn.q", "trace: attn.k")``.
        scope: the tower it stands in.
    """

    path: str
    module: str
    shape: tuple[int, ...]
    reason: str
    opinions: tuple[str, ...] = ()
    scope: str = "decoder"

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse is :meth:`from_json`."""
        return {**asdict(self), "shape": list(self.shape), "opinions": list(self.opinions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(**{**data, "shape": tuple(data["shape"]), "opinions": tuple(data["opinions"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy(Displayed):
    """All matrices of a model, in the model's own order.

    Args:
        model: what was read: a Hub id, a directory, or the name of the model's type.
        model_type: transformers' name of the architecture.
        parameters: all parameters of the model, tied ones counted once.
        layers: number of blocks of the decoder.
        sites: every parameter of two or more dimensions whose role is known, once.
        unresolved: every other one, once.
        config_digest: 16 hexadecimal digits that name the architecture and its sizes.
        hidden: width of the residual stream.
        vocabulary: rows of the token embedding.
        heads: attention heads (of queries).
        context: positions the model was built for; None where it has no limit of its own.
        active_experts: routed experts that one token passes; 1 where the config names no number.

    >>> site = Site(path="lm_head.weight", module="lm_head", layer=None, scope="decoder", role="head.lm",
    ...             shape=(96, 16), kind="linear")
    >>> anatomy = Anatomy(model="small", model_type="llama", parameters=1536, layers=0, sites=(site,),
    ...                   config_digest="0" * 16, hidden=16, vocabulary=96, heads=2)
    >>> anatomy.site("lm_head").shape, Anatomy.from_json(anatomy.to_json()) == anatomy
    ((96, 16), True)
    """

    model: str
    model_type: str
    parameters: int
    layers: int
    sites: tuple[Site, ...]
    unresolved: tuple[Unresolved, ...] = ()
    config_digest: str
    hidden: int
    vocabulary: int
    heads: int
    context: int | None = None
    active_experts: int = 1

    def blocks(self) -> list[Block]:
        """Sites by role, and what is unidentified."""
        groups: dict[tuple[str, tuple[int, ...]], list[Site]] = {}
        for site in self.sites:
            groups.setdefault((site.role, site.shape), []).append(site)
        rows = tuple(
            (role, str(len(sites)), " × ".join(map(str, shape)), sites[0].kind)
            for (role, shape), sites in groups.items()
        )
        unidentified = f"Unresolved: {len(self.unresolved) or 'none'}."
        return [
            f"{self.model} ({self.model_type}): {self.parameters:,} parameters, {self.layers} layers",
            Grid(columns=("role", "sites", "shape", "kind"), rows=rows),
            unidentified,
        ]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def site(self, path: str) -> Site:
        """The site of this parameter (or module) name.

        Raises:
            ModelError: no site has that name; the nearest ones are given.
        """
        for site in self.sites:
            if path in (site.path, site.module):
                return site
        near = get_close_matches(path, [site.path for site in self.sites], n=3, cutoff=0.3)
        raise ModelError(
            given=path,
            found=f"no such site among the {len(self.sites)} of {self.model}",
            instead=f"one of {', '.join(near)}" if near else "a name that `loratlas map` prints",
        )

    @property
    def adaptable(self) -> tuple[Site, ...]:
        """Sites that an adapter can be put on by name; of tied ones only the first."""
        return tuple(site for site in self.sites if site.adaptable and site.tied_to is None)

    def to_json(self) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.map``; the inverse is :meth:`from_json`."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **{name: getattr(self, name) for name in (*_PLAIN, "active_experts")},
            "sites": [site.to_json() for site in self.sites],
            "unresolved": [item.to_json() for item in self.unresolved],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ModelError: the object has another schema or version.
        """
        if data.get("schema") != SCHEMA or data.get("version") != VERSION:
            raise ModelError(
                given=f"an object of schema {data.get('schema')!r}, version {data.get('version')!r}",
                found=f"a map has schema {SCHEMA!r}, version {VERSION}",
                instead="what `loratlas map MODEL --json` prints",
            )
        return cls(
            **{name: data[name] for name in _PLAIN},
            active_experts=data.get("active_experts", 1),
            sites=tuple(Site.from_json(item) for item in data["sites"]),
            unresolved=tuple(Unresolved.from_json(item) for item in data["unresolved"]),
        )


_PLAIN = (
    "model",
    "model_type",
    "parameters",
    "layers",
    "config_digest",
    "hidden",
    "vocabulary",
    "heads",
    "context",
)
