"""Through which matrices a backward pass must go, for adapters at given sites.

A frozen matrix costs a product in the backward pass if its input depends on an adapter. That follows from the order in
which towers, blocks and the matrices of a block work; the last stands in the table of roles
(:mod:`loratlas.anatomy.role_table`), and a tensor that several matrices read, in their input group.

* Towers: vision and audio, connector, encoder, decoder. An encoder's states reach a decoder through the keys and values
  of its cross-attention; what another tower makes reaches the text's stream, or a cross-attention where there is one.
* Blocks: every block reads what the one before it left on the stream.
* In a block: mixing of tokens, cross-attention, pointwise work, each reading the stream that the earlier ones added
  to; a block that has several of a kind is read in the model's order. Where two of them read the same tensor, they work
  side by side, and neither depends on the other. A block that runs several times depends on itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from loratlas.anatomy.role_table import ROLES, Role
from loratlas.anatomy.sites import Anatomy, Site

_STEPS = ("mixing", "cross", "pointwise")
_MEMORY = frozenset({"k", "v"})
"""What a cross-attention makes of the states that it attends to."""


def backward_reach(anatomy: Anatomy, adapted: Collection[str]) -> frozenset[str]:
    """Paths of the sites whose input depends on an adapter.

    Args:
        anatomy: of the base.
        adapted: paths of the sites that carry one.

    >>> from loratlas.anatomy.read import read
    >>> from transformers import T5Config
    >>> anatomy = read(T5Config(num_layers=2, d_model=16, d_ff=32, num_heads=2, d_kv=8, vocab_size=40))
    >>> last = backward_reach(anatomy, {"encoder.block.1.layer.1.DenseReluDense.wo.weight"})
    >>> sorted(path.split("Attention.")[-1] for path in last if "decoder.block.0.layer.1" in path)
    ['k.weight', 'o.weight', 'v.weight']
    """
    towers: dict[str, list[Site]] = {}
    for site in anatomy.sites:
        towers.setdefault(site.scope, []).append(site)
    reached: set[str] = set()

    def tower(scope: str, *, stream: bool, memory: bool = False) -> bool:
        reach = _Tower(towers.get(scope, []), frozenset(adapted), stream=stream, memory=memory)
        reached.update(reach.reached)
        return reach.stream

    seen = tower("vision", stream=False) | tower("audio", stream=False)
    seen = tower("connector", stream=seen)
    memory = tower("encoder", stream=seen) if "encoder" in towers else seen
    attends = any(site.family == "xattn" for site in towers.get("decoder", ()))
    tower("decoder", stream=memory and not attends, memory=memory)
    return frozenset(reached)


class _Tower:
    """One tower, walked through from its embeddings to its head.

    Args:
        sites: of the tower, in the model's order.
        adapted: as of `backward_reach`.
        stream: whether what enters it depends on an adapter.
        memory: whether what its cross-attention attends to does.
    """

    def __init__(self, sites: list[Site], adapted: frozenset[str], *, stream: bool, memory: bool) -> None:
        self.adapted, self.stream, self.memory = adapted, stream, memory
        self.reached: set[str] = set()
        blocks = [site for site in sites if site.layer is not None]
        self.width = _width(blocks)
        outside = [site for site in sites if site.layer is None]
        # A bias of all layers' scores acts in each of them.
        self.biases = [site for site in outside if site.part == "relbias"]
        self.tables = {site.shape[1] for site in outside if site.role == "embed"}
        self.first = sites.index(blocks[0]) if blocks else 0
        before = [site for site in outside if self._is_before(site, sites.index(site))]
        after = [site for site in outside if site not in before and site not in self.biases]
        self._walk(sorted(before, key=lambda site: site.role != "embed"))
        for block in _in_order(blocks):
            self._block(block)
        self._walk(sorted(after, key=_outside_stage))

    def _is_before(self, site: Site, index: int) -> bool:
        """Whether a site outside the blocks works before them."""
        if site in self.biases or site.family == "head":
            return False
        if ROLES[site.role].use != "map" or site.kind == "conv":
            return True
        out, into = site.shape
        if into == self.width != out and out in self.tables:
            return False  # back to the width of the embeddings
        return (out == self.width != into) or index < self.first

    def _walk(self, sites: Iterable[Site]) -> None:
        """One after the other along the stream."""
        for site in sites:
            if self.stream and ROLES[site.role].use == "map":
                self.reached.add(site.path)
            self.stream |= site.path in self.adapted

    def _block(self, sites: list[Site]) -> None:
        # What runs again reads its own earlier result.
        self.stream |= any("shared" in site.flags and site.path in self.adapted for site in sites)
        groups: dict[str, bool] = {}
        for step in _steps(sites):
            before = dict(groups)
            made = False
            for site in sorted(step, key=lambda site: ROLES[site.role].stage):
                row = ROLES[site.role]
                depends = self._depends(site, row, step, before)
                if site.input_group is not None and row.stage == 0:
                    groups.setdefault(site.input_group, depends)
                if depends and row.use == "map" and row.differentiable:
                    self.reached.add(site.path)
                made |= row.differentiable and (depends or site.path in self.adapted)
            if step[0].family == "attn":
                made |= any(site.path in self.adapted for site in self.biases)
            self.stream |= made

    def _depends(self, site: Site, row: Role, step: list[Site], before: dict[str, bool]) -> bool:
        """Whether a site's input depends on an adapter."""
        if site.input_group is not None and site.input_group in before:
            return before[site.input_group]  # side by side with an earlier step
        leading = [other for other in step if self._leads(other, site, row, step)]
        if leading:
            biased = row.part in ("o", "o_a") and any(one.path in self.adapted for one in self.biases)
            return biased or any(
                ROLES[other.role].differentiable
                and (other.path in self.adapted or other.path in self.reached)
                for other in leading
            )
        if row.part == "rel" and not any(
            other is not site and other.input_group == site.input_group is not None for other in step
        ):
            return any(one.path in self.adapted for one in self.biases)  # it maps a table of positions
        if row.family == "xattn" and row.covers and {*row.covers} <= _MEMORY:
            return self.memory
        # Where one of a step reads what an earlier step reads, the whole step stands beside that one.
        shared = (
            before[one.input_group] for one in step if one.input_group in before and ROLES[one.role].block
        )
        return next(shared, self.stream)

    def _leads(self, other: Site, site: Site, row: Role, step: list[Site]) -> bool:
        """Whether one site's output is part of what another one of the same step reads."""
        first = ROLES[other.role]
        if other is site or (other.input_group is not None and other.input_group == site.input_group):
            return False
        if not row.part and row.after is not None:
            # A short convolution stands in the module whose maps it reads.
            return other.part in row.after and _module(other) == _module(site)
        if other.family != site.family:
            return False
        if other.role == site.role:
            # Two maps in a row share a role: a low-rank gate, in the model's order.
            if step.index(other) > step.index(site):
                return False
            return other.shape[0] == site.shape[1] != other.shape[1] and site.shape[1] != self.width
        if row.after is not None:
            return other.part in row.after
        return first.stage < row.stage


