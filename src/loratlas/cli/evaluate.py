"""`eval`: the loss of a model on rows, every definition of it, and why they differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas.cli import options, output
from loratlas.cli.folders import adapter_folder, check_out

if TYPE_CHECKING:
    from loratlas.data.encode import Encoded
    from loratlas.data.rows import Rows
    from loratlas.evaluation.tokens import Scores

MAX_TOKENS = 4096
"""Tokens of one forward pass; the result does not depend on it."""


def evaluate(
    model: options.Model,
    data: options.Data,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="A PEFT adapter, or the --out folder of `loratlas train`.",
            rich_help_panel=options.PLACE,
        ),
    ] = None,
    split: options.Split = None,
    columns: options.Columns = None,
    limit: options.Limit = None,
    loss: options.LossOver = options.Loss.answer,
    max_length: options.MaxLength = 512,
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.QuantizeOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Also write every example's and every token's loss there, as Parquet.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure the loss of a model, with or without an adapter.

    The loss is the mean over all counted tokens; perplexity is its exponential. Neither depends on how rows are
    packed or batched. Other definitions are printed beside it, each with the exact reason why it differs.
    """
    from loratlas.anatomy.load import load_config
    from loratlas.data.encode import check_positions, encode, load_tokenizer
    from loratlas.study.inputs import model_source, open_model

    folder = adapter_folder(adapter) if adapter is not None else None
    check_out(out)
    rows = rows_to_judge(data, split=split, columns=options.columns_of(columns), limit=limit)
    tokenizer = load_tokenizer(model_source(model))
    encoded = encode(rows, tokenizer, max_length=max_length, loss=loss.value)
    check_positions(encoded, load_config(model_source(model)))
    if not as_json:
        output.note(encoded.report.sentence())
    base = open_model(model, dtype=dtype.chosen, quantize=quantize.value if quantize else None)
    if folder is not None:
        from loratlas.adapters.export import load_adapter

        base = load_adapter(base, folder)
    scores, packed, reason = score_all(to_device(base), encoded)
    facts = summary(scores)
    if out is not None:
        scores.write(out)
    if as_json:
        output.emit(
            {
                "schema": "loratlas.eval",
                "version": 1,
                "model": model,
                "adapter": None if adapter is None else str(adapter),
                "data": {"source": rows.source, "digest": rows.digest, **_report(encoded)},
                "packed": packed,
                **facts,
                "out": None if out is None else str(out),
            }
        )
        return
    if not packed:
        output.note(f"Padded instead of packed: {reason}")
    _show(facts)
    if out is not None:
        output.say(f"Losses of every example and token: {out / 'examples.parquet'}, {out / 'tokens.parquet'}")


def rows_to_judge(data: str, *, split: str | None, columns: Mapping[str, str], limit: int | None) -> Rows:
    """Rows to measure a loss on: of an embedded task those for evaluation, unless a split is named."""
    from loratlas.study.inputs import DEMO, open_rows

    chosen = "eval" if split is None and data.startswith(DEMO) else split
    return open_rows(data, split=chosen, mapping=columns, limit=limit)


def summary(scores: Scores) -> dict[str, Any]:
    """The numbers of `eval --json`: the loss, its definitions and the gaps between them."""
    from loratlas.evaluation.audit import definitions, gaps, residual

    return {
        "token_mean_nll": scores.token_mean_nll,
        "perplexity": scores.perplexity,
        "examples": len(scores.n),
        "labelled_tokens": int(scores.n.sum()),
        "definitions": definitions(scores),
        "gaps": gaps(scores),
        "residual": residual(scores),
    }


def to_device(model: Any) -> Any:
    """Move a model to the GPU, if there is one; a quantised base is there already."""
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if torch.cuda.is_available() and not getattr(inner, "is_quantized", False):
        return model.to("cuda")
    return model


def score_all(model: Any, encoded: Encoded) -> tuple[Scores, bool, str]:
    """Score every example once, packed where this model proves that packing is exact.

    Returns:
        The scores, whether they were packed, and why not where they were not.
    """
    from loratlas.data.packing import prove_packing
    from loratlas.evaluation.tokens import score

    proof = prove_packing(model)
    return score(model, encoded, packed=proof.exact, max_tokens=MAX_TOKENS), proof.exact, proof.reason


def _report(encoded: Encoded) -> dict[str, int]:
    from dataclasses import asdict

    return asdict(encoded.report)


def _show(facts: dict[str, Any]) -> None:
    output.say(
        f"loss {facts['token_mean_nll']:.4f} nats per token, perplexity {facts['perplexity']:.3f} "
        f"({output.count(facts['labelled_tokens'])} tokens of {output.count(facts['examples'])} examples)"
    )
    drawn = output.table("definition", ("value", "right"))
    for name, value in facts["definitions"].items():
        drawn.add_row(name.replace("_", " "), f"{value:,.4f}")
    output.show(drawn)
    if facts["gaps"]:
        drawn = output.table("why they differ", ("nats", "right"))
        for gap in facts["gaps"]:
            drawn.add_row(gap["term"], f"{gap['nats']:+.6f}")
        drawn.add_row("left unexplained", f"{facts['residual']:+.1e}")
        output.show(drawn)
