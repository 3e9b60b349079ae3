"""Lists of module names as PEFT reads them, for arms that were published that way.

PEFT's `target_modules=["c_attn", "c_proj"]` adapts every module whose name is one of these or ends in one behind a dot.
On GPT-2 `c_proj` is the output of attention and of the feed-forward block: a list that is called "attention" holds a
feed-forward matrix. The language refuses such a suffix, except in `legacy:"…"`, which reads the list that way and says
what it holds.

>>> from transformers import GPT2Config
>>> from loratlas.placement.plan import place
>>> print(*place(GPT2Config(n_layer=2, n_embd=64, n_head=4), 'legacy:"c_attn,c_proj":16').warnings, sep="\\n")
legacy:"c_attn,c_proj" holds what PEFT's list does: c_attn: 2 attn.qkv; c_proj: 2 attn.o, 2 ffn.down
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loratlas.anatomy.sites import Site
from loratlas.placement.module_names import ends
from loratlas.placement.terms import Placement


def names_of(word: str) -> list[str]:
    """The names of a list, without spaces.

    >>> names_of("c_attn, c_proj")
    ['c_attn', 'c_proj']
    """
    return [name for part in word.split(",") if (name := part.strip())]


def held_by_lists(placement: Placement, sites: Sequence[Site]) -> list[str]:
    """One sentence for each list of a placement: how many matrices of which roles each of its names holds.

    Args:
        placement: as parsed.
        sites: of the plan that it became.
    """
    lists = [name for term in placement.terms if term.adds for name in term.names if name.kind == "legacy"]
    return [
        f"{name.text} holds what PEFT's list does: "
        + "; ".join(
            f"{word}: {_roles(site for site in sites if ends(word)(site.module))}"
            for word in names_of(name.word)
        )
        for name in lists
    ]


def _roles(sites: Iterable[Site]) -> str:
    counts: dict[str, int] = {}
    for site in sites:
        role = site.role if site.scope == "decoder" else f"{site.scope}.{site.role}"
        counts[role] = counts.get(role, 0) + 1
    return ", ".join(f"{count} {role}" for role, count in counts.items()) or "nothing"
