"""README.md of an export: metadata that the Hub reads, and what is known about the adapter.

Everything in it comes from files: the adapter's, its run's beside it, the base's, a study's. What no file says is left
out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratlas.adapters.stored.run_files import read_run_json
from loratlas.adapters.variants import variants_in_words
from loratlas.files import sha256, write_text
from loratlas.serving.adapter_header import AdapterHeader
from loratlas.serving.engine import Verdict

CARD = "README.md"
MOST_ROWS = 40
"""Lines of the placement map; longer ones are cut, and said to be."""


@dataclass(frozen=True, kw_only=True)
class CardInput:
    """What a card is written from.

    Args:
        target: what was exported for.
        base: name of the base.
        recipe: how to load or serve it.
        header: of the adapter that was exported.
        notes: its ``loratlas.json``; empty for an adapter of another tool.
        run: ``run.json`` of its training; empty where there is none.
        findings: of a study, as ``findings.json`` holds them.
        verdicts: of engines on what was written.
        checked: a sentence about what was compared.
        remarks: sentences about what was converted.
    """

    target: str
    base: str
    recipe: str
    header: AdapterHeader
    notes: Mapping[str, Any]
    run: Mapping[str, Any]
    findings: Iterable[Mapping[str, Any]] = ()
    verdicts: Iterable[Verdict] = ()
    checked: str = ""
    remarks: Iterable[str] = ()


def write_card(folder: Path, card: CardInput) -> None:
    """Write ``README.md`` into an export's folder."""
    write_text(folder / CARD, card_text(card))


def card_text(card: CardInput) -> str:
    """The card as Markdown, its metadata in front.

    Args:
        card: what is known.
    """
    plan = card.notes.get("plan") or {}
    parts = [_metadata(card), f"# {_title(card)}\n"]
    parts.append(
        f"A LoRA adapter of `{card.base}`, written for {card.target} by loratlas."
        if card.target not in ("merged", "gguf")
        else f"`{card.base}` with a LoRA adapter added in, written as {card.target} by loratlas."
    )
    parts.append(_section("Use", f"```\n{card.recipe}\n```"))
    parts.append(_section("Placement", _placement(card.header, plan)))
    parts.append(_section("Training", _training(card)))
    sentences = [str(f["sentence"]) for f in card.findings if f.get("sentence")]
    if sentences:
        reach = "Each holds for this base, this task, this budget and this size, and for nothing else."
        parts.append(_section("Findings", "\n".join(f"- {text}" for text in sentences) + f"\n\n{reach}"))
    parts.append(_section("Engines", _engines(card)))
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def run_beside(adapter: Path) -> dict[str, Any]:
    """``run.json`` of the training that an adapter's folder stands in; empty where there is none.

    Raises:
        ModelError: it, or a file of that run, is not what was written.
    """
    return read_run_json(adapter.parent) or {}


def data_digest(source: Any) -> str | None:
    """SHA-256 of the rows' file, where it is one that is here."""
    path = Path(str(source)) if source else None
    return sha256(path) if path is not None and path.is_file() else None


def licence_of(base: str) -> str | None:
    """The licence that the base's own card names; None where it lies elsewhere or names none."""
    try:
        lines = (Path(base) / CARD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or None
    return None


def _metadata(card: CardInput) -> str:
    fields: dict[str, Any] = {"base_model": card.base}
    if licence := licence_of(card.base):
        fields["license"] = licence
    if data := card.run.get("data"):
        name = str(data)
        if "/" in name and not Path(name).exists() and not name.startswith(("/", ".", "demo:")):
            fields["datasets"] = [name]
    fields["library_name"] = {"merged": "transformers", "gguf": "gguf", "mlx": "mlx"}.get(card.target, "peft")
    fields["base_model_relation"] = "merge" if card.target in ("merged", "gguf") else "adapter"
    fields["tags"] = ["lora", "loratlas"]
    lines = []
    for key, value in fields.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {json.dumps(item)}" for item in value)]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(("---", *lines, "---"))


def _title(card: CardInput) -> str:
    return f"LoRA on {Path(card.base).name}" if card.base else "LoRA adapter"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _placement(header: AdapterHeader, plan: Mapping[str, Any]) -> str:
    lines = []
    if plan.get("placement"):
        lines.append(
            f"`{plan['placement']}`" + (f", budget {plan['budget']}" if plan.get("budget") else "") + "\n"
        )
    total = sum(pair.parameters for pair in header.pairs)
    lines.append(f"{total:,} parameters at {len(header.pairs)} matrices.\n")
    variants = variants_in_words(rslora=header.rslora, dora=bool(header.config.get("use_dora")))
    lines += [f"{sentence}\n" for sentence in variants]
    rows: dict[tuple[str, int, float], list[str]] = {}
    for pair in header.pairs:
        layer = str(pair.layer) if pair.layer is not None else "–"
        word = f"{pair.leaf}.{pair.parameter}" if pair.parameter else pair.leaf
        rows.setdefault((word, pair.rank, pair.scale), []).append(layer)
    lines += ["| matrix | rank | scale | layers |", "|---|---:|---:|---|"]
    for (word, rank, scale), layers in list(rows.items())[:MOST_ROWS]:
        lines.append(f"| `{word}` | {rank} | {scale:g} | {', '.join(layers)} |")
    if len(rows) > MOST_ROWS:
        lines.append(f"\nand {len(rows) - MOST_ROWS} more lines.")
    return "\n".join(lines)


def _training(card: CardInput) -> str:
    settings = (card.notes.get("extra") or {}).get("settings") or {}
    data = card.run.get("data")
    digest = data_digest(data)
    known = {
        "data": f"`{data}`" if data else None,
        "data SHA-256": f"`{digest}`" if digest else None,
        "digest of the encoded rows": f"`{rows}`" if (rows := card.run.get("rows_digest")) else None,
        "steps": card.run.get("steps"),
        "tokens": card.run.get("tokens"),
        "learning rate": settings.get("lr"),
        "seed": settings.get("seed"),
        "training loss, nats per token": card.run.get("train_nll"),
    }
    judged = card.run.get("eval")
    if isinstance(judged, Mapping):
        known["held-out loss, nats per token"] = judged.get("token_mean_nll", judged.get("nll"))
    lines = [f"| {key} | {value} |" for key, value in known.items() if value is not None]
    return "\n".join(("| | |", "|---|---|", *lines)) if lines else ""


def _engines(card: CardInput) -> str:
    lines = [card.checked] if card.checked else []
    verdicts = list(card.verdicts)
    if verdicts:
        lines += [
            "",
            "What engines make of this folder, by their own rules:",
            "",
            "| engine | |",
            "|---|---|",
        ]
        for verdict in verdicts:
            why = f": {verdict.reasons[0].why}" if verdict.reasons else ""
            lines.append(f"| {verdict.engine} | {verdict.verdict}{why} |")
    lines += [f"\n{remark}" for remark in card.remarks]
    return "\n".join(lines).strip()
