"""Faults of a finished adapter that its headers show: names, patterns and ranks against the tensors that are there.

No model is built and no library imported. What a matrix does is guessed from the words of its name, and only where they
are plain: attention, feed-forward, router, indexer, another tower.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loratlas.lint.lint_finding import LintFinding, some_names
from loratlas.lint.module_targets import ALL_LINEAR, entries_of, hit_by, nearest_names
from loratlas.lint.name_rules import pattern_keys
from loratlas.serving.adapter_header import PREFIX, WEIGHTS, AdapterHeader

_KINDS = {
    "another tower": {"vision", "visual", "vit", "audio", "whisper", "siglip", "clip"},
    "an indexer": {"indexer"},
    "a router": {"router", "gate", "routing"},
    "attention": {"attn", "attention", "crossattention", "selfattention", "encdecattention"},
    "feed-forward": {"mlp", "ffn", "intermediate", "feedforward", "densereludense", "experts"},
}
CHUNK = 2**22
"""Bytes of numbers that are looked at at a time."""


def header_findings(header: AdapterHeader) -> Iterator[LintFinding]:
    """Everything that the headers of an adapter show.

    Args:
        header: as :func:`loratlas.serving.adapter_header.read_adapter_header` returns it.
    """
    config = header.config
    modules = list(dict.fromkeys(pair.module for pair in header.pairs))
    yield from _prefixes(header)
    for entry in entries_of(config.get("target_modules")):
        if not hit_by(entry, modules) and not config.get("target_parameters"):
            yield LintFinding(
                rule="no-match",
                where="target_modules",
                given=entry,
                found="no tensor in the file belongs to it",
                instead=" or ".join(nearest_names(entry, modules)) if modules else "an adapter with factors",
            )
    names = [f"{pair.module}.{pair.parameter}" if pair.parameter else pair.module for pair in header.pairs]
    yield from pattern_keys(config, names)
    yield from _ranks(header)
    yield from _layers(header)
    yield from _kinds(config.get("target_modules"), modules)
    for entry in entries_of(config.get("modules_to_save")):
        if not any(re.search(rf"(?:^|\.){re.escape(entry)}\.", name) for name in header.others):
            yield LintFinding(
                rule="no-match",
                where="modules_to_save",
                given=entry,
                found="no tensor in the file belongs to it: engines that look for it find the base's",
                instead="the adapter saved with it, or no such entry",
            )


def _prefixes(header: AdapterHeader) -> Iterator[LintFinding]:
    odd = [name for name in header.tensors if not name.startswith(PREFIX)]
    if odd:
        yield LintFinding(
            rule="prefix",
            where=WEIGHTS,
            given=odd[0],
            found=f"{len(odd)} tensors without PEFT's prefix: engines that match names serve the base in silence",
            instead=f"{PREFIX}{odd[0]}",
        )
    doubled = [name for name in header.tensors if name.startswith(PREFIX * 2)]
    if doubled:
        yield LintFinding(
            rule="prefix",
            where=WEIGHTS,
            given=doubled[0],
            found=f"{len(doubled)} tensors with PEFT's prefix twice: an adapter of a model that had one already",
            instead=doubled[0].removeprefix(PREFIX),
        )


def _ranks(header: AdapterHeader) -> Iterator[LintFinding]:
    wrong = [p for p in header.pairs if not p.parameter and p.rank != header.rank_of(p.module)]
    if wrong:
        pair = wrong[0]
        yield LintFinding(
            rule="rank",
            where=pair.a,
            given=str(header.rank_of(pair.module)),
            found=f"factors of rank {pair.rank}, and {len(wrong) - 1} more that are not as the config says: the scale, "
            "which is α over the config's rank, is not the one it was trained with, or PEFT refuses to load it",
            instead=f"r {pair.rank}, or rank_pattern for these modules",
        )


def _layers(header: AdapterHeader) -> Iterator[LintFinding]:
    if header.base is None or not header.base.layers:
        return
    beyond = [p for p in header.pairs if p.layer is not None and p.layer >= header.base.layers]
    if beyond:
        yield LintFinding(
            rule="layers",
            where=WEIGHTS,
            given=beyond[0].module,
            found=f"{len(beyond)} sites in layers that the base does not have: it has {header.base.layers}",
            instead="the base that it was trained on (--base MODEL)",
        )


def _kinds(target: Any, modules: list[str]) -> Iterator[LintFinding]:
    """Entries that hold attention and feed-forward at once; routers, indexers and other towers beside them."""
    entries = entries_of(target) or ([ALL_LINEAR] if target == ALL_LINEAR else [])
    for entry in entries:
        groups: dict[str, list[str]] = {}
        for name in modules if entry == ALL_LINEAR else hit_by(entry, modules):
            groups.setdefault(_kind(name), []).append(name)
        groups.pop("", None)
        what = ", ".join(f"{len(names)} of {kind}" for kind, names in groups.items())
        plain = set(groups) & {"attention", "feed-forward"}
        odd = {kind: names for kind, names in groups.items() if kind not in plain}
        if len(plain) == 2 and entry != ALL_LINEAR and "." not in entry:
            yield LintFinding(
                rule="collision",
                where="target_modules",
                given=entry,
                found=f"one name for matrices that do different things: {what}",
                instead=" or ".join(sorted({_longer(names[0], entry) for names in groups.values()})),
            )
        for kind, names in odd.items():
            if plain or (entry != ALL_LINEAR and "." not in entry and kind != "another tower"):
                yield LintFinding(
                    rule="other-tower" if kind == "another tower" else "router",
                    where="target_modules",
                    given=entry,
                    found=f"{kind} adapted: {some_names(names, 1)}",
                    instead="the placement without it, as `loratlas plan` writes it",
                )


def _kind(module: str) -> str:
    """What a name's words say that a matrix is part of; empty where they say nothing plain."""
    words = [word.lower() for word in module.split(".") if not word.isdigit()]
    bare = {part for word in words for part in (word, *word.split("_"))}
    leaf = words[-1] if words else ""
    for kind, spoken in _KINDS.items():
        if kind == "a router":
            if leaf in spoken:
                return kind
        elif bare & spoken:
            return kind
    return ""


