"""Three readers that know nothing of one another, side by side: names, trace and probe.

The first two read the model itself, without weights. The probe needs numbers: it tries out a small instance of the
same architecture, with the first blocks of every tower, enough of them to have one of every kind, and random weights.
What it finds of a matrix there holds for the matrices of the same name and role in all blocks. The trace looks at the
small instance as well, where it saw nothing without numbers: some models ask their tensors for values.

Where readers contradict one another and the reviewed table (:mod:`loratlas.anatomy.compare.overrides`) does
not settle it, the matrix is unresolved, with all opinions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.anatomy.compare.overrides import reason
from loratlas.anatomy.compare.reader_opinions import MatrixOpinions, Proof
from loratlas.anatomy.config_sizes import config_digest, sizes
from loratlas.anatomy.probe.probe_reader import instance, probe
from loratlas.anatomy.read import examine
from loratlas.anatomy.role_table import ROLES
from loratlas.anatomy.sites import Anatomy, Unresolved
from loratlas.anatomy.structure import matrices
from loratlas.anatomy.tiny_config import LAYERS, shrunk, small
from loratlas.anatomy.trace.observe import observe
from loratlas.anatomy.trace.trace_reader import opinions
from loratlas.models.config import load_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.compare.decide_roles import RoleDecision


def prove(source: str | Path | PretrainedConfig | Any) -> Proof:
    """Read a model by names and trace, and try out a small instance of it.

    Args:
        source: a Hub id, a directory, a ``config.json``, a config, or a model, whose weights are not looked at.

    Returns:
        The anatomy, and every reader's opinion of every matrix.

    Raises:
        ModelError: as :func:`~loratlas.anatomy.read.read` does.

    >>> from transformers import LlamaConfig
    >>> proof = prove(LlamaConfig(num_hidden_layers=2, hidden_size=48, num_attention_heads=6, vocab_size=96,
    ...                           num_key_value_heads=2, intermediate_size=80))
    >>> [proof.agreement(reader) for reader in ("names", "trace", "probe")], proof.disputes
    ([(14, 14), (14, 14), (14, 14)], ())
    """
    anatomy, decisions = examine(source)
    config = load_config(source) if isinstance(source, (str, Path)) else getattr(source, "config", source)
    trial = _try(config, anatomy, decisions)
    sites = {site.path: site for site in anatomy.sites}
    opinions_of = []
    for path, decision in decisions.items():
        by: dict[str, str | None] = {}
        for opinion in decision.opinions:
            reader, role = opinion.split(": ", 1)
            by[reader] = role
        site = sites.get(path)
        by.setdefault("trace", trial.trace.of(path, decision))
        if (
            site is not None
            and site.layer is None
            and (ROLES[site.role].tokens is None or ROLES[site.role].use == "rows")
        ):
            by = {}  # outside the blocks where a matrix stands decides, and no reader is asked
        opinions_of.append(
            MatrixOpinions(
                path=path,
                role=site.role if site else None,
                names=by.get("names"),
                trace=by.get("trace"),
                probe=trial.probe.of(path, decision),
                table=reason(anatomy.model_type, path) if "table" in by else "",
            )
        )
    return Proof(
        anatomy=_judged(anatomy, opinions_of),
        matrices=tuple(opinions_of),
        tried=trial.tried,
        silent=trial.silent,
    )


def _judged(anatomy: Anatomy, opinions_of: Iterable[MatrixOpinions]) -> Anatomy:
    """What a reader contradicts, and no table settles, is unresolved."""
    against = {one.path: one for one in opinions_of if one.disputed and not one.table}
    moved = tuple(
        Unresolved(
            path=site.path,
            module=site.module,
            shape=site.shape,
            reason=f"read as {site.role}, and a reader contradicts it when it is tried out",
            opinions=against[site.path].opinions(),
            scope=site.scope,
        )
        for site in anatomy.sites
        if site.path in against
    )
    kept = tuple(site for site in anatomy.sites if site.path not in against)
    return replace(anatomy, sites=kept, unresolved=anatomy.unresolved + moved)


class _Heard:
    """What one reader said on a small instance, asked by the paths of the model that it stands for."""

    def __init__(self, said: dict[str, str], decisions: dict[str, RoleDecision]) -> None:
        self.by_role: dict[tuple[str, str | None], set[str]] = {}
        self.by_name: dict[str, set[str]] = {}
        for path, opinion in said.items():
            self.by_role.setdefault((pattern(path), decisions[path].role), set()).add(opinion)
            self.by_name.setdefault(pattern(path), set()).add(opinion)

    def of(self, path: str, decision: RoleDecision) -> str | None:
        for heard in (
            self.by_role.get((pattern(path), decision.role), set()),
            self.by_name.get(pattern(path), set()),
        ):
            if len(heard) == 1:
                return next(iter(heard))
        return None


@dataclass(frozen=True, slots=True)
class _Trial:
    """What became of a small instance: what was probed and traced, on what, or why nothing was."""

    probe: _Heard
    trace: _Heard
    tried: str = ""
    silent: str = ""


def pattern(path: str) -> str:
    """A path with every number in it left open.

    >>> pattern("model.layers.10.mlp.experts.3.w1.weight")
    'model.layers.*.mlp.experts.*.w1.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def _try(config: PretrainedConfig, anatomy: Anatomy, decisions: dict[str, RoleDecision]) -> _Trial:
    """Probe the first small instance that runs, and trace it too: with numbers where a pass without them fails."""
    failed = ""
    layers = max(LAYERS, _kinds(anatomy))
    for words, less in (
        ("the same config, narrow", lambda: shrunk(config, layers=layers)),
        ("the usual config of its type, narrow", lambda: small(config.model_type)),
    ):
        try:
            tiny = less()
            model = instance(tiny)
            sites = matrices(model)
            probed = probe(model, sites)
            numbers = sizes(model.config)
            traced = opinions(observe(model, sites), sites, kv_heads=numbers.kv_heads, heads=numbers.heads)
            if config_digest(tiny) != anatomy.config_digest:
                decisions = examine(tiny)[1]
        except Exception as error:
            # Sizes that do not fit together, or a model that does not run on tokens alone: of any class.
            failed = failed or (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:160]
            continue
        size = sum(parameter.numel() for parameter in model.parameters())
        return _Trial(
            _Heard(probed, decisions),
            _Heard({path: said.role for path, said in traced.items()}, decisions),
            tried=f"{words}: {size:,} random parameters",
        )
    return _Trial(_Heard({}, {}), _Heard({}, {}), silent=failed)


def _kinds(anatomy: Anatomy) -> int:
    """How many of the first blocks hold one of every kind, in the tower where that takes most."""
    blocks: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for site in anatomy.sites:
        if site.layer is not None:
            blocks.setdefault((site.scope, site.layer), set()).add((pattern(site.path), site.role))
    first: dict[tuple[str, frozenset[tuple[str, str]]], int] = {}
    for (scope, layer), held in sorted(blocks.items()):
        first.setdefault((scope, frozenset(held)), layer)
    return max(first.values(), default=0) + 1
