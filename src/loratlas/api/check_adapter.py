"""`loratlas.check` and `loratlas.lint`: faults of adapters and of their configs, before anybody is served by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.folders import adapter_folder
from loratlas.display import Block, Displayed, Grid

if TYPE_CHECKING:
    from loratlas.lint.lint_config import LintReport
    from loratlas.lint.lint_finding import LintFinding
    from loratlas.serving.ask_server import Logprobs, Server
    from loratlas.serving.engine import Verdict

SMALL = 64 * 2**20
"""Bytes of weights up to which the numbers are looked at without being asked to."""

PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Question: What is two plus three?\nAnswer:",
    "Dear Sir or Madam,",
)
"""Texts whose next token a server is asked for."""

APPLIED = 1e-3
"""Nats below which two answers of one server count as the same."""

CLOSE = 0.05
"""Nats within which a server's answer counts as that of transformers and PEFT: more than rounding in 16 bits makes."""

SCALES = (0.0, 0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
"""Scales that are tried where a server's answer is not that of the adapter as trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Displayed):
    """What was found in an adapter.

    Args:
        adapter: its folder.
        engines: what each engine does with it.
        findings: faults of its own.
        served: what a running server does with it; None where none was asked.
        remarks: what was not looked at.

    >>> Check(adapter="run", engines=(), findings=(), served=None).good
    True
    """

    adapter: str
    engines: tuple[Verdict, ...] = field(repr=False)
    findings: tuple[LintFinding, ...]
    served: Mapping[str, Any] | None
    remarks: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing was found and every engine that was asked for serves it right."""
        right = all(verdict.verdict == "right" for verdict in self.engines)
        return right and not self.findings and (self.served is None or bool(self.served["right"]))

    def to_json(self) -> dict[str, Any]:
        """Plain data under the schema ``loratlas.check``."""
        return {
            "schema": "loratlas.check",
            "version": 1,
            "adapter": self.adapter,
            "engines": {verdict.engine: verdict.to_json() for verdict in self.engines},
            "findings": [finding.to_json() for finding in self.findings],
            "served": self.served,
            "remarks": list(self.remarks),
        }

    def blocks(self) -> Sequence[Block]:
        """A row for each engine, a paragraph for each finding."""
        rows = []
        for verdict in self.engines:
            kinds: dict[tuple[str, str], int] = {}
            for reason in verdict.reasons:
                factor = f" × {reason.factor:.3g}" if reason.factor not in (None, 0.0) else ""
                key = f"{reason.what}{factor}", reason.why
                kinds[key] = kinds.get(key, 0) + 1
            reasons = [
                f"{what}{f' ({n} tensors)' if n > 1 else ''}: {why}" for (what, why), n in kinds.items()
            ]
            left = len(reasons) - 3
            more = [f"and {left} reason{'s' if left > 1 else ''} more (--json)"] if left > 0 else []
            rows.append((verdict.engine, verdict.verdict, "\n".join([*reasons[:3], *more]) or "as PEFT"))
        blocks: list[Block] = [Grid(columns=("engine", "verdict", "why"), rows=tuple(rows))] if rows else []
        blocks += [
            f"{f.rule} · {f.where}: {f.given}\n  found: {f.found}\n  instead: {f.instead}"
            for f in self.findings
        ]
        if not self.findings:
            blocks.append("Its own files: nothing found.")
        if self.served is not None:
            blocks.append(self.served["sentence"])
        return [*blocks, *self.remarks]


def check(
    adapter: str | Path,
    engines: Sequence[str] = (),
    *,
    base: str | None = None,
    numbers: bool | None = None,
    url: str | None = None,
    served_adapter: str | None = None,
    served_base: str | None = None,
) -> Check:
    """Say what serving engines would do with an adapter, from its header alone, and what is wrong with its files.

    Args:
        adapter: any PEFT LoRA adapter's folder, or that of a run.
        engines: names, such as ``"vllm"``; all that are known where none is given.
        base: a folder or ``config.json``, if elsewhere than the adapter says.
        numbers: look for NaN and for updates that are 0; None for files of at most 64 MiB.
        url: of a running OpenAI-compatible server, which is asked for log-probabilities with and without the adapter;
            where the base can be loaded here, they are compared with those of transformers and PEFT.
        served_adapter, served_base: their names there, where the server does not make them clear.

    Returns:
        A verdict for each engine, with every tensor that it refuses, drops or scales otherwise; and the findings.

    Raises:
        RequestError: no adapter there, broken files, an unknown engine, a server that does not answer.

    >>> import loratlas
    >>> loratlas.check("nowhere")
    Traceback (most recent call last):
    loratlas.errors.ModelError: ...
    """
    from loratlas.lint.header_rules import header_findings, number_findings
    from loratlas.serving.adapter_header import WEIGHTS, read_adapter_header
    from loratlas.serving.engine_registry import ENGINES, engine_of

    chosen = [engine_of(name) for name in dict.fromkeys(engines)] or list(ENGINES.values())
    folder = adapter_folder(Path(adapter))
    header = read_adapter_header(folder, base=_base_source(base))
    findings = list(header_findings(header))
    remarks = []
    size = (folder / WEIGHTS).stat().st_size
    if numbers or (numbers is None and size <= SMALL):
        findings += number_findings(header)
    elif numbers is None:
        remarks.append(f"Its {size / 2**20:,.0f} MiB of numbers were not looked at; --numbers does.")
    served = None
    if url is not None:
        from loratlas.serving.ask_server import open_server

        server = open_server(url, model=served_adapter, base_model=served_base)
        served = ask(server, folder, _base_source(base) or header.config.get("base_model_name_or_path"))
    return Check(
        adapter=str(folder),
        engines=tuple(engine.verdict(header) for engine in chosen),
        findings=tuple(findings),
        served=served,
        remarks=tuple(remarks),
    )


def _base_source(base: str | None) -> str | None:
    from loratlas.sources import model_source

    return model_source(base) if base else None


def ask(server: Server, folder: Path, source: str | None) -> dict[str, Any]:
    """Whether a running server applies an adapter, and how far it is from transformers and PEFT.

    Args:
        server: see :func:`loratlas.serving.ask_server.open_server`.
        folder: of the adapter. source: its base, where it can be loaded here.
    """
    from loratlas.errors import LoratlasError
    from loratlas.serving.ask_server import difference

    without = [server.next_token(prompt, adapted=False) for prompt in PROMPTS]
    adapted = [server.next_token(prompt, adapted=True) for prompt in PROMPTS]
    moved = max(map(difference, adapted, without))
    applied = moved > APPLIED
    answers: dict[str, Any] = {
        "url": server.url,
        "applied": applied,
        "moved": _number(moved),
        "prompts": len(PROMPTS),
    }
    try:
        wanted = reference(folder, source, (1.0, *SCALES)) if source else None
    except LoratlasError:
        wanted = None
    off = None if wanted is None else {s: max(map(difference, adapted, w)) for s, w in wanted.items()}
    own = None if wanted is None else max(map(difference, without, wanted[0.0]))
    sentence, right = _served_sentence(server.url, applied, moved, off, own)
    return {
        **answers,
        "off": None if off is None else _number(off[1.0]),
        "base_off": None if own is None else _number(own),
        "like_scale": None if off is None else min(off, key=lambda scale: off[scale]),
        "right": right,
        "sentence": sentence,
    }


def _served_sentence(
    url: str, applied: bool, moved: float, off: Mapping[float, float] | None, own: float | None
) -> tuple[str, bool]:
    if off is None or own is None:
        if applied:
            return f"{url} applies an adapter: log-probabilities move by up to {moved:.3g} nats. How far they are " \
                "from PEFT's was not compared: the base cannot be loaded here (--base MODEL).", True  # fmt: skip
        return f"{url} answers the same with the adapter as without: it serves the base.", False
    if off[1.0] <= own + CLOSE and (applied or (off[0.0] <= own + CLOSE and off[1.0] <= off[0.0] + APPLIED)):
        return f"{url} serves the adapter: log-probabilities are within {off[1.0]:.3g} nats of PEFT's, " \
            f"those of the base alone within {own:.3g}.", True  # fmt: skip
    if not applied:
        return f"{url} answers the same with the adapter as without: it serves the base. PEFT differs from it by " \
            f"up to {off[1.0]:.3g} nats.", False  # fmt: skip
    nearest = min(off, key=lambda scale: off[scale])
    like = (
        f"; it answers as with {nearest:g} times the scale"
        if off[nearest] <= own + CLOSE and nearest != 1.0
        else ""
    )
    return f"{url} applies the adapter otherwise than PEFT: log-probabilities are off by up to {off[1.0]:.3g} nats " \
        f"(those of the base alone by {own:.3g}){like}.", False  # fmt: skip


def reference(folder: Path, source: str, scales: Sequence[float]) -> dict[float, list[Logprobs]]:
    """What transformers and PEFT say, with the adapter at several multiples of its scale; 0 is the base alone.

    Args:
        folder: of the adapter. source: its base. scales: multiples.
    """
    import torch

    from loratlas.adapters.peft_targets import adapted
    from loratlas.adapters.stored.load_adapter import load_adapter
    from loratlas.data.encode import load_tokenizer
    from loratlas.models.load import load_model

    tokenizer = load_tokenizer(source)
    model = load_adapter(load_model(source, dtype="float32"), folder)
    layers = [layer for layer in adapted(model).values() if "default" in layer.scaling]
    own = [layer.scaling["default"] for layer in layers]
    by_scale: dict[float, list[Logprobs]] = {}
    for scale in scales:
        for layer, value in zip(layers, own, strict=True):
            layer.scaling["default"] = scale * value
        by_scale[scale] = []
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
            values = torch.log_softmax(logits, dim=-1)
            by_scale[scale].append({tokenizer.decode([i]): float(v) for i, v in enumerate(values)})
    return by_scale


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def lint(config: str | Path | Mapping[str, Any], model: Any) -> LintReport:
    """Look for faults in a LoraConfig before any training; the model's config is enough.

    Args:
        config: an ``adapter_config.json`` or its folder, a YAML file with a LoraConfig's fields, or these as a table.
        model: a name as :func:`loratlas.read` takes it, or a config.

    Returns:
        The findings, each with its rule, what was given, what it does, and what to write instead.

    Raises:
        ModelError: no such config or model.

    >>> import loratlas
    >>> report = loratlas.lint({"target_modules": ["query", "v_proj"]}, "demo:llama-mini")
    >>> report.findings[0].instead
    'q_proj'
    """
    from loratlas.lint.lint_config import lint as look
    from loratlas.lint.lint_config import read_lora_config
    from loratlas.models.config import load_config
    from loratlas.sources import base_config, model_name, named_base, read

    fields, name = read_lora_config(config)
    model = named_base(model).model
    source = base_config(model)
    return look(fields, replace(read(model), model=model_name(model)), load_config(source), name=name)
