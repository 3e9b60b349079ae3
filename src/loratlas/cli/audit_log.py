"""`audit-log`: which definition of loss printed the numbers that another tool wrote down."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas.cli import options, output
from loratlas.cli.evaluate import rows_to_judge, to_device
from loratlas.cli.folders import adapter_folder, check_tokenizer
from loratlas.errors import SettingsError

if TYPE_CHECKING:
    from loratlas.loss_audit.audit_passes import Subject
    from loratlas.loss_audit.definitions import Evidence
    from loratlas.loss_audit.match_logs import Explained
    from loratlas.loss_audit.read_logs import Log

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
            rich_help_panel=options.PLACE,
        ),
    ],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="A PEFT adapter on it; may be repeated: each is tried.",
            rich_help_panel=options.PLACE,
        ),
    ] = None,
    split: options.Split = None,
    columns: options.Columns = None,
    limit: options.Limit = None,
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
            help="A label smoothing to try beside 0.1; may be repeated.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="TOKENS",
            min=2,
            help="Also try windows of so many tokens.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="TOKENS",
            min=1,
            help="How far windows advance; by their length unless given.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NUMBER",
            min=0.0,
            help="How far off still counts as reproduced; float32 rounding and the printed digits unless given.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say which definition of loss printed the numbers of another tool's log.

    The rows are scored once, and every combination of counted tokens and averaging that tools use is compared with
    every loss and perplexity of the log. While one is left unexplained, further passes are made: without the adapter,
    in other numbers, filled, cut or shifted otherwise. What the log does not say is listed.

    The exit code is 1 where no number of an evaluation was reproduced.
    """
    from loratlas.loss_audit.read_logs import read_logs

    if stride is not None and window is None:
        raise SettingsError(given="--stride without --window", found="nothing to advance", instead="--window")
    logs = read_logs(log)
    folders = [adapter_folder(path) for path in adapter or ()]
    with tempfile.TemporaryDirectory(prefix="loratlas-audit-") as scratch:
        told = _Audit(
            logs=logs,
            sizes=tuple(batch_size or ()),
            smoothing=tuple(dict.fromkeys((0.1, *(smoothing or ())))),
            tolerance=tolerance,
            max_length=max_length,
            dtype=dtype.chosen,
            window=window,
            stride=stride,
            scratch=Path(scratch),
        )
        rows = rows_to_judge(data, split=split, columns=options.columns_of(columns), limit=limit)
        facts = told.run(model, folders, rows)
    facts = {
        "schema": "loratlas.audit-log",
        "version": 1,
        "model": model,
        "adapters": [str(path) for path in adapter or ()],
        **facts,
    }
    if as_json:
        output.emit(facts)
    else:
        _show(facts)
    numbers = [number for one in facts["logs"] for number in one["numbers"]]
    judged = [number for number in numbers if number["verdict"] != "training"]
    if judged and not any(number["verdict"] == "reproduced" for number in judged):
        raise typer.Exit(1)


class _Audit:
    """The passes of one command, as many as it takes."""

    def __init__(self, **options: Any) -> None:
        self.logs: Sequence[Log] = options["logs"]
        self.options = options
        self.tables: dict[str, Any] = {}
        self.rough: list[str] = []
        self.explained: list[list[Explained]] = []
        self.passes: list[str] = []
        self.regularisers: dict[str, float] = {}

    def run(self, model: str, adapters: Sequence[Path], rows: Any) -> dict[str, Any]:
        from loratlas.data.encode import encode, load_tokenizer
        from loratlas.data.model_limits import check_fits
        from loratlas.loss_audit.match_logs import by_example
        from loratlas.loss_audit.text_units import texts_of
        from loratlas.models.config import load_config
        from loratlas.sources import model_source

        tokenizer = load_tokenizer(model_source(model))
        for folder in adapters:
            remark = check_tokenizer(folder, tokenizer)
            if remark:
                output.note(remark)
        encoded = encode(rows, tokenizer, max_length=self.options["max_length"])
        check_fits(encoded, load_config(model_source(model)))
        output.remark(rows)
        output.note(f"{rows.source}: {encoded.report.sentence()}")
        self.texts = texts_of(encoded, rows, tokenizer)
        first = self._subject(model, adapters[0] if adapters else None, rows, encoded, tokenizer)
        self._first(first)
        for folder in adapters[1:]:
            if not self._open():
                break
            name = f"adapter {folder}"
            self._note(f"with the {name}")
            other = self._subject(model, folder, rows, encoded, tokenizer)
            table = other.table(self.options["scratch"] / f"adapter-{len(self.tables)}")
            self._enter(name, replace(table, condition=name))
        if self._open():
            self._more(first, adapted=bool(adapters))
        evidence = self._evidence()
        lists = [by_example(log, evidence) for log in self.logs]
        return {
            "data": {"source": rows.source, "digest": rows.digest, **asdict(encoded.report)},
            "passes": self.passes,
            "logs": [
                {
                    "tool": log.tool,
                    "path": str(log.path),
                    "settings": dict(log.settings),
                    "missing": [asdict(setting) for setting in log.missing],
                    "numbers": [one.to_json(evidence) for one in found],
                    "examples": None if told is None else asdict(told),
                    "remarks": _remarks(log, len(encoded), adapted=bool(adapters)),
                }
                for log, found, told in zip(self.logs, self.explained, lists, strict=True)
            ],
        }

    def _subject(self, model: str, adapter: Path | None, rows: Any, encoded: Any, tokenizer: Any) -> Subject:
        from loratlas.loss_audit.audit_passes import subject
        from loratlas.sources import open_model

        base = open_model(model, dtype=self.options["dtype"])
        if adapter is not None:
            from loratlas.adapters.adapter_files import load_adapter

            base = load_adapter(base, adapter)
        made, reason = subject(to_device(base), rows, encoded, tokenizer)
        if reason:
            output.note(f"Padded instead of packed: {reason}")
        return made

    def _first(self, of: Subject) -> None:
        from loratlas.loss_audit.definitions import REFERENCE

        self._note("each example alone and whole")
        table = of.table(self.options["scratch"] / "reference", uniform=True)
        known = self.options["sizes"] or next((log.batch_sizes for log in self.logs if log.batch_sizes), ())
        self.regularisers = of.regularisers(known)
        self._enter(REFERENCE, table, rough=self.options["dtype"] != "float32")

    def _more(self, of: Subject, *, adapted: bool) -> None:
        from loratlas.loss_audit.audit_passes import further

        sizes = self.options["sizes"] or next((log.batch_sizes for log in self.logs if log.batch_sizes), ())
        plan = further(
            of,
            dtype=self.options["dtype"],
            adapted=adapted,
            sizes=sizes,
            window=self.options["window"],
            stride=self.options["stride"],
        )
        for one in plan:
            self._note(one.words)
            table = one.take(of, self.options["scratch"] / one.name, max_length=self.options["max_length"])
            self._enter(one.name, table, rough=one.rough)
            if not self._open():
                return

    def _note(self, words: str) -> None:
        self.passes.append(words)
        output.note(f"Pass {len(self.passes)}: {words}")

    def _enter(self, name: str, table: Any, *, rough: bool = False) -> None:
        from loratlas.loss_audit.match_logs import explain

        self.tables[name] = table
        if rough:
            self.rough.append(name)
        told = self.options
        self.explained = [
            explain(
                log,
                self._evidence(),
                batch_sizes=told["sizes"],
                smoothing=told["smoothing"],
                tolerance=told["tolerance"],
                rough=self.rough,
                regularisers=self.regularisers,
            )
            for log in self.logs
        ]

    def _evidence(self) -> Evidence:
        from loratlas.loss_audit.definitions import Evidence

        return Evidence(tables=self.tables, texts=self.texts)

    def _open(self) -> bool:
        """Whether a number is left that a further pass might explain."""
        return any(one.verdict == "not reproduced" for found in self.explained for one in found)


