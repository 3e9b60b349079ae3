"""Against a key that others wrote: a role may be missing, but none may be wrong."""

from __future__ import annotations

import json
import re

import pytest
from transformers import CONFIG_MAPPING

from loratlas.anatomy.read import read
from loratlas.models.meta import meta_model

TYPES = (
    "codegen",
    "falcon",
    "electra",
    "albert",
    "modernbert",
    "xlnet",
    "t5",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "zamba2",
    "qwen3_next",
)
# Types that this reader is expected to read in full already.
WHOLE = ("codegen", "falcon")


def _pattern(text: str) -> re.Pattern[str]:
    """`*` is any integer, `{a,b}` exactly these."""
    pieces = re.split(r"(\*|\{[\d,]+\})", text)
    known = {"*": r"\d+"}
    return re.compile(
        "".join(
            known.get(piece)
            or (f"(?:{piece[1:-1].replace(',', '|')})" if piece[:1] == "{" else re.escape(piece))
            for piece in pieces
        )
    )


@pytest.mark.parametrize("model_type", TYPES)
def test_no_role_is_wrong(model_type, shared):
    key = json.loads(shared("zoo/answer_key_dev.json").read_text())
    assert set(TYPES) == {name for name in key if not name.startswith("_")}
    entry = key[model_type]
    patterns = [
        (_pattern(text), role) for role, texts in entry.items() if not role.startswith("_") for text in texts
    ]
    config = CONFIG_MAPPING[model_type](**entry["_config"])
    anatomy = read(config)
    wrong = [
        (site.path, site.role, roles)
        for site in anatomy
        if [site.role] != (roles := [role for pattern, role in patterns if pattern.fullmatch(site.path)])
    ]
    assert wrong == []
    listed = {site.path for site in anatomy} | {item.path for item in anatomy.unresolved}
    every = meta_model(config).named_parameters(remove_duplicate=False)
    assert listed == {name for name, value in every if value.ndim >= 2}
    if model_type in WHOLE:
        assert anatomy.unresolved == ()
    assert all(item.reason for item in anatomy.unresolved)
