"""Floating point operations of every matrix of a small model, as PyTorch counts them.

Every product is counted by `torch.utils.flop_counter`'s own formulas and ascribed to the parameter that is one of its
factors: forward, the matrix applied; backward, the gradient of its input. A product of two activations (scores of
attention, the gradient of a factor of an adapter) has no parameter in it and is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from loratlas.anatomy.backward_reach import backward_reach
from loratlas.anatomy.dummy_inputs import inputs
from loratlas.anatomy.flops import shares
from loratlas.anatomy.probe.probe_reader import instance
from loratlas.anatomy.read import read
from loratlas.anatomy.role_table import ROLES, SETS, TEXT_SCOPES, in_set
from loratlas.anatomy.sites import Anatomy, Site
from loratlas.models.load import quiet

TOKENS = 24


class PerMatrix(TorchDispatchMode):
    """Counts operations by the parameter that they multiply with."""

    def __init__(self, model: torch.nn.Module, forward: PerMatrix | None = None) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
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
            for name in {one for one in made if one is not None}:
                self.flops[name] += count
        elif given and len(set(made)) == 1 and made[0] is not None:
            # A copy of a matrix is the matrix.
            for one in tree_leaves(result):
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    self.kept.append(one.untyped_storage())
                    self.names[one.untyped_storage()._cdata] = made[0]
        self.kept += [one.untyped_storage() for one in given]
        return result


class Counted:
    """A small instance of a type that runs, asked what training costs with a gradient at given matrices.

    Args:
        config: small.
    """

    def __init__(self, config: Any) -> None:
        with quiet():
            self.model = instance(config)
        self.model.config._experts_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tries = inputs(self.model, tokens=TOKENS, others=TOKENS)
        self.reason = ""
        for given in tries:
            try:
                with quiet(), torch.no_grad():
                    self.model(**given)
            except Exception as error:
                self.reason = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            self.given = given
            self.reason = ""
            return

    def count(self, adapted: list[str]) -> tuple[Counter[str], Counter[str]]:
        """Operations by parameter, forward and backward, while these parameters ask for a gradient.

        An adapter makes the output of its site depend on what trains, and so does a gradient of the site's own
        matrix; the product for that gradient has no matrix in it.
        """
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for path in adapted:
            parameters[path].requires_grad_(True)
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                with PerMatrix(self.model) as forward:
                    output = self.model(**self.given)
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
        return forward.flops, backward.flops


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


def agreement(config: Any, *, sets: bool = True) -> Agreement:
    """Compare predicted and counted operations of a small instance.

    Args:
        config: small.
        sets: compare the sets of roles as well as single sites.
    """
    anatomy, found = read(config), Agreement()
    counted = Counted(config)
    if counted.reason:
        found.silent = counted.reason
        return found
    try:
        # A matrix whose result does not reach the loss is not compared: a pooler, an expert that nothing was sent to.
        _, used = counted.count([name for name, _ in counted.model.named_parameters()])
    except Exception as error:  # a backward pass that its code refuses in evaluation mode
        found.silent = f"{type(error).__name__}: {error}".splitlines()[0]
        return found
    maps = [one for one in anatomy.sites if used[one.path] and ROLES[one.role].use == "map"]
    for words, adapted in placements(anatomy, sets=sets):
        forward, backward = counted.count(adapted)
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
    share, forward = shares(anatomy), counted.count([])[0]
    for site in maps:
        if site.kind == "conv":
            continue
        wanted = 2 * math.prod(site.shape) * TOKENS * share.get(site.path, 1) * max(len(site.called_as), 1)
        found.forward_compared += 1
        if abs(forward[site.path] - wanted) < 1e-6 * wanted or (
            site.family == "moe" and site.experts is None
        ):
            found.forward_agreeing += 1  # a single expert sees as many tokens as were sent to it
        else:
            found.forward_differences[_words(site)] = round(forward[site.path] / wanted, 2)
    return found


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
    found = [(f"{_words(site)}@{site.layer}", [path]) for path, site in chosen.items()]
    if sets:
        for name in SETS:
            held = [one.path for sites in roles.values() for one in sites if in_set(name, one.role)]
            if held:
                found.append((name, held))
    return found


def _words(site: Site) -> str:
    return f"{site.scope}.{site.role}"
