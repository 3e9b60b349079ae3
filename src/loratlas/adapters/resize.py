"""The rank of any site changed in a live `PeftModel`, in both directions, 0 included.

    more directions     the old factors and the scale stay as they are, bit for bit; new columns of B are 0, so that no
                        output changes
    fewer               the closest adapter of that rank (`loratlas.adapters.rank_change.closest`)
    none                the plain layer of the base stands there again; parameters and gradients are freed
    some, from none     PEFT makes a layer of its own, with the scale that the others have

The scale α/r (with rsLoRA α/√r) of a site never changes: α follows the rank. PEFT's config is kept in step, so that
``save_pretrained`` writes an ordinary adapter at any time.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratlas.adapters.adam_moments import BETAS, Moments, lengthened, rotated
from loratlas.adapters.layers.lean_lora import is_lean, regroup
from loratlas.adapters.patterns import anchored, default_and_patterns
from loratlas.adapters.peft_check import expected_warnings, some
from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.rank_change import closest, new_directions
from loratlas.adapters.resizable import check_resizable, module_of, refused
from loratlas.adapters.tied_weights import align, copies, share
from loratlas.modeling import unwrap

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class RankChange:
    """What became of one site.

    Args:
        path: as it was given.
        module: the module's name in the bare model.
        before, after: rank.
        lost: share of ‖ΔW‖² that went with the directions that were dropped, 0 to 1.
    """

    path: str
    module: str
    before: int
    after: int
    lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """What `resize` did.

    Args:
        changes: sites whose rank is another now, in the order of the request.
        replaced: name → (old, new) parameter, for whoever holds them (an optimizer); None where there was none before,
            or there is none now.
        moments: name → Adam's moments of the new parameters, where moments of the old ones were given.
    """

    changes: tuple[RankChange, ...]
    replaced: dict[str, tuple[torch.nn.Parameter | None, torch.nn.Parameter | None]]
    moments: dict[str, Moments]


def ranks_of(model: Any) -> dict[str, int]:
    """Module's name in the bare model → rank of the adapter there, of every adapted layer."""
    return {name: max(layer.r.values()) for name, layer in adapted(model).items() if layer.r}


def resize(
    model: Any,
    ranks: Mapping[str, int],
    *,
    directions: Mapping[str, torch.Tensor] | None = None,
    moments: Mapping[str, Moments] | None = None,
    steps: int = 0,
    betas: Sequence[float] = BETAS,
    seed: int = 0,
) -> Resized:
    """Give sites other ranks, in place.

    Args:
        model: a `PeftModel` with one LoRA adapter, between two steps.
        ranks: parameter's path, or module's name, in the bare model → rank, 0 for none; sites that are left out keep
            theirs.
        directions: path → [m, d_in], directions of the input that growing should begin with, best first: right
            singular vectors of the weight's gradient, as GoRA (arXiv:2502.12171) begins from gradients. What the
            adapter spans already is taken out of them. Without them, or beyond them, new rows of A are random as PEFT
            draws them.
        moments: parameter's name → Adam's moments, which are carried into the new basis. Float32 ones, of the
            parameters as they are.
        steps: that Adam has taken; the age of moments that do not say their own.
        betas: of Adam.
        seed: of random directions; the same seed, site and ranks draw the same.

    Returns:
        What changed.

    Raises:
        AttachError: a site that is not there or cannot change; a model whose adapter is merged, of another kind than
            LoRA (DoRA), one of several, or would have no site left. Nothing was changed then.

    Example:
        ``resize(model, {"model.layers.0.mlp.down_proj": 0, "model.layers.5.self_attn.v_proj": 8})``
    """
    name = check_resizable(model)
    wanted = {path: (module_of(model, path), rank) for path, rank in ranks.items()}
    _check(model, wanted)
    lean = is_lean(model)
    work = _Resizing(model, name, moments or {}, steps, betas, seed)
    changes = []
    for path, (module, rank) in wanted.items():
        change = work.change(path, module, rank, (directions or {}).get(path))
        if change is not None:
            changes.append(change)
    if changes:
        if copies(model):
            align(model, name)
            share(model, name)
        write_ranks(model, name)
        if lean:
            regroup(model)
    return Resized(changes=tuple(changes), replaced=work.replaced, moments=work.moments)


def write_ranks(model: Any, adapter_name: str) -> None:
    """Write into PEFT's config what the live layers have: which modules, their ranks and alphas."""
    config = model.peft_config[adapter_name]
    layers = adapted(model)
    whole = {name for name, layer in layers.items() if hasattr(layer, "parameter_name")}
    modules = [name for name in layers if name not in whole]
    # An expression where PEFT takes one: a list is cut down to suffixes.
    listed = not isinstance(config.target_modules, str) and bool(whole)
    config.target_modules = modules if listed or not modules else anchored(modules)
    config.r, config.rank_pattern = default_and_patterns(
        [(name, layer.r[adapter_name]) for name, layer in layers.items()]
    )
    config.lora_alpha, config.alpha_pattern = default_and_patterns(
        [(name, layer.lora_alpha[adapter_name]) for name, layer in layers.items()]
    )
    config.layers_to_transform = config.layers_pattern = None
    model.base_model.targeted_module_names[:] = modules


