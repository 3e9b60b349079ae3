"""`audit-log`: which definition of loss printed the numbers that another tool wrote down."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas.api.checks import adapter_task, check_head, rows_to_judge, to_device
from loratlas.api.evaluate_model import watching
from loratlas.api.folders import adapter_folder, check_tokenizer
from loratlas.cli import options, output
from loratlas.cli.base_name import base_named
from loratlas.cli.column_text import columns_of
from loratlas.cli.judging import Stride, Window
from loratlas.cli.progress import Terminal, heartbeat
from loratlas.errors import SettingsError

if TYPE_CHECKING:
    from loratlas.data.rows import Rows
    from loratlas.loss_audit.log_audit import LogAudit
    from loratlas.loss_audit.log_numbers import Log

RUNNERS_UP = 3
"""Further definitions that are printed where several reproduce a number; the JSON has all."""


def audit_log(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="trainer_state.json, eval_results.json, trainer_log.jsonl, the list that cal_ppl saved, "
            "eval_summary.csv, results of lm-evaluation-harness, a printed log, or a folder with some of them.",
            show_default=False,
        ),
    ],
    data: options.Data,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="What was evaluated: a Hub id, a local directory, or demo:llama-mini.",
            show_default=False,
            rich_help_panel=options.PLACEMENT,
        ),
    ],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="A PEFT adapter on it; may be repeated: each is tried.",
            rich_help_panel=options.PLACEMENT,
        ),
    ] = None,
    split: options.Split = None,
    columns: options.Columns = None,
    limit: options.Limit = None,
    task: options.TaskOption = None,
    max_length: options.MaxLength = 512,
    dtype: options.DtypeOption = options.Dtype.float32,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="The evaluation batch size, if you know it; may be repeated. Else what the log allows is tried.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    smoothing: Annotated[
        list[float] | None,
        typer.Option(
            "--smoothing",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="A label smoothing to try as well as 0.1; may be repeated.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    window: Window = None,
    stride: Stride = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NUMBER",
            min=0.0,
            help="How far off still counts as reproduced; what chance and the printed digits allow unless given.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say which definition of loss printed the numbers of another tool's log.

    The rows are scored once, and every combination of counted tokens and averaging that tools use is compared with
    every loss and perplexity of the log. While one is left unexplained, further passes are made: without the adapter,
    in another dtype, padded, cut or shifted otherwise. A definition counts as reproducing a number only where that is
    unlikely by chance. What the log does not say is listed. A classifier's log is compared with its loss per row, an
    encoder-decoder's with that of its targets.

    The exit code is 1 where no number of an evaluation was reproduced.
    """
    from loratlas.loss_audit.log_audit import LogAudit
    from loratlas.loss_audit.read_logs import read_logs

    if stride is not None and window is None:
        raise SettingsError(given="--stride without --window", found="nothing to advance", instead="--window")
    logs = read_logs(log)
    folders = [adapter_folder(path) for path in adapter or ()]
    with tempfile.TemporaryDirectory(prefix="loratlas-audit-") as scratch:
        audit = LogAudit(
            logs=logs,
            scratch=Path(scratch),
            max_length=max_length,
            dtype=dtype.chosen,
            batch_sizes=tuple(batch_size or ()),
            smoothing=tuple(dict.fromkeys((0.1, *(smoothing or ())))),
            tolerance=tolerance,
            window=window,
            stride=stride,
            on_pass=lambda number, words: output.note(f"Pass {number}: {words}"),
        )
        rows = rows_to_judge(data, split=split, columns=columns_of(columns), limit=limit)
        with heartbeat("audit-log"):
            shown = _run(audit, model, folders, rows, asked=None if task is None else task.value)
    numbers = {
        "schema": "loratlas.audit-log",
        "version": 1,
        "model": model,
        "adapters": [str(path) for path in adapter or ()],
        **shown,
    }
    if as_json:
        output.emit(numbers)
    else:
        _show(numbers)
    judged = [
        number
        for one in numbers["logs"]
        for number in one["numbers"]
        if number["verdict"] not in ("training", "earlier")
    ]
    if judged and not any(number["verdict"] == "reproduced" for number in judged):
        raise typer.Exit(1)


