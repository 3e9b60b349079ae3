"""Variants of LoRA that a plan may ask for, and where they do not exist.

DoRA (Liu et al. 2024, arXiv:2402.09353) trains a length for each row of an adapted matrix, and its direction by the
low-rank change; PEFT's layers compute it:

    y = m ∘ (W + s·B A) x / ‖W + s·B A‖ by rows,   m starting as ‖W‖ by rows
"""

from __future__ import annotations

from collections.abc import Iterable

from loratlas.anatomy.sites import Site
from loratlas.errors import SettingsError


def refuse_stacks(sites: Iterable[Site]) -> None:
    """Refuse DoRA where PEFT has none.

    Raises:
        SettingsError: a site is a stack of experts.
    """
    for site in sites:
        if site.kind == "experts":
            raise SettingsError(
                given=f"DoRA at {site.path}",
                found="experts in one stack, which PEFT adapts without DoRA",
                instead="no --dora, or a placement without these experts",
            )


def variants_in_words(*, rslora: bool, dora: bool) -> list[str]:
    """A sentence for each variant.

    >>> variants_in_words(rslora=True, dora=False)
    ['rsLoRA: adapters are scaled by α/√r.']
    """
    sentences = {
        "rsLoRA: adapters are scaled by α/√r.": rslora,
        "DoRA: every row of an adapted matrix trains its length as well, by PEFT's own layers.": dora,
    }
    return [sentence for sentence, asked in sentences.items() if asked]