def _check(model: Any, wanted: Mapping[str, tuple[str, int]]) -> None:
    """Refuse what cannot be done, before anything is."""
    now = ranks_of(model)
    seen: dict[str, str] = {}
    for path, (module, rank) in wanted.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise refused(f"rank {rank!r} at {path}", "not a count", "0, 1, 2, …")
        if module in seen:
            raise refused(f"{path} and {seen[module]}", "one site under two names", "one of them")
        seen[module] = path
        layer = unwrap(model).get_submodule(module)
        weight = getattr(
            layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer, "weight", None
        )
        most = min(_sizes(layer))
        if rank > most and rank > now.get(module, 0):
            lacking = (
                f"a matrix of {' × '.join(map(str, reversed(_sizes(layer))))}"
                if weight is not None
                else module
            )
            raise refused(
                f"rank {rank} at {path}", f"{lacking}, whose rank is {most} at most", f"at most {most}"
            )
    left = {**now, **dict(wanted.values())}
    if not any(left.values()):
        raise refused(
            f"rank 0 at {some(list(wanted))}",
            "no adapted site would be left, and a PeftModel needs one",
            "rank 1 at one of them",
        )


def _sizes(layer: Any) -> tuple[int, int]:
    """(d_in, d_out) of a linear layer, adapted or not."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    d_in, d_out = layer.weight.shape  # a Conv1D
    return int(d_in), int(d_out)


class _Resizing:
    """One call of `resize`: what it has replaced so far."""

    def __init__(
        self,
        model: Any,
        adapter_name: str,
        moments: Mapping[str, Moments],
        steps: int,
        betas: Sequence[float],
        seed: int,
    ) -> None:
        self.model, self.name, self.given = model, adapter_name, moments
        self.steps, self.betas, self.seed = steps, betas, seed
        self.moments: dict[str, Moments] = {}
        self.replaced: dict[str, tuple[Any, Any]] = {}
        self._root = next(n for n, module in model.named_modules() if module is unwrap(model))

    def change(self, path: str, module: str, rank: int, proposed: torch.Tensor | None) -> RankChange | None:
        """Give one site a rank; None where it has it."""
        layer = unwrap(self.model).get_submodule(module)
        before = layer.r[self.name] if hasattr(layer, "lora_A") else 0
        if rank == before:
            return None
        lost = 0.0
        twins = _twins(self.model, module)
        if rank == 0:
            lost = 1.0 if bool(layer.lora_B[self.name].weight.detach().any()) else 0.0
            for twin in twins:
                self._remove(twin)
        elif before == 0:
            for twin in twins:
                self._insert(twin, rank, proposed)
        else:
            lost = self._reshape(module, layer, rank, proposed)
            for twin in twins[1:]:
                self._follow(twin, layer, rank)
        return RankChange(path=path, module=module, before=before, after=rank, lost=lost)

    def _factor_name(self, module: str, factor: str) -> str:
        return ".".join(word for word in (self._root, module, factor, self.name, "weight") if word)

    def _seed(self, module: str, rank: int) -> int:
        return zlib.crc32(f"{self.seed} {module} {rank}".encode())

    def _remove(self, module: str) -> None:
        parent, _, child = module.rpartition(".")
        owner = unwrap(self.model).get_submodule(parent)
        layer = getattr(owner, child)
        for kind in ("lora_A", "lora_B"):
            old = getattr(layer, kind)[self.name].weight
            self.replaced[self._factor_name(module, kind)] = (old, None)
        setattr(owner, child, layer.base_layer)

    def _insert(self, module: str, rank: int, proposed: torch.Tensor | None) -> None:
        import torch

        tuner, config = self.model.base_model, copy.copy(self.model.peft_config[self.name])
        scale, dtype, learns = _common(self.model, self.name)
        config.r, config.rank_pattern, config.alpha_pattern = rank, {}, {}
        config.lora_alpha = _alpha(scale, rank, rslora=bool(config.use_rslora))
        config.init_lora_weights = True
        parent, _, child = module.rpartition(".")
        owner = unwrap(self.model).get_submodule(parent)
        target = getattr(owner, child)
        with torch.random.fork_rng(devices=[]), expected_warnings():
            tuner._create_and_replace(config, self.name, target, child, owner, current_key=module)
        layer = getattr(owner, child)
        layer.train(target.training)
        layer.scaling[self.name] = scale
        d_in, _ = _sizes(layer)
        A = new_directions(None, rank, d_in=d_in, seed=self._seed(module, 0), proposed=proposed)
        for kind, value in (("lora_A", A), ("lora_B", None)):
            factor = getattr(layer, kind)[self.name]
            kept = torch.zeros_like(factor.weight) if value is None else value.to(factor.weight.device)
            factor.weight = torch.nn.Parameter(kept.to(dtype), requires_grad=learns)
            self.replaced[self._factor_name(module, kind)] = (None, factor.weight)

    def _reshape(self, module: str, layer: Any, rank: int, proposed: torch.Tensor | None) -> float:
        """Another rank at a site that has one; the share of ‖ΔW‖² that is lost."""
        import torch

        a, b = layer.lora_A[self.name].weight, layer.lora_B[self.name].weight
        A, B, before = a.detach(), b.detach(), layer.r[self.name]
        names = {kind: self._factor_name(module, kind) for kind in ("lora_A", "lora_B")}
        given = {kind: self.given.get(name) for kind, name in names.items()}
        lost = 0.0
        if rank < before:
            cut = closest(A, B, rank)
            lost = cut.lost
            values = {"lora_A": cut.A, "lora_B": cut.B}
            turns = {"lora_A": (cut.turn_b, 0), "lora_B": (cut.turn_a, 1)}
            carried = {
                kind: rotated(own, turns[kind][0], dim=turns[kind][1], steps=self.steps, betas=self.betas)
                if own is not None
                else None
                for kind, own in given.items()
            }
        else:
            more = rank - before
            seed = self._seed(module, before)
            rows = new_directions(A, more, d_in=A.shape[1], seed=seed, proposed=proposed)
            values = {
                "lora_A": torch.cat([A, rows.to(A)]),
                "lora_B": torch.cat([B, B.new_zeros(B.shape[0], more)], 1),
            }
            carried = {
                kind: lengthened(own, values[kind].shape, dim=0 if kind == "lora_A" else 1, steps=self.steps)
                for kind, own in given.items()
            }
        for kind, old in (("lora_A", a), ("lora_B", b)):
            new = torch.nn.Parameter(values[kind].contiguous(), requires_grad=old.requires_grad)
            _put(layer, kind, self.name, new)
            self.replaced[names[kind]] = (old, new)
            own = carried[kind]
            if own is not None:
                self.moments[names[kind]] = own
        self._set_rank(layer, rank)
        return lost

    def _follow(self, module: str, first: Any, rank: int) -> None:
        """Let another name of the same matrix use what the first one has now."""
        layer = unwrap(self.model).get_submodule(module)
        for kind in ("lora_A", "lora_B"):
            getattr(layer, kind)[self.name] = getattr(first, kind)[self.name]
        self._set_rank(layer, rank)

    def _set_rank(self, layer: Any, rank: int) -> None:
        layer.r[self.name] = rank
        scale = layer.scaling[self.name]
        layer.lora_alpha[self.name] = _alpha(scale, rank, rslora=bool(layer.use_rslora[self.name]))


def _put(layer: Any, kind: str, name: str, weight: torch.nn.Parameter) -> None:
    """A factor's new weight, in the module that is there."""
    factor = getattr(layer, kind)[name]
    factor.weight = weight
    factor.out_features, factor.in_features = weight.shape


