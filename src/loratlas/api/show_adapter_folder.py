"""`loratlas.show`: an adapter's updates, site by site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.folders import adapter_folder
from loratlas.errors import LoratlasError, ModelError

if TYPE_CHECKING:
    from loratlas.adapters.stored.read_adapter import AdapterFolder
    from loratlas.api.results import Run
    from loratlas.spectra.show_adapter import AdapterSpectrum


def show(adapter: str | Path | Run, *, base: str | None = None, weights: bool = True) -> AdapterSpectrum:
    """Measure the update s·B·A of every site of an adapter.

    Args:
        adapter: a run, its folder, or any PEFT adapter's folder.
        base: where the base lies, if elsewhere than the adapter says.
        weights: also read the base's weights, for the share ‖s·B·A‖ / ‖W‖; without a base that can be loaded here
            there are no shares, and the result says so.

    Returns:
        Norms, effective ranks (exp of the entropy of the singular values' shares) and shares, by site; prints as a
        table, ``plot()`` draws it.

    Raises:
        ModelError: no adapter there, another kind of adapter, broken files, numbers that are not finite; or ``base``
            is not the one that the adapter was trained on.

    >>> import loratlas
    >>> loratlas.show("nowhere")
    Traceback (most recent call last):
    loratlas.errors.ModelError: ...
    """
    from dataclasses import replace

    from loratlas.adapters.stored.read_adapter import read_adapter
    from loratlas.api.results import Run
    from loratlas.sources import model_source
    from loratlas.spectra.show_adapter import spectrum
    from loratlas.spectra.site_labels import base_anatomy

    contents = read_adapter(adapter_folder(adapter.adapter if isinstance(adapter, Run) else Path(adapter)))
    source = model_source(base) if base else contents.base
    anatomy = base_anatomy(source)
    norms, remark = {}, None
    if weights and source is not None:
        try:
            norms = base_norms(contents, source)
        except LoratlasError as error:
            if base:
                raise
            remark = (
                f"No shares of the base's norm: {error.found} ({error.given}); --base MODEL names another."
            )
    shown = spectrum(contents, anatomy=anatomy, base_norms=norms)
    if anatomy is not None:
        _check_shapes(shown, anatomy, source)
    return replace(shown, remarks=(*shown.remarks, remark)) if remark else shown


def base_norms(contents: AdapterFolder, source: str) -> dict[str, float]:
    """‖W‖ of the base's matrices, by parameter's name.

    Raises:
        ModelError: the base cannot be loaded.
    """
    from loratlas.adapters.stored.adapter_task import open_base_config
    from loratlas.models.load import load_model

    _, config = open_base_config(contents, source)
    model: Any = load_model(source, config=config)
    return {
        name: float(p.detach().double().norm())
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.ndim >= 2 and p.is_floating_point()
    }


def _check_shapes(found: AdapterSpectrum, anatomy: Any, source: str | None) -> None:
    """Refuse a base that lacks every site of the adapter."""
    known = {path for site in anatomy.sites for path in (site.path, *site.called_as)}
    if not any(site.path in known for site in found.sites):
        raise ModelError(
            given=f"{found.adapter} on {source}",
            found=f"a base of type {anatomy.model_type} without {found.sites[0].path}, nor any other of its sites",
            instead="the base that it was trained on (--base MODEL)",
        )
