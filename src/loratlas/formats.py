"""Numbers as people read them: one writer for the terminal, the page and the sentences in JSON.

>>> loss(3.57912), signed(-0.0219), percent(0.975), count(1234567), duration(3720), data_size(3 * 2**20)
('3.579', '−0.022', '97.5 %', '1,234,567', '1 h 02 min', '3.0 MiB')
"""

from __future__ import annotations

import math

MINUS = "−"


def count(number: float) -> str:
    """A whole number with commas."""
    return f"{round(number):,}"


def loss(value: float) -> str:
    """Nats with three decimals, or two significant digits where that would print only zeros.

    >>> loss(0.01234), loss(0.00012), loss(0.0)
    ('0.012', '0.00012', '0.000')
    """
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2g}"


def signed(value: float) -> str:
    """As :func:`loss`, with a sign."""
    return _sign(value) + loss(abs(value))


def whole(value: float) -> str:
    """A whole number with a sign, 0 without.

    >>> whole(-1.2), whole(3.0), whole(0.2)
    ('−1', '+3', '0')
    """
    rounded = round(value)
    return f"{_sign(rounded)}{abs(rounded):,}" if rounded else "0"


def perplexity(value: float) -> str:
    """Two decimals, or a power of ten where it is a million or more."""
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def percent(share: float) -> str:
    """A share in per cent, without needless digits.

    >>> percent(0.95), percent(0.975), percent(1 - 0.05 / 3)
    ('95 %', '97.5 %', '98.33 %')
    """
    return f"{round(100 * share, 2):g} %"


def points(share: float) -> str:
    """A difference of shares in percentage points, with a sign.

    >>> points(-0.125)
    '−12.5 points'
    """
    return f"{_sign(share)}{round(abs(100 * share), 2):g} points"


def probability(p: float) -> str:
    """A p value.

    >>> probability(0.0412), probability(0.00041), probability(1e-9)
    ('0.041', '0.0004', '< 1e-4')
    """
    return f"{p:.3f}" if p >= 0.001 else f"{p:.4f}" if p >= 0.0001 else "< 1e-4"


def magnitude(number: float) -> str:
    """Three significant digits with a word.

    >>> magnitude(8_392_960), magnitude(512)
    ('8.39 million', '512')
    """
    for word, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{float(f'{number / size:.3g}'):g} {word}"
    return f"{number:g}"


def data_size(number: float) -> str:
    """Bytes in binary units, one decimal below a hundred of them.

    >>> data_size(512), data_size(327_155_712)
    ('512 B', '312 MiB')
    """
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}" if number < 100 * size else f"{number / size:,.0f} {unit}"
    return f"{number:,.0f} B"


def seconds(value: float) -> str:
    """A short measured time, as of one step.

    >>> seconds(0.2144), seconds(1.5)
    ('214 ms', '1.50 s')
    """
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def duration(seconds: float) -> str:
    """A long time, as of a run, or what is left of one.

    >>> duration(9), duration(75), duration(3720)
    ('9 s', '1 min 15 s', '1 h 02 min')
    """
    whole = round(seconds) if math.isfinite(seconds) else 0
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _sign(value: float) -> str:
    return MINUS if value < 0 else "+"
