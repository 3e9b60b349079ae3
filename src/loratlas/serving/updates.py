"""An adapter as the changes that it makes: per site two factors with the scale folded in, ΔW = B A.

This is the form between PEFT's and every engine's. An adapter that took its first factors out of the base (PiSSA,
OLoRA) becomes the ordinary one of twice the rank first; DoRA keeps its magnitudes beside the factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.read_adapter import AdapterFolder
from loratlas.adapters.stored.safetensors_header import TensorEntry
from loratlas.errors import ModelError
from loratlas.serving.adapter_header import EMBEDDING, EXPERTS, LINEAR, AdapterHeader, FactorPair
from loratlas.serving.base_outline import BaseOutline

if TYPE_CHECKING:
    import torch

MAGNITUDE = ".lora_magnitude_vector"


@dataclass(frozen=True, kw_only=True)
class SiteUpdate:
    """The change of one matrix, or of each matrix of a stack.

    Args:
        module: name in the bare model.
        parameter: of a stack of experts; empty else.
        kind: ``linear``, ``embedding`` or ``experts``.
        A: [r, d_in], of a stack [experts, r, d_in]; float32.
        B: [d_out, r], of a stack [experts, d_out, r], with PEFT's scale in it.
        magnitude: DoRA's, [d_out]; None without DoRA.
    """

    module: str
    parameter: str = ""
    kind: str = LINEAR
    A: torch.Tensor
    B: torch.Tensor
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Of each matrix."""
        return int(self.A.shape[-2])

    @property
    def leaf(self) -> str:
        """Last word of the module's name."""
        return self.module.rpartition(".")[2]

    @property
    def parameters(self) -> int:
        """Numbers in both factors."""
        return self.A.numel() + self.B.numel()

    def delta(self) -> torch.Tensor:
        """ΔW: [d_out, d_in], of a stack [experts, d_out, d_in]; of an embedding [tokens, width]."""
        product = self.B @ self.A
        return product.transpose(-1, -2) if self.kind == EMBEDDING else product

    def padded(self, rank: int) -> SiteUpdate:
        """The same change with factors of a larger rank: rows of A and columns of B that are zero."""
        from torch.nn.functional import pad

        more = rank - self.rank
        return replace(self, A=pad(self.A, (0, 0, 0, more)), B=pad(self.B, (0, more)))


@dataclass(frozen=True, kw_only=True)
class Updates:
    """All changes of an adapter.

    Args:
        sites: in the order of the file.
        whole: tensors that are no factors, by their names in the file: heads and embeddings trained whole, biases.
        config: ``adapter_config.json``.
        remarks: what was converted, in sentences.
    """

    sites: tuple[SiteUpdate, ...]
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)
    config: Mapping[str, Any]
    remarks: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest."""
        return max(site.rank for site in self.sites)

    @property
    def parameters(self) -> int:
        """Numbers in all factors."""
        return sum(site.parameters for site in self.sites)

    @property
    def dora(self) -> bool:
        """Whether magnitudes go with the factors."""
        return any(site.magnitude is not None for site in self.sites)


def read_updates(contents: AdapterFolder, source: str) -> Updates:
    """Read an adapter as changes of its base.

    Args:
        contents: of its folder, as :func:`loratlas.adapters.stored.read_adapter.read_adapter` returns it.
        source: its base; loaded only where the adapter took its first factors out of it.

    Returns:
        Changes of the base as it was published.

    Raises:
        ModelError: see `loratlas.adapters.stored.base_changes.initial_factors`; a NaN among the numbers; an adapter
            without a factor.
    """
    tensors: Mapping[str, torch.Tensor] = contents.read()
    config: dict[str, Any] = dict(contents.config)
    remarks: tuple[str, ...] = ()
    if contents.changed_base:
        tensors, config = _on_published_base(contents, tensors, source)
        remarks = (
            f"It was started by {contents.changed_base}, which takes a part out of the base: written as the ordinary "
            "adapter of twice the rank, for the base as it is published.",
        )
    return updates_of(
        tensors, config, given=str(contents.folder), base=BaseOutline.read(source), remarks=remarks
    )


def updates_of(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    given: str,
    base: BaseOutline | None = None,
    remarks: tuple[str, ...] = (),
) -> Updates:
    """Tensors by PEFT's names, as changes.

    Args:
        tensors, config: of an adapter on a base that stays as it is.
        given: what it is called in errors.
        base: its outline.
        remarks: handed on.
    """
    from pathlib import Path

    entries = {name: TensorEntry(dtype="F32", shape=tuple(t.shape)) for name, t in tensors.items()}
    header = AdapterHeader(folder=Path(given), config=config, tensors=entries, base=base)
    sites = tuple(_site(pair, tensors) for pair in header.pairs)
    if not sites:
        raise ModelError(
            given=given,
            found="an adapter without a factor in it",
            instead="an adapter that PEFT's LoRA wrote",
        )
    whole = {name: tensors[name] for name in header.others if MAGNITUDE not in name}
    return Updates(sites=sites, whole=whole, config=config, remarks=remarks)


def _site(pair: FactorPair, tensors: Mapping[str, torch.Tensor]) -> SiteUpdate:
    A, B = tensors[pair.a].float(), tensors[pair.b].float() * pair.scale
    if pair.kind == EXPERTS:
        # PEFT's rows run over experts first, then ranks; its columns over ranks first, then experts.
        A = A.reshape(pair.experts, pair.rank, pair.d_in)
        B = B.reshape(pair.d_out, pair.rank, pair.experts).permute(2, 0, 1).contiguous()
    stem = pair.a.rpartition(".lora_")[0]
    match = next(
        (tensors[n] for n in (f"{stem}{MAGNITUDE}", f"{stem}{MAGNITUDE}.weight") if n in tensors), None
    )
    return SiteUpdate(
        module=pair.module,
        parameter=pair.parameter,
        kind=pair.kind,
        A=A,
        B=B,
        magnitude=None if match is None else match.float().flatten(),
    )


def _on_published_base(
    contents: AdapterFolder, tensors: Mapping[str, torch.Tensor], source: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from loratlas.adapters.stored.adapter_task import open_base_config
    from loratlas.adapters.stored.base_changes import REMAINDER, double_factors, initial_factors
    from loratlas.adapters.stored.lora_options import lora_config_of
    from loratlas.models.load import load_model

    _, config = open_base_config(contents, source)
    base = load_model(source, config=config, dtype="float32", base_dropout=True)
    lora = lora_config_of(contents.config, contents.folder)
    # An engine serves the published base: what is left of a matrix has no place there.
    first = initial_factors(base, contents, lora, remainders=False)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(REMAINDER)}
    doubled, changed = double_factors(kept, first, lora)
    table = {
        **contents.config,
        "r": changed.r,
        "lora_alpha": changed.lora_alpha,
        "rank_pattern": changed.rank_pattern,
        "alpha_pattern": changed.alpha_pattern,
        "init_lora_weights": True,
    }
    return doubled, table
