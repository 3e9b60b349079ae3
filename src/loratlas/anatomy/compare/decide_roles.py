"""What each matrix does: the agreement of two readers that know nothing of one another.

* **Behaviour** (:mod:`loratlas.anatomy.trace.trace_reader`): what was multiplied with what in one observed
pass. No names.
* **Names** (:mod:`loratlas.anatomy.names.name_reader`): what owners and leaves are called. No behaviour.

Where both speak they must agree, or the matrix stays unresolved with both opinions. Where only one speaks, the
shapes of the matrices around it must bear it out (:mod:`loratlas.anatomy.names.shape_check`); a matrix that
ran and did not
behave like what it is called is not believed. A short table (:mod:`loratlas.anatomy.compare.overrides`)
settles what was looked up by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loratlas.anatomy.compare.outside_blocks import outside
from loratlas.anatomy.compare.overrides import settled
from loratlas.anatomy.config_sizes import Sizes
from loratlas.anatomy.names.name_reader import propose
from loratlas.anatomy.names.shape_check import bears_out
from loratlas.anatomy.role_table import EXPERT_FAMILIES, OBSERVED_FAMILIES, family_of, observable
from loratlas.anatomy.structure import Matrix
from loratlas.anatomy.trace.evidence import paths
from loratlas.anatomy.trace.flow_records import Flow, MatrixCall
from loratlas.anatomy.trace.observe import observe
from loratlas.anatomy.trace.trace_reader import Opinion, opinions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ELEMENTWISE = frozenset({"mul", "add", "sub", "div"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleDecision:
    """The role of one matrix, or why it has none.

    Args:
        role: or None.
        layout: row layout of a fused role.
        input_group: name of the first module, or raw parameter, that reads the same tensor.
        reason: why there is no role.
        opinions: what each reader said, e.g. ``("names: attn.q", "trace: attn.q")``.
        call: how the matrix was used in the observed pass, if it was.
        flags: what else was seen: ``dead`` (what stands in for its module would not act), ``shared``.
    """

    role: str | None = None
    layout: str | None = None
    input_group: str | None = None
    reason: str = ""
    opinions: tuple[str, ...] = ()
    call: MatrixCall | None = None
    flags: frozenset[str] = frozenset()


def decide(model: PreTrainedModel, matrices: list[Matrix], sizes: Sizes) -> dict[str, RoleDecision]:
    """Give every matrix a role, or a reason for having none.

    Args:
        model: on the meta device.
        matrices: its matrices.
        sizes: of its config.

    Returns:
        Decisions by parameter name.
    """
    flow = observe(model, matrices)
    seen = opinions(flow, matrices, kv_heads=sizes.kv_heads, heads=sizes.heads)
    named = propose(matrices)
    reader = _Reader(model, matrices, flow, seen, named)
    groups: dict[tuple[str | None, tuple[int, ...]], str] = {}
    called = {id(m.parameter) for m in matrices if reader.observed(m) in flow.calls}
    decisions = {}
    for matrix in matrices:
        decision = reader.decision(matrix)
        call = flow.calls.get(reader.observed(matrix))
        if call is not None:
            decision = replace(decision, call=call, flags=reader.flags(matrix, call))
            if not call.lookup:
                # Two parameters of one module, such as stacks of experts, may read different tensors.
                name = matrix.path.removesuffix(".weight")
                group = groups.setdefault((matrix.block, call.reads), name)
                decision = replace(decision, input_group=group)
        elif flow.complete and id(matrix.parameter) in called:
            decision = replace(decision, flags=frozenset({"dead"}))  # only its other names are ever called
        decisions[matrix.path] = decision
    return decisions


class _Reader:
    def __init__(
        self,
        model: PreTrainedModel,
        matrices: list[Matrix],
        flow: Flow,
        seen: dict[str, Opinion],
        named: dict[str, str],
    ) -> None:
        self.model, self.flow, self.seen, self.named = model, flow, seen, named
        self.by_block: dict[str | None, list[Matrix]] = {}
        for matrix in matrices:
            self.by_block.setdefault(matrix.block, []).append(matrix)
        self.first: dict[int, str] = {}
        for matrix in matrices:
            self.first.setdefault(id(matrix.parameter), matrix.path)
        self.outside = outside(model, matrices, flow)
        self.embedding = input_embedding(model)

    def observed(self, matrix: Matrix) -> str:
        """The path under which this matrix was watched: its own, or that of the block built alike."""
        twin = self.flow.twins.get(matrix.block or "")
        if twin is None or matrix.block is None:
            return matrix.path
        return twin + matrix.path[len(matrix.block) :]

    def flags(self, matrix: Matrix, call: MatrixCall) -> frozenset[str]:
        path = self.observed(matrix)
        return frozenset(
            flag
            for flag, true in {
                "dead": not call.alive or path in self.flow.odd or not _plain(matrix, call),
                "shared": path in self.flow.repeated,
            }.items()
            if true
        )

    def decision(self, matrix: Matrix) -> RoleDecision:
        named, opinion = self.named.get(matrix.path), self.seen.get(matrix.path)
        traced = opinion.role if opinion else None
        said = tuple(
            f"{reader}: {role}" for reader, role in (("names", named), ("trace", traced)) if role is not None
        )
        role = settled(self.model.config.model_type, matrix.path)
        if role is not None:
            return RoleDecision(role=role, opinions=(*said, f"table: {role}"), layout=_layout(role, opinion))
        if matrix.kind == "embedding" and matrix.holder is self.embedding:
            return RoleDecision(role="embed", opinions=said)
        if matrix.kind == "parameter" and self._scales(matrix):
            return RoleDecision(role="vector", opinions=said)
        if matrix.block is None and traced is not None and traced.startswith("ffn.") and named != traced:
            traced = None  # outside the blocks a head or a projector may be built like a feed-forward
        if matrix.block is None and not _within(named, traced):
            outer = self.outside.get(matrix.path)
            if outer is None:
                return RoleDecision(
                    reason="stands outside the blocks and fits nothing known there", opinions=said
                )
            return RoleDecision(role=outer, opinions=said)
        if named is not None and traced is not None:
            return self._both(matrix, named, traced, opinion, said)
        if traced is not None and opinion is not None:
            return self._behaviour(matrix, opinion, said)
        if named is not None:
            return self._name(matrix, named, said)
        return RoleDecision(reason=self._silence(matrix), opinions=said)

    def _both(
        self, matrix: Matrix, named: str, traced: str, opinion: Opinion | None, said: tuple[str, ...]
    ) -> RoleDecision:
        role = agreed(named, traced)
        if role is None and traced.startswith("ffn.") and self._with_experts(matrix):
            role = agreed(named, "*" + traced.removeprefix("ffn"))
        if role is None:
            reason = f"behaves as {traced} but is named after {named}"
            return RoleDecision(reason=reason, opinions=said)
        return RoleDecision(role=role, layout=_layout(role, opinion), opinions=said)

    def _behaviour(self, matrix: Matrix, opinion: Opinion, said: tuple[str, ...]) -> RoleDecision:
        if opinion.role.startswith("*") or opinion.role in OBSERVED_FAMILIES:
            return RoleDecision(
                reason=f"behaves as part of {opinion.role}, and no name says which", opinions=said
            )
        return RoleDecision(role=opinion.role, layout=opinion.layout, opinions=said)

    def _name(self, matrix: Matrix, named: str, said: tuple[str, ...]) -> RoleDecision:
        if observable(named):
            if matrix.block is not None and self.observed(matrix) in self.flow.calls and self.flow.complete:
                return RoleDecision(
                    reason="what was observed fits neither attention, feed-forward nor mixer", opinions=said
                )
            if not bears_out(matrix, named, self.by_block[matrix.block], self.named):
                return RoleDecision(
                    reason=f"only its name says {named}: {self._silence(matrix)}", opinions=said
                )
        return RoleDecision(role=named, opinions=said)

    def _with_experts(self, matrix: Matrix) -> bool:
        """Whether a stack of experts in the same block reads what this one, or what leads to it, reads."""
        stacked = {
            self.flow.calls[path].labels
            for other in self.by_block[matrix.block]
            if other.kind == "parameter" and len(other.shape) == 3
            if (path := self.observed(other)) in self.flow.calls
        }
        path = self.observed(matrix)
        feeders = [path, *(one for one in self.flow.calls if one in paths(self.flow.calls[path].labels))]
        return any(self.flow.calls[one].labels in stacked for one in feeders)

    def _scales(self, matrix: Matrix) -> bool:
        """Whether a parameter only ever scales or shifts, element by element: weights of a norm per head."""
        path = self.observed(matrix)
        uses = self.flow.uses.get(path, set())
        return path not in self.flow.calls and bool(uses) and uses <= _ELEMENTWISE

    def _silence(self, matrix: Matrix) -> str:
        if self.observed(matrix) in self.flow.calls:
            return "what was observed says nothing"
        if not self.flow.complete:
            return f"the model did not run on token ids alone ({self.flow.reason})"
        return "it took no part in the forward pass on token ids"


def agreed(named: str, traced: str) -> str | None:
    """The role on which both opinions agree; a family alone agrees with all of its parts.

    >>> agreed("mixer.q", "mixer"), agreed("shared.up", "*.up"), agreed("attn.q", "attn.k")
    ('mixer.q', 'shared.up', None)
    """
    if named == traced or named.startswith(traced + "."):
        return named
    if traced.startswith(named + "."):
        return traced
    if (named, traced) == ("attn.relbias", "embed"):
        return named  # looked up outside the blocks, and added to the scores inside them
    if traced.startswith("*.") and family_of(named) in EXPERT_FAMILIES and named.endswith(traced[1:]):
        return named
    return None


def input_embedding(model: PreTrainedModel) -> object:
    """The table that token ids are looked up in; None where the model has no single one."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _plain(matrix: Matrix, call: MatrixCall) -> bool:
    """Whether a module did with its weight what its class promises: one map from all columns to all rows."""
    return matrix.kind not in ("linear", "conv1d") or matrix.linear_shape == (call.width, call.into)


def _layout(role: str, opinion: Opinion | None) -> str | None:
    return opinion.layout if opinion is not None and role.endswith(opinion.role.lstrip("*")) else None


def _within(named: str | None, traced: str | None) -> bool:
    """Whether a matrix outside the blocks is claimed by a family of theirs: a pooling attention."""
    return any(role is not None and family_of(role) in OBSERVED_FAMILIES for role in (named, traced))