def _remarks(log: Log, rows: int, *, adapted: bool) -> list[str]:
    """What can be seen without any number: other rows than the log's, an adapter beside it that was not given."""
    told = []
    if not adapted and (log.path.parent / "adapter_config.json").is_file():
        told.append(
            f"An adapter lies beside it and was not part of this audit: --adapter {log.path.parent} takes it."
        )
    for name, words in (("examples", "examples in the list"), ("eval_samples", "evaluation rows in the log")):
        count = log.settings.get(name)
        if isinstance(count, (int, float)) and int(count) != rows:
            told.append(f"{int(count):,} {words}, {rows:,} rows here: not the same rows.")
    return told


def _show(facts: dict[str, Any]) -> None:
    for one in facts["logs"]:
        output.say(f"{one['path']}: {one['tool']}")
        said = ", ".join(f"{name} {_short(value)}" for name, value in one["settings"].items())
        if said:
            output.say(f"It says: {said}.")
        judged = _once([n for n in one["numbers"] if n["verdict"] in ("reproduced", "not reproduced")])
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
    return list({(n["name"], n["step"], n["value"]): n for n in numbers}.values())


def _show_numbers(numbers: Sequence[dict[str, Any]]) -> None:
    drawn = output.table("number", ("value", "right"), "what gives it", ("off", "right"))
    for number in numbers:
        name = number["name"] if number["step"] is None else f"{number['name']}, step {number['step']}"
        if not number["matches"]:
            drawn.add_row(name, f"{number['value']:.6g}", "nothing that was tried", "")
            for near in number["nearest"]:
                drawn.add_row("", f"{near['value']:.6g}", f"nearest: {near['words']}", f"{near['off']:+.1e}")
            continue
        best, *others = number["matches"]
        drawn.add_row(name, f"{number['value']:.6g}", best["words"], f"{best['off']:+.1e}")
        for other in others[:RUNNERS_UP]:
            drawn.add_row("", "", f"or: {other['words']}", f"{other['off']:+.1e}")
        if len(others) > RUNNERS_UP:
            drawn.add_row("", "", f"or {len(others) - RUNNERS_UP} more", "")
    output.show(drawn)
    for number in numbers:
        for gap in [match["gap"] for match in number["matches"][:1]]:
            terms = [f"{term['nats']:+.6f} {term['term']}" for term in gap["terms"]]
            if terms:
                output.say(f"{number['name']}, from the token mean: {'; '.join(terms)}.")
        if number["verdict"] == "not reproduced":
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


def _show_examples(told: dict[str, Any]) -> None:
    under = f", {told['condition']}" if told["condition"] else ""
    words = (
        f"Example by example: {told['reproduced']:,} of {told['of']:,} reproduced ({told['counted']}{under})."
    )
    if told["reproduced"] < told["of"]:
        words += (
            f" Furthest off: example {told['worst']}, {told['wanted']:.6g} there, {told['found']:.6g} here."
        )
    output.say(words)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(str(each) for each in value)
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