def _run(
    audit: LogAudit, model: str, adapters: Sequence[Path], rows: Rows, *, asked: str | None
) -> dict[str, Any]:
    """Open the model on the rows, with each adapter, and make the passes."""
    from loratlas.adapters.stored.load_adapter import load_adapter
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.loss_audit.audit_passes import Subject, subject
    from loratlas.loss_audit.text_units import texts_of
    from loratlas.sources import model_source, open_model, open_task

    model = base_named(model)
    source = model_source(model)
    tokenizer = load_tokenizer(source)
    for folder in adapters:
        remark = check_tokenizer(folder, tokenizer)
        if remark:
            output.note(remark)
    first = adapters[0] if adapters else None
    task, config = open_task(
        source, rows, tokenizer, asked=asked, known=adapter_task(first, source, Terminal())
    )
    encoded = encode_for(task, rows, tokenizer, config=config or source, max_length=audit.max_length)
    output.note(f"{rows.source}: {encoded.report.sentence()}")

    def opened(folder: Path | None) -> Subject:
        base = open_model(model, dtype=audit.dtype, config=config)
        if folder is not None:
            base = load_adapter(base, folder)
        base = to_device(check_head(base, folder))
        if config is not None:
            return Subject(
                model=base,
                rows=rows,
                encoded=encoded,
                tokenizer=tokenizer,
                packed=False,
                watch=watching(Terminal()),
            )
        made, reason = subject(base, rows, encoded, tokenizer, watch=watching(Terminal()))
        if reason:
            output.note(f"Padded instead of packed: {reason}")
        return made

    one = opened(first)
    if config is not None:
        audit.task(one)
    else:
        audit.texts = texts_of(encoded, rows, tokenizer)
        audit.reference(one)
        for folder in adapters[1:]:
            if audit.open:
                audit.other_adapter(opened(folder), f"adapter {folder}")
        if audit.open:
            audit.more(one, adapted=bool(adapters))

    def remarks(log: Log) -> list[str]:
        if adapters or not (log.path.parent / "adapter_config.json").is_file():
            return []
        words = f"--adapter {log.path.parent} takes it."
        return [f"There is an adapter in the same folder, which was not part of this audit: {words}"]

    return {
        "task": task.to_json(),
        "data": {"source": rows.source, "digest": rows.digest, **asdict(encoded.report)},
        **audit.to_json(rows=len(encoded), remarks=remarks),
    }


def _show(shown: dict[str, Any]) -> None:
    for one in shown["logs"]:
        output.say(f"{one['path']}: {one['tool']}")
        settings = ", ".join(f"{name} {_short(value)}" for name, value in one["settings"].items())
        if settings:
            output.say(f"It says: {settings}.")
        judged = _once([n for n in one["numbers"] if n["verdict"] not in ("earlier", "training")])
        if one["missing"] and any(len(number["matches"]) != 1 for number in judged):
            output.say(f"It does not say: {', '.join(setting['name'] for setting in one['missing'])}.")
        for remark in one["remarks"]:
            output.say(remark)
        if judged:
            _show_numbers(judged)
        _show_rest(one["numbers"])
        if one["examples"]:
            _show_examples(one["examples"])


def _once(numbers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers as people need them: an evaluation that was logged twice is one."""
    return list({(n["name"], n["step"], n["epoch"], n["value"]): n for n in numbers}.values())


def _show_numbers(numbers: Sequence[dict[str, Any]]) -> None:
    drawn = output.table("number", ("value", "right"), "what gives it", ("off", "right"))
    for number in numbers:
        name = number["name"]
        if number["step"] is not None:
            name += f", step {number['step']}"
        elif number["epoch"] is not None:
            name += f", epoch {number['epoch']:g}"
        if number["verdict"] == "not a number":
            drawn.add_row(name, f"{number['value']}", "not a number", "")
            continue
        if not number["matches"]:
            drawn.add_row(name, f"{number['value']:.6g}", "nothing that was tried", "")
            for near in number["nearest"]:
                drawn.add_row("", f"{near['value']:.6g}", f"nearest: {near['words']}", f"{near['off']:+.1e}")
            continue
        best, *others = number["matches"]
        words = best["words"] if number["verdict"] == "reproduced" else f"perhaps: {best['words']}"
        drawn.add_row(name, f"{number['value']:.6g}", words, f"{best['off']:+.1e}")
        for other in others[:RUNNERS_UP]:
            drawn.add_row("", "", f"or: {other['words']}", f"{other['off']:+.1e}")
        if len(others) > RUNNERS_UP:
            drawn.add_row("", "", f"or {len(others) - RUNNERS_UP} more", "")
    output.show(drawn)
    for number in numbers:
        for gap in [match["gap"] for match in number["matches"][:1] if number["verdict"] == "reproduced"]:
            terms = [f"{term['nats']:+.6f} {term['term']}" for term in gap["terms"]]
            if terms:
                output.say(f"{number['name']}, from the token mean: {'; '.join(terms)}.")
        if number["verdict"] == "consistent":
            output.say(
                f"{number['name']}: {len(number['matches'])} of {number['tried']} definitions agree with it, as some "
                "would with any number near it: too few digits, or too far from what the tool prints, to prove one."
            )
        if number["verdict"] != "reproduced":
            output.say(f"{number['name']} could still be:")
            for words in number["could_be"]:
                output.say(f"  - {words}")


def _show_rest(numbers: Sequence[dict[str, Any]]) -> None:
    for verdict, words in (
        ("earlier", "of earlier checkpoints, which this model is not"),
        ("training", "means over training, which no evaluation gives"),
    ):
        names = [number["name"] for number in numbers if number["verdict"] == verdict]
        if names:
            output.say(f"{len(names)} more {words}: {', '.join(dict.fromkeys(names))}.")


def _show_examples(shown: dict[str, Any]) -> None:
    under = f", {shown['condition']}" if shown["condition"] else ""
    words = f"Example by example: {shown['reproduced']:,} of {shown['of']:,} reproduced ({shown['counted']}{under})."
    if shown["reproduced"] < shown["of"]:
        words += f" Furthest off: example {shown['worst']}, {shown['listed']:.6g} there, {shown['computed']:.6g} here."
    output.say(words)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(str(each) for each in value)
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