def _width(blocks: list[Site]) -> int:
    """Of the stream: what most matrices of the blocks read that come first."""
    counts: dict[int, int] = {}
    for site in blocks:
        if ROLES[site.role].stage == 0 and ROLES[site.role].sets:
            counts[site.shape[1]] = counts.get(site.shape[1], 0) + 1
    return max(counts, key=counts.__getitem__, default=0)


def _outside_stage(site: Site) -> tuple[bool, int]:
    return site.family == "head", ROLES[site.role].stage


def _stack(site: Site) -> str:
    """The list of blocks that a site stands in."""
    parts = site.path.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit() and int(part) == site.layer), 0)
    return ".".join(parts[:end])


def _in_order(sites: list[Site]) -> list[list[Site]]:
    """The blocks of a tower as they work: one list after the other, or in turn where each holds half of a block."""
    stacks: dict[str, dict[int, list[Site]]] = {}
    for site in sites:
        stacks.setdefault(_stack(site), {}).setdefault(site.layer or 0, []).append(site)
    kinds = [{ROLES[s.role].block for block in stack.values() for s in block} for stack in stacks.values()]
    halves = (
        len(stacks) > 1
        and len({frozenset(stack) for stack in stacks.values()}) == 1
        and len(set().union(*kinds)) == sum(map(len, kinds))
    )
    if not halves:
        return [stack[layer] for stack in stacks.values() for layer in sorted(stack)]
    layers = sorted(next(iter(stacks.values())))
    return [[site for stack in stacks.values() for site in stack[layer]] for layer in layers]


def _steps(sites: list[Site]) -> list[list[Site]]:
    """The steps of a block: runs of one kind, in the model's order; where each kind has one, in the usual order."""
    runs: list[list[Site]] = []
    for site in sites:
        if ROLES[site.role].use == "values":
            continue
        if runs and _kind(runs[-1][0]) == _kind(site):
            runs[-1].append(site)
        else:
            runs.append([site])
    kinds = [_kind(run[0]) for run in runs]
    if len(set(kinds)) == len(kinds):
        runs.sort(key=lambda run: _STEPS.index(_kind(run[0])))
    return runs


def _module(site: Site) -> str:
    return site.module.rpartition(".")[0]


def _kind(site: Site) -> str:
    return ROLES[site.role].block or "pointwise"
