"""What may stand after ``--lr``."""

from __future__ import annotations

from typing import Literal

from loratlas.errors import SettingsError


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
