"""Write docs/zoo.md and docs/zoo.json: every model type, its sites by role, and what the readers say of them.

    python tools/zoo.py

Each type is read small and without weights, tried out small and with random weights, and read once more with every
class, attribute and parameter called at random, so that nothing but the trace can speak.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import zoo  # noqa: E402
from tests.renaming import renamed_decisions  # noqa: E402

from loratlas.anatomy.role_table import FAMILIES, TEXT_SCOPES  # noqa: E402

PAGE, DATA = ROOT / "docs" / "zoo.md", ROOT / "docs" / "zoo.json"
_MAPPINGS = (
    ("causal", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    ("masked", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    ("seq2seq", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    ("classifier", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
)


def main() -> None:
    """Read, try and rename everything, then write both files."""
    import torch
    import transformers

    rows = []
    for model_type in zoo.types():
        rows.append(row(model_type))
        print(line(rows[-1]), flush=True)
    data = {
        "schema": "loratlas.zoo",
        "version": 1,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]},
        "summary": summary(rows),
        "types": rows,
    }
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(data), encoding="utf-8")


def row(model_type: str) -> dict[str, Any]:
    """All that is known of one type."""
    from loratlas.anatomy.compare.reader_opinions import READERS
    from loratlas.anatomy.probe.probe_reader import instance
    from loratlas.models.meta import meta_model

    by_name: dict[str, Any] = {"model_type": model_type, "mapped": mapped(model_type)}
    if model_type in zoo.NEVER:
        return by_name | {"never": zoo.NEVER[model_type]}
    proof = zoo.proof(model_type)
    anatomy = proof.anatomy
    model = meta_model(zoo.small(model_type))
    name = type(model).__name__  # it is renamed below
    roles = {one.path: one.role for one in proof.matrices}
    same = renamed_decisions(model, roles, lambda: instance(zoo.small(model_type)))
    return by_name | {
        "class": name,
        "layers": scopes(anatomy),
        "roles": dict(Counter(_key(site) for site in anatomy.sites)),
        "matrices": len(proof.matrices),
        "unresolved": {item.path: item.reason for item in anatomy.unresolved},
        "agreement": {reader: proof.agreement(reader) for reader in READERS},
        "disputes": [
            {"path": one.path, "role": one.role, "opinions": one.opinions(), "settled": one.table or None}
            for one in proof.disputes
        ],
        "probe_silent": proof.silent,
        "renamed": same,
    }


def mapped(model_type: str) -> list[str]:
    """The mappings that name a type."""
    from transformers.models.auto import modeling_auto as auto

    return [word for word, name in _MAPPINGS if model_type in getattr(auto, name)]


def scopes(anatomy: Any) -> dict[str, int]:
    """Tower → number of its blocks in the small instance."""
    layers: dict[str, set[int]] = {}
    for site in anatomy.sites:
        if site.layer is not None:
            layers.setdefault(site.scope, set()).add(site.layer)
    return {scope: len(found) for scope, found in layers.items()}


def _key(site: Any) -> str:
    return site.role if site.scope in TEXT_SCOPES else f"{site.scope}.{site.role}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures at the top of the page."""
    built = [one for one in rows if "never" not in one]
    agreement = {}
    for reader in ("names", "trace", "probe"):
        pairs = [one["agreement"][reader] for one in built]
        agreement[reader] = {"agrees": sum(a for a, _ in pairs), "speaks": sum(b for _, b in pairs)}
    families: dict[str, list[int]] = {}
    for one in built:
        for family, (same, all_) in one["renamed"].items():
            known = families.setdefault(family, [0, 0])
            known[0] += same
            known[1] += all_
    return {
        "types": len(rows),
        "built": len(built),
        "resolved": sum(not one["unresolved"] for one in built),
        "matrices": sum(one["matrices"] for one in built),
        "unresolved": sum(len(one["unresolved"]) for one in built),
        "agreement": agreement,
        "disputes": sum(len(one["disputes"]) for one in built),
        "open": sum(not item["settled"] for one in built for item in one["disputes"]),
        "renamed": {
            "same": sum(a for a, _ in families.values()),
            "of": sum(b for _, b in families.values()),
            "families": families,
        },
    }


def line(one: dict[str, Any]) -> str:
    """One type, for who waits."""
    if "never" in one:
        return f"{one['model_type']}: {one['never']}"
    same, all_ = (sum(pair[i] for pair in one["renamed"].values()) for i in (0, 1))
    said = " ".join(f"{reader} {a}/{b}" for reader, (a, b) in one["agreement"].items())
    opened = sum(not item["settled"] for item in one["disputes"])
    return (
        f"{one['model_type']}: {one['matrices']} unresolved {len(one['unresolved'])} {said} open {opened} "
        f"renamed {same}/{all_} {one['probe_silent']}"
    )