def _longer(module: str, entry: str) -> str:
    words = [word for word in module.split(".") if not word.isdigit()]
    count = entry.count(".") + 2
    return ".".join(words[-count:])


def number_findings(header: AdapterHeader) -> Iterator[LintFinding]:
    """NaN and infinite numbers, and updates that are exactly zero; read in chunks, without torch.

    Args:
        header: of the adapter.
    """
    path = header.folder / WEIGHTS
    broken: list[str] = []
    zeros: set[str] = set()
    for name, finite, zero in _scan(path):
        if not finite:
            broken.append(name)
        if zero:
            zeros.add(name)
    dead = [pair for pair in header.pairs if pair.b in zeros or pair.a in zeros]
    if broken:
        yield LintFinding(
            rule="not-finite",
            where=WEIGHTS,
            given=broken[0],
            found=f"NaN or infinite numbers in {len(broken)} tensors",
            instead="an adapter of a run that did not diverge (a lower learning rate, a longer warm-up)",
        )
    if dead:
        every = len(dead) == len(header.pairs)
        yield LintFinding(
            rule="dead",
            where=WEIGHTS,
            given=dead[0].b,
            found=f"a factor that is 0 at {'every site' if every else f'{len(dead)} of {len(header.pairs)} sites'}: "
            + ("the adapter does nothing" if every else "these were never trained"),
            instead="an adapter that was trained" if every else "a placement without them",
        )


def _scan(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Name, whether every number is finite, whether all are 0; floats of 2 and 4 bytes, others count as finite."""
    import numpy as np

    exponents = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(start - 8))
        table.pop("__metadata__", None)
        for name, entry in table.items():
            if entry["dtype"] not in exponents:
                continue
            kind, mask = exponents[entry["dtype"]]
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            finite, zero, left = True, True, end - begin
            while left:
                bits: Any = np.frombuffer(file.read(min(CHUNK, left)), dtype=kind)
                left -= bits.nbytes
                # Infinite or NaN is a number all of whose exponent's bits are set, 0 one with none but the sign's.
                finite = finite and not bool(((bits & mask) == mask).any())
                zero = zero and not bool((bits << 1).astype(kind).any())
            yield name, finite, zero
