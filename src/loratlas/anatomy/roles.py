"""What each matrix does. Three witnesses must agree: behaviour, shape, and whatever the names say.

* **Behaviour** (:mod:`loratlas.anatomy.trace`) proposes a role; names do where a model cannot be run.
* **Shape** must be the one that this role has in a model of these sizes.
* **Ownership**: the modules around the matrix hold nothing that this role leaves unexplained, and neither
  their names nor the leaf's speak for another role (:mod:`loratlas.anatomy.names`).

Where one of them objects, the matrix stays unresolved, with the objection as its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loratlas.anatomy import names
from loratlas.anatomy.flow import Flow, observe
from loratlas.anatomy.sizes import Sizes
from loratlas.anatomy.structure import Matrix, model_prefix
from loratlas.anatomy.trace import Opinion, opinions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ELEMENTWISE = frozenset({"aten.mul", "aten.add"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The role of one matrix, or why it has none."""

    role: str | None = None
    layout: str | None = None
    input_group: str | None = None
    reason: str = ""
    opinions: tuple[str, ...] = ()


def decide(model: PreTrainedModel, found: list[Matrix], sizes: Sizes) -> dict[str, Decision]:
    """Give every matrix a role, or a reason for having none.

    Args:
        model: on the meta device.
        found: its matrices.
        sizes: of its config.

    Returns:
        Decisions by parameter name.
    """
    flow = observe(
        model,
        {m.module for m in found if m.kind != "parameter"},
        {m.block for m in found if m.block is not None},
        {m.path: m.parameter for m in found if m.kind == "parameter"},
    )
    if flow.complete:
        seen = opinions(flow, kv_heads=sizes.kv_heads, heads=sizes.heads)
    else:
        seen = names.propose(found, model, model_prefix(model), sizes)
    reader = _Reader(model, found, sizes, flow, seen)
    groups = _groups(found, flow)
    decisions = {}
    for matrix in found:
        decision = reader.outside(matrix) if matrix.block is None else reader.inside(matrix)
        decisions[matrix.path] = replace(decision, input_group=groups.get(matrix.module))
    return decisions