def page(data: dict[str, Any]) -> str:
    """The JSON as a page."""
    total, versions = data["summary"], data["versions"]
    renamed = total["renamed"]
    lines = [
        "# The zoo: every model for text in transformers",
        "",
        f"Written by `make docs` with transformers {versions['transformers']} and torch {versions['torch']}; all "
        "figures are in [zoo.json](zoo.json).",
        "",
        "A type is listed if transformers maps it to a causal, masked or sequence-to-sequence language model or to a "
        "sequence classifier. It is read from a small config (at most four layers in each tower, so that the counts "
        "below are those of a small instance), on the meta device, without weights.",
        "",
        "| | |",
        "|---|--:|",
        f"| types that are mapped | {total['types']} |",
        f"| that transformers builds from a config | {total['built']} |",
        f"| **resolved in full** | **{total['resolved']}** ({total['resolved'] / total['built']:.1%}) |",
        f"| matrices | {total['matrices']:,} |",
        f"| of them unresolved | {total['unresolved']} |",
    ]
    for reader, words in (
        ("names", "names: what owners and leaves are called"),
        ("trace", "trace: one observed pass without weights"),
        ("probe", "probe: one token changed, with random weights"),
    ):
        agrees, speaks = total["agreement"][reader].values()
        lines.append(
            f"| {words}: agrees where it speaks | {agrees:,} of {speaks:,} ({agrees / speaks:.2%}) |"
        )
    lines += [
        f"| disputes between readers, settled by the reviewed table | {total['disputes'] - total['open']} |",
        f"| disputes left open (and the matrix unresolved) | {total['open']} |",
        f"| **same role with every name replaced at random** | **{renamed['same']:,} of {renamed['of']:,} "
        f"({renamed['same'] / renamed['of']:.1%})** |",
        "",
        "With all names random, by family: "
        + ", ".join(f"{family} {a / b:.0%} of {b:,}" for family, (a, b) in _ordered(renamed["families"]))
        + ".",
        "",
        "## Types that are not read in full",
        "",
        "| type | why |",
        "|---|---|",
    ]
    for one in data["types"]:
        if "never" in one:
            lines.append(f"| {one['model_type']} | never built: {one['never']} |")
        elif one["unresolved"]:
            lines.append(f"| {one['model_type']} | {_reasons(one['unresolved'])} |")
    lines += ["", "## Disputes", "", "Where two readers contradict one another, and what settles it.", ""]
    lines += ["| type | matrices | what was said | settled by |", "|---|---|---|---|"]
    lines += [_dispute(*group) for one in data["types"] for group in _disputes(one)]
    lines += [
        "",
        "## All types",
        "",
        "*n/t/p* counts the matrices in which names, trace and probe agree with the role, of those they speak of. "
        "*renamed* is the share that keeps its role when all names are random.",
        "",
        "| type | class | layers | sites by role | n/t/p | renamed |",
        "|---|---|---|---|---|--:|",
    ]
    lines += [_line(one) for one in data["types"] if "never" not in one]
    return "\n".join(lines) + "\n"


def _line(one: dict[str, Any]) -> str:
    layers = ", ".join(f"{scope} {count}" for scope, count in one["layers"].items())
    said = "<br>".join(f"{a}/{b}" if a != b else str(a) for a, b in one["agreement"].values())
    same, all_ = (sum(pair[i] for pair in one["renamed"].values()) for i in (0, 1))
    mark = "" if not one["unresolved"] else f"; **{len(one['unresolved'])} unresolved**"
    return (
        f"| `{one['model_type']}` | {one['class']}<br>{', '.join(one['mapped'])} | {layers} | "
        f"{_roles(one['roles'])}{mark} | {said} | {same / all_:.0%} |"
    )


def _roles(roles: dict[str, int]) -> str:
    """``attn: q 4, k 4; ffn: up 4``."""
    families: dict[str, list[str]] = {}
    for role, count in roles.items():
        family, _, part = role.rpartition(".")
        families.setdefault(family or role, []).append(f"{part} {count}" if family else str(count))
    return "; ".join(f"**{family}** {', '.join(parts)}" for family, parts in _ordered(families))


def _ordered(families: dict[str, Any]) -> list[tuple[str, Any]]:
    def place(name: str) -> tuple[int, int, str]:
        tower, _, family = name.rpartition(".")
        return bool(tower), FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), name

    return sorted(families.items(), key=lambda item: place(item[0]))


def _reasons(unresolved: dict[str, str]) -> str:
    from loratlas.anatomy.compare.crosscheck import pattern

    counts = Counter((pattern(path), reason) for path, reason in unresolved.items())
    return "<br>".join(f"`{path}` ({count}): {reason}" for (path, reason), count in counts.items())


def _disputes(one: dict[str, Any]) -> list[tuple[str, str, int, str, str]]:
    from loratlas.anatomy.compare.crosscheck import pattern

    counts = Counter(
        (pattern(item["path"]), ", ".join(item["opinions"]), item["settled"] or "nothing: unresolved")
        for item in one.get("disputes", ())
    )
    return [(one["model_type"], path, n, said, why) for (path, said, why), n in counts.items()]


def _dispute(model_type: str, path: str, count: int, said: str, why: str) -> str:
    return f"| {model_type} | `{path}` ({count}) | {said} | {why} |"


if __name__ == "__main__":
    main()
