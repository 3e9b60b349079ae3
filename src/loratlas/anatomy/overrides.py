"""What neither reader can settle, looked up in the models' code by hand. As short as it can be.

Every entry: the model type, a pattern that the whole parameter name must match, the role, and the reason.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Override(NamedTuple):
    """One settled question."""

    model_type: str
    pattern: str
    role: str
    reason: str


OVERRIDES: tuple[Override, ...] = (
    Override(
        "longcat_flash",
        r"model\.layers\.\d+\.mlps\.\d\.(gate|up|down)_proj\.weight",
        r"ffn.\1",
        "the first of two dense feed-forwards reads what the router reads, like a shared expert, but its "
        "result goes on to the second attention: it is the model's own feed-forward",
    ),
    Override(
        "xmod",
        r"roberta\.encoder\.layer\.\d+\.output\.adapter_modules\.\w+\.dense[12]\.weight",
        "adapter",
        "an adapter per language is a small feed-forward on the stream; its width does not tell it apart",
    ),
)


@lru_cache(maxsize=256)
def _for(model_type: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(one.pattern), one.role) for one in OVERRIDES if one.model_type == model_type)


def settled(model_type: str, path: str) -> str | None:
    """The role that the table gives this parameter, if it has an entry."""
    for pattern, role in _for(model_type):
        match = pattern.fullmatch(path)
        if match is not None:
            return match.expand(role)
    return None