def _twins(model: Any, module: str) -> list[str]:
    """All names of the matrix that a module has, the module's own first; an embedding's table is another map."""
    import torch

    base = unwrap(model)
    layer = base.get_submodule(module)
    own = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    same = [module]
    for name, other in base.named_modules():
        plain = other.get_base_layer() if hasattr(other, "get_base_layer") else other
        if (
            name != module
            and not name.endswith(".base_layer")
            and getattr(plain, "weight", None) is own.weight
            and not isinstance(plain, torch.nn.Embedding)
        ):
            same.append(name)
    return same


def _common(model: Any, name: str) -> tuple[float, torch.dtype, bool]:
    """(scale that most adapted layers have, type of the factors, whether they learn)."""
    layers = [layer for layer in adapted(model).values() if name in layer.lora_A]
    scales = [float(layer.scaling[name]) for layer in layers]
    weight = layers[0].lora_A[name].weight
    return max(scales, key=scales.count), weight.dtype, weight.requires_grad


def _alpha(scale: float, rank: int, *, rslora: bool) -> float | int:
    """α with which PEFT computes this very scale at a rank."""
    root = math.sqrt(rank) if rslora else rank
    alpha = scale * root
    for _ in range(4):
        if alpha / root == scale:
            break
        alpha = math.nextafter(alpha, math.inf if alpha / root < scale else -math.inf)
    return int(alpha) if float(alpha).is_integer() else alpha