class _Reader:
    def __init__(
        self,
        model: PreTrainedModel,
        found: list[Matrix],
        sizes: Sizes,
        flow: Flow,
        proposed: dict[str, Opinion],
    ) -> None:
        self.model, self.sizes, self.flow, self.proposed = model, sizes, flow, proposed
        self.prefix = model_prefix(model)
        self.by_module = {matrix.module: matrix for matrix in found}
        self.by_block: dict[str | None, list[Matrix]] = {}
        for matrix in found:
            self.by_block.setdefault(matrix.block, []).append(matrix)
        base = getattr(model, "base_model", model)
        self.base = next((name for name, module in model.named_modules() if module is base), "")
        self.token_width = int(getattr(model.get_input_embeddings(), "weight").shape[1])  # noqa: B009
        self.head = model.get_output_embeddings()

    def outside(self, matrix: Matrix) -> Decision:
        """Embeddings, the output head, and projections between the embedding's width and the model's."""
        if matrix.holder is self.head:
            return Decision(role="head.lm")
        width = self.token_width
        if matrix.kind == "embedding":
            if matrix.shape[1] in (width, self.sizes.hidden):
                return Decision(role="embed")
            return Decision(reason="an embedding, but of neither the model's nor the tokens' width")
        inner = bool(self.base) and matrix.module.startswith(self.base + ".")
        between = {(width, self.sizes.hidden), (self.sizes.hidden, width)}
        if (
            inner
            and matrix.kind == "linear"
            and width != self.sizes.hidden
            and matrix.linear_shape in between
        ):
            return Decision(role="proj")
        return Decision(
            reason="stands outside the blocks and is no embedding, output head or known projection"
        )

    def inside(self, matrix: Matrix) -> Decision:
        """Attention and feed-forward matrices of a block."""
        said = [f"names: {one}" for one in sorted(names.family(matrix, self.model, self.prefix))]
        if self._scales(matrix):
            return Decision(role="vector")
        opinion = self.proposed.get(matrix.module)
        if opinion is None:
            return Decision(reason=self._silence(matrix), opinions=tuple(said))
        if self.flow.complete:
            said.append(f"trace: {opinion.role}")
        objection = next(
            (text for module in sorted(opinion.together) if (text := self._objection(module, opinion))), None
        )
        if objection is not None:
            return Decision(reason=objection, opinions=tuple(said))
        return Decision(role=opinion.role, layout=opinion.layout)

    def _scales(self, matrix: Matrix) -> bool:
        """Whether a parameter only ever scales or shifts, element by element: weights of a norm per head."""
        uses = self.flow.uses.get(matrix.path, set())
        return self.flow.complete and len(matrix.shape) == 2 and bool(uses) and uses <= _ELEMENTWISE

    def _silence(self, matrix: Matrix) -> str:
        if not self.flow.complete:
            return f"the model did not run on token ids alone ({self.flow.reason})"
        if matrix.kind in ("parameter", "conv"):
            return f"a {'convolution' if matrix.kind == 'conv' else 'raw or stacked parameter'} in a block"
        if matrix.module not in self.flow.order:
            return "its module was not called in the forward pass"
        return "what was observed fits neither softmax attention nor a feed-forward"

    def _objection(self, module: str, opinion: Opinion) -> str | None:
        """Why this module of an attention or feed-forward cannot have the role that the trace gives it."""
        matrix, role = self.by_module[module], self.proposed[module].role
        kind, _, part = role.partition(".")
        if matrix.block is None or matrix.kind not in ("linear", "conv1d"):
            return f"{module} is not a linear map in a block"
        if not self._shape_fits(matrix, role, opinion.together):
            return f"{module} has shape {matrix.linear_shape}, which {role} has not in this model"
        voted = names.family(matrix, self.model, self.prefix)
        if voted and voted != {kind}:
            return f"{module} behaves as {role} but is named after {', '.join(sorted(voted))}"
        named = names.part(matrix)
        if named is not None and named != part:
            return f"{module} behaves as {role} but is named after {named}"
        return self._unexplained(matrix.block, opinion)

    def _unexplained(self, block: str, opinion: Opinion) -> str | None:
        """A matrix beside these that the trace does not explain: an expert, a router, a compressed key."""
        modules = sorted(opinion.together)
        first, last = (name.split(".") for name in (modules[0], modules[-1]))
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        ancestor = ".".join(first[:same])
        if opinion.role.startswith("ffn") and ancestor != block:
            # An expert is a feed-forward too: look at all that stands in the same part of the block.
            ancestor = ".".join(ancestor.split(".")[: block.count(".") + 2])
        for other in self.by_block[block]:
            inside = other.module.startswith(ancestor + ".")
            if inside and other.module not in self.proposed and not self._scales(other):
                return f"{other.path} beside it is not explained"
        return None

    def _shape_fits(self, matrix: Matrix, role: str, together: frozenset[str]) -> bool:
        sizes = self.sizes
        inner = next(
            (self.by_module[m].linear_shape[1] for m in together if self.proposed[m].role == "ffn.down"), 0
        )
        wanted = {
            "attn.q": (sizes.q_width, sizes.hidden),
            "attn.k": (sizes.kv_width, sizes.hidden),
            "attn.v": (sizes.kv_width, sizes.hidden),
            "attn.qkv": (sizes.q_width + 2 * sizes.kv_width, sizes.hidden),
            "attn.o": (sizes.hidden, sizes.q_width),
            "ffn.up": (inner, sizes.hidden),
            "ffn.gate": (inner, sizes.hidden),
            "ffn.gate_up": (2 * inner, sizes.hidden),
            "ffn.down": (sizes.hidden, inner),
        }
        return matrix.linear_shape == wanted.get(role)


def _groups(found: list[Matrix], flow: Flow) -> dict[str, str]:
    """Module → name of the first module that reads the same tensor."""
    first: dict[tuple[int, ...], str] = {}
    return {
        matrix.module: first.setdefault(flow.reads[matrix.module], matrix.module)
        for matrix in found
        if matrix.module in flow.reads and matrix.kind != "embedding"
    }
