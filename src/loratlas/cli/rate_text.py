"""What may stand after ``--lr`` and ``--site-rates``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import typer

from loratlas.cli.options import TRAIN
from loratlas.errors import SettingsError


class SiteRates(StrEnum):
    """Whether sites learn at rates of their own."""

    equal = "equal"
    curvature = "curvature"


LearningRate = Annotated[
    str,
    typer.Option(
        "--lr",
        metavar="RATE",
        help="Highest learning rate; several, as 0.002,0.004, or auto: tried in the first steps, at most a tenth more.",
        rich_help_panel=TRAIN,
    ),
]


def rates_of(text: str) -> float | Literal["auto"] | tuple[float, ...]:
    """``"auto"``, ``"0.01"`` or ``"0.002,0.003"`` → what `loratlas.training.settings.Settings` takes.

    Raises:
        SettingsError: something else.

    >>> rates_of("auto"), rates_of("0.01"), rates_of("0.002, 0.003")
    ('auto', 0.01, (0.002, 0.003))
    """
    if text.strip() == "auto":
        return "auto"
    try:
        rates = tuple([float(part) for part in text.split(",")])
    except ValueError:
        raise SettingsError(
            given=f"--lr {text}", found="neither rates nor auto", instead="--lr 0.005, or --lr auto"
        ) from None
    return rates[0] if len(rates) == 1 else rates
