"""Floating point operations of every matrix of a small model, as PyTorch counts them.

Every product is counted by `torch.utils.flop_counter`'s own formulas and ascribed to the parameter that is one of its
factors: forward, the matrix applied; backward, the gradient of its input. A product of two activations (scores of
attention, a scan, the gradient of a factor of an adapter) has no parameter in it and is counted by itself.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from loratlas.anatomy.backward_reach import backward_reach
from loratlas.anatomy.dummy_inputs import inputs
from loratlas.anatomy.flops import cost, runs, shares
from loratlas.anatomy.probe.probe_reader import instance
from loratlas.anatomy.read import read
from loratlas.anatomy.role_table import ROLES, SETS, TEXT_SCOPES, in_set
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.files import digest, write_text
from loratlas.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 24


class PerMatrix(TorchDispatchMode):
    """Counts operations by the parameter that they multiply with."""

    def __init__(self, model: torch.nn.Module, forward: PerMatrix | None = None) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.activations = 0
        self.kept: list[Any] = forward.kept if forward else []
        self.names = (
            forward.names
            if forward
            else {
                value.untyped_storage()._cdata: name
                for name, value in model.named_parameters()
                if value.ndim > 1
            }
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        made = [self.names.get(one.untyped_storage()._cdata) for one in given]
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            held = {one for one in made if one is not None}
            for name in held:
                self.flops[name] += count
            if not held:
                self.activations += count
        elif given and len(set(made)) == 1 and made[0] is not None:
            # A copy of a matrix is the matrix.
            for one in tree_leaves(result):
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    self.kept.append(one.untyped_storage())
                    self.names[one.untyped_storage()._cdata] = made[0]
        self.kept += [one.untyped_storage() for one in given]
        return result


@dataclass(frozen=True, slots=True)
class Passes:
    """Operations of one pass forward and one backward: of each matrix, and of products of two activations."""

    forward: Counter[str]
    backward: Counter[str]
    activations: int


class Counted:
    """A small instance of a type that runs, asked what training costs with a gradient at given matrices.

    Args:
        config: small.
        kept: file with what was counted before for this config and these libraries, and where to keep more.
    """

    def __init__(self, config: Any, kept: Path | None = None) -> None:
        self.config, self.kept = config, kept
        libraries = [
            transformers.__version__,
            torch.__version__,
            TOKENS,
            *map(inspect.getsource, (PerMatrix, Counted._count)),
        ]
        self.key = digest([config.to_json_string(use_diff=False), *libraries])
        self.known: dict[str, Any] = {"key": self.key, "passes": {}}
        if kept is not None and kept.exists():
            known = json.loads(kept.read_text("utf-8"))
            self.known = known if known["key"] == self.key else self.known

    @cached_property
    def model(self) -> PreTrainedModel:
        """With random weights."""
        with quiet():
            model = instance(self.config)
            model.config._experts_implementation = "eager"
            model.set_attn_implementation("eager")
        return model

    @property
    def reason(self) -> str:
        """Why it does not run, or nothing."""
        if "reason" not in self.known:
            self.known["reason"] = self._fit_inputs() or self._first_backward()
            self._keep()
        return self.known["reason"]

    @cached_property
    def given(self) -> dict[str, Any]:
        """Arguments that it takes."""
        assert not self._fit_inputs()
        return self.given

    def _fit_inputs(self) -> str:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tries = inputs(self.model, tokens=TOKENS, others=TOKENS)
        reason = ""
        for given in tries:
            try:
                with quiet(), torch.no_grad():
                    self.model(**given)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            self.given = given
            return ""
        return reason

    def _first_backward(self) -> str:
        try:
            self.used()
        except Exception as error:  # a backward pass that its code refuses in evaluation mode
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def used(self) -> frozenset[str]:
        """Parameters through which a gradient of the loss goes where all ask for one."""
        return frozenset(self.passes(None).backward)

    def passes(self, adapted: list[str] | None) -> Passes:
        """Count, while these parameters ask for a gradient (None: all of them).

        An adapter makes the output of its site depend on what trains, and so does a gradient of the site's own
        matrix; the product for that gradient has no matrix in it.
        """
        name = "all parameters" if adapted is None else digest(adapted)
        if name not in self.known["passes"]:
            self.known["passes"][name] = self._count(adapted)
            self._keep()
        forward, backward, activations = self.known["passes"][name]
        return Passes(Counter(forward), Counter(backward), activations)

    def _keep(self) -> None:
        if self.kept is not None:
            write_text(self.kept, json.dumps(self.known))

    def _count(self, adapted: list[str] | None) -> list[Any]:
        given = self.given
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        adapted = list(parameters) if adapted is None else adapted
        for path in adapted:
            parameters[path].requires_grad_(True)
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                with PerMatrix(self.model) as forward:
                    output = self.model(**given)
                    loss = next(
                        one
                        for one in output.values()
                        if isinstance(one, torch.Tensor) and one.is_floating_point()
                    ).sum()
                with PerMatrix(self.model, forward) as backward:
                    if loss.requires_grad:
                        loss.backward()
        finally:
            for path in adapted:
                parameters[path].requires_grad_(False)
                parameters[path].grad = None
        return [forward.flops, backward.flops, forward.activations]


@dataclass(frozen=True, slots=True)
class Difference:
    """A matrix through which the backward pass was predicted to go, and was not counted to, or the other way."""

    adapted: str
    matrix: str
    predicted: float
    counted: float


@dataclass(slots=True, kw_only=True)
class Agreement:
    """What was compared on one type."""

    silent: str = ""
    placements: int = 0
    compared: int = 0
    agreeing: int = 0
    differences: list[Difference] = field(default_factory=list)
    forward_compared: int = 0
    forward_agreeing: int = 0
    forward_differences: dict[str, float] = field(default_factory=dict)
    total: tuple[float, float] = (0.0, 0.0)
    activations: tuple[float, float] = (0.0, 0.0)


def agreement(config: Any, *, sets: bool = True, kept: Path | None = None) -> Agreement:
    """Compare predicted and counted operations of a small instance.

    Args:
        config: small.
        sets: compare the sets of roles as well as single sites.
        kept: as of `Counted`.
    """
    anatomy, found = read(config), Agreement()
    counted = Counted(config, kept)
    if counted.reason:
        found.silent = counted.reason
        return found
    # A matrix whose result does not reach the loss is not compared: a pooler, an expert that nothing was sent to.
    used = counted.used()
    maps = [one for one in anatomy.sites if one.path in used and ROLES[one.role].use == "map"]
    for words, adapted in placements(anatomy, sets=sets):
        passes = counted.passes(adapted)
        forward, backward = passes.forward, passes.backward
        reached = backward_reach(anatomy, {name for path in adapted for name in names(anatomy, path)})
        found.placements += 1
        for site in maps:
            ratio = round(backward[site.path] / forward[site.path], 2)
            places = site.called_as or (site.path,)
            wanted = round(sum(name in reached for name in places) / len(places), 2)
            found.compared += 1
            if ratio == wanted:
                found.agreeing += 1
            else:
                found.differences.append(Difference(words, _words(site), wanted, ratio))
    share, often, forward = shares(anatomy), runs(anatomy), counted.passes([]).forward
    for site in maps:
        if site.kind == "conv":
            continue
        wanted = 2 * math.prod(site.shape) * TOKENS * share.get(site.path, 1) * max(len(site.called_as), 1)
        wanted *= often.get(site.path, 1)
        found.forward_compared += 1
        if abs(forward[site.path] - wanted) < 1e-6 * wanted or (
            site.family == "moe" and site.experts is None
        ):
            found.forward_agreeing += 1  # a single expert sees as many tokens as were sent to it
        else:
            found.forward_differences[_words(site)] = round(forward[site.path] / wanted, 2)
    _totals(found, anatomy, counted)
    return found


def _totals(found: Agreement, anatomy: Anatomy, counted: Counted) -> None:
    """Operations for one token with all of `all` adapted, and those of activations alone: predicted, counted."""
    adapted = next((held for words, held in placements(anatomy, sets=True) if words == "all"), [])
    passes = counted.passes(adapted)
    rows = dict.fromkeys(adapted, 0)  # of no rank: what is left is the base
    products = cost(anatomy, rows, length=0).flops_per_token
    found.total = products, (passes.forward.total() + passes.backward.total()) / TOKENS
    scores = [cost(anatomy, {}, length=length).flops_per_token for length in (TOKENS, 0)]
    found.activations = scores[0] - scores[1], passes.activations / TOKENS


def names(anatomy: Anatomy, path: str) -> tuple[str, ...]:
    """All names of a site."""
    return anatomy.site(path).called_as or (path,)


def placements(anatomy: Anatomy, *, sets: bool) -> list[tuple[str, list[str]]]:
    """Words and paths: of every role the site in the middle, then the sets."""
    tied = {
        site.tied_to for site in anatomy.sites if site.tied_to and not anatomy.site(site.tied_to).called_as
    }
    roles: dict[tuple[str, str], list[Site]] = {}
    for site in anatomy.adaptable:
        if site.scope in TEXT_SCOPES and site.path not in tied:
            roles.setdefault((site.scope, site.role), []).append(site)
    chosen = {held[len(held) // 2].path: held[len(held) // 2] for held in roles.values()}
    listed = [(f"{_words(site)}@{site.layer}", [path]) for path, site in chosen.items()]
    if sets:
        for name in SETS:
            held = [one.path for sites in roles.values() for one in sites if in_set(name, one.role)]
            if held:
                listed.append((name, held))
    return listed


def _words(site: Site) -> str:
    return f"{site.scope}.{site.role}"
