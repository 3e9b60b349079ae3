"""`study`, `demo`, `report` and `claims`: compare placements, write down what was found, judge what was claimed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratlas import formats
from loratlas.cli import options, output
from loratlas.cli.progress import Terminal
from loratlas.errors import SpecError

if TYPE_CHECKING:
    from loratlas.study.spec.study_spec import StudySpec

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Runs trained at the same time; one per CPU core unless given. It changes no number.",
        show_default=False,
        rich_help_panel=options.TRAIN,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The study's folder; loratlas-NAME unless given. The same study there is continued.",
        show_default=False,
        rich_help_panel=options.OUTPUT,
    ),
]


def study(
    spec: Annotated[
        Path,
        typer.Argument(
            metavar="SPEC",
            help="The study's YAML file, or a recipe of the package: demo:facts, demo:retrieval.",
            show_default=False,
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="NAME",
            help="One of the sizes that the file has, such as cpu.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The base, instead of the file's.",
            show_default=False,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="DATA",
            help="Rows to train on, instead of the file's.",
            show_default=False,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            help="Rows to judge on, instead of the file's.",
            show_default=False,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    out: Folder = None,
    workers: Workers = None,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost",
            help="Say what the study would take on this machine (time, memory, disk), and train nothing.",
        ),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Over what the file says, e.g. delta=0.02, evaluation.seeds=8 or 'learning_rates=[1e-3, 1e-2]'. "
            "Another study, with a folder of its own.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare placements: tune each at equal cost, train on fresh seeds, say which is better, with its interval.

    Run it again on the same file and only what is missing is done. The exit code is 1 where every judged run of
    every arm diverged, so that nothing was found; any other finding, undetermined ones included, is 0.
    """
    from loratlas.study.spec.spec_file import load_spec

    read = load_spec(spec, size=size, model=model, train=train, eval=evaluate, changes=changes or ())
    if cost:
        _cost(read, workers, as_json)
        return
    _run(read, out, workers, as_json)


def demo(out: Folder = None, workers: Workers = None, as_json: options.Json = False) -> None:
    """Run the study full / attention / feedforward on the embedded base and an embedded task.

    A demonstration of a few minutes, and it says so. Run again, it continues or shows what was found.
    """
    from loratlas.demo import study as demonstration
    from loratlas.study.spec.spec_file import parse_spec

    _run(parse_spec(demonstration(), where="the demonstration"), out, workers, as_json)


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY",
            help="A study's folder, or the JSON that `loratlas study --json` printed; or a run's folder, for its map.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The page to write; report.html in the study's folder unless given.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the page of a study again from its records, or the map of a run that placed its adapters itself."""
    from loratlas.report import build
    from loratlas.report.run_page import is_run, run_page

    page = out or (folder if folder.is_dir() else folder.parent) / "report.html"
    data = {"complete": True} if is_run(folder) else _read(folder)
    page = run_page(folder, page) if is_run(folder) else build(data, page)
    if as_json:
        output.emit(
            {"schema": "loratlas.report", "version": 1, "page": str(page), "complete": data.get("complete")}
        )
    else:
        output.say(f"Page: {page}")


def claims(
    studies: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[STUDY]...",
            help="Studies of your own to judge by as well: their folders, or what `loratlas study --json` printed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write all claims with their numbers, as Markdown.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Judge eight published claims about attention-only and feed-forward-only LoRA by what was measured.

    Verdicts come from this project's own studies and benchmarks, and from yours if you name some.
    """
    from loratlas.api.judge_claims import claims as judged
    from loratlas.files import write_text

    judgements = judged(*(studies or ()))
    if out is not None:
        write_text(out, judgements.page())
    if as_json:
        output.emit({**judgements.to_json(), **({"page": str(out)} if out else {})})
        return
    table = output.table(("#", "right"), "claim", "verdict")
    for one in judgements.verdicts:
        table.add_row(str(one.number), one.claim, one.verdict)
    output.show(table)
    for one in judgements.verdicts:
        output.say(f"{one.number}: {' '.join(one.because)}")
    output.say(f"Page: {out}" if out else "All tables: --out claims.md")


def _run(spec: StudySpec, out: Path | None, workers: int | None, as_json: bool) -> None:
    from loratlas.api.compare import study as run

    data = run(spec, out=out, workers=workers, listener=Terminal()).numbers
    if as_json:
        output.emit(dict(data))
    else:
        _show(data)
        output.say(f"Page: {data['page']}")
    if all(arm.get("nll") is None for arm in data["arms"]):
        output.note("Every judged run diverged: nothing was found. Try lower learning rates.")
        raise typer.Exit(1)


def _cost(spec: StudySpec, workers: int | None, as_json: bool) -> None:
    from loratlas.api.compare import study_cost

    output.note("Pricing a step of each arm on this machine.")
    priced = study_cost(spec, workers=workers)
    if as_json:
        output.emit({"schema": "loratlas.study_cost", "version": 1, "name": spec.name, **priced.to_json()})
        return
    drawn = output.table(f"{spec.name}, {spec.steps} steps a run", ("", "right"))
    drawn.add_row("runs, at least", formats.count(priced.runs))
    drawn.add_row("training steps", formats.count(priced.steps))
    drawn.add_row("processes that train", formats.count(priced.workers))
    drawn.add_row(
        "time", "not predicted" if priced.seconds is None else f"about {formats.duration(priced.seconds)}"
    )
    drawn.add_row("memory of all processes", _about(priced.memory_bytes))
    drawn.add_row("of it a run's own step, with the base", _about(priced.peak_bytes))
    drawn.add_row("disk, at most", formats.data_size(priced.disk_bytes))
    output.show(drawn)
    output.say("Nothing was trained. More runs follow where a best rate lies at an end of the grid.")


def _about(size: int | None) -> str:
    return "not predicted" if size is None else f"about {formats.data_size(size)}"


def _read(folder: Path) -> Mapping[str, Any]:
    from loratlas.sealed_json import read_sealed
    from loratlas.study.results.study_result import load_study

    if not folder.is_file():
        return load_study(folder).to_json()
    try:
        return read_sealed(folder)
    except (ValueError, OSError) as error:
        raise SpecError(
            given=str(folder), found=str(error), instead="what `loratlas study --json` printed"
        ) from error


def _name(arm: str, width: int = 12) -> str:
    """An arm's name for a narrow column: a long one goes on below, after a hyphen where it has one.

    >>> _name("feedforward-list").split("\\n"), _name("attention")
    (['feedforward-', 'list'], 'attention')
    """
    if len(arm) <= width:
        return arm
    at = arm.rfind("-", 0, width) + 1 or arm.rfind("_", 0, width) + 1 or width
    return f"{arm[:at]}\n{_name(arm[at:], width)}"


def _show(data: Mapping[str, Any]) -> None:
    arms = output.table(
        "arm", "placement", ("trainable", "right"), ("rate", "right"), ("loss", "right"), "95 % interval"
    )
    for arm in data["arms"]:
        arms.add_row(
            _name(arm["name"]),
            arm["placement"],
            formats.count(arm["trainable"]),
            f"{arm['lr']:g}" if arm.get("lr") else "–",
            _number(arm.get("nll")),
            _interval(arm.get("ci")),
        )
    output.show(arms)
    if data.get("head"):
        output.say(
            f"trainable: adapters; the head, {formats.count(data['head'])} parameters, trains in every arm."
        )
    reference = str(data.get("reference") or data["spec"]["reference"])
    table = output.table(
        f"against\n{_name(reference)}",
        "verdict",
        ("nats", "right"),
        "interval",
        ("p", "right"),
        ("steps\nsaved", "right"),  # narrow, so that the words in other columns stay whole at 80 columns
        ("detect-\nable", "right"),
    )
    table.columns[0].min_width = table.columns[1].min_width = len("undetermined")
    undetermined = [one["arm"] for one in data["findings"] if one["verdict"] == "undetermined"]
    notes = {arm: f"({number}) " for number, arm in enumerate(undetermined, 1)}
    for finding in data["findings"]:
        table.add_row(
            _name(finding["arm"]),
            f"{finding['verdict']} {notes.get(finding['arm'], '')}".rstrip()
            + "\nflips" * bool(finding.get("flips")),
            _number(finding["difference"], sign=True),
            _interval(finding["ci"], sign=True),
            "–" if finding["p_holm"] is None else formats.probability(finding["p_holm"]),
            _steps(finding.get("steps_saved")),
            _number(finding["detectable"]),
        )
    output.show(table)
    scopes = {finding.get("scope") for finding in data["findings"]}
    shared = scopes.pop() if len(scopes) == 1 and len(data["findings"]) > 1 else None
    for finding in data["findings"]:
        caveat = f" {finding['caveat']}" if finding.get("caveat") else ""
        said = f"{finding['statement']}.{caveat}" if shared else finding["sentence"]
        output.say(f"{notes.get(finding['arm'], '')}{said}")  # of what is undetermined it names the reason
        for sentence in finding.get("flip_sentences", ()):
            output.say(f"  flips: {sentence}")
    if shared:
        output.say(f"All of them: {shared}.")
    _show_side_metrics(data)
    rows = (data.get("task") or {}).get("name") == "classification"
    output.say(
        f"nats: loss per {'row' if rows else 'answer token'}, less than the reference's is better; p: for all "
        "comparisons together, as the interval is;"
    )
    output.say("steps saved: how many more steps the reference would have needed; of a worse arm, fewer;")
    output.say("detectable: the difference that this study would have found with 80 % power.")
    for remark in data.get("notes", ()):
        output.note(remark)


def _show_side_metrics(data: Mapping[str, Any]) -> None:
    """What was measured besides the loss: the task, and rows that no arm was trained for."""
    metrics = next((arm["metrics"] for arm in data["arms"] if arm.get("metrics")), ())
    forgetting = any(arm.get("forgetting") for arm in data["arms"])
    if not (metrics or forgetting):
        return
    from loratlas.study.results.side_metrics import METRICS

    columns: list[Any] = ["arm"]
    for metric in metrics:
        columns += [(METRICS[metric["name"]].words, "right"), "95 % interval"]
    if forgetting:
        columns += [("before", "right"), ("after", "right"), ("forgetting", "right"), "95 % interval"]
    drawn = output.table(*columns)
    for arm in data["arms"]:
        cells = [arm["name"]]
        for index in range(len(metrics)):
            shown = arm["metrics"][index] if arm.get("metrics") else {}
            cells += [_number(shown.get("value")), _interval(shown.get("ci"))]
        if forgetting:
            shown = arm.get("forgetting") or {}
            cells += [_number(shown.get(name)) for name in ("before", "after")]
            cells += [_number(shown.get("change"), sign=True), _interval(shown.get("ci"), sign=True)]
        drawn.add_row(*cells)
    output.show(drawn)
    if forgetting:
        source = data["data"]["forgetting"]["source"]
        rows = (data.get("task") or {}).get("name") == "classification"
        output.say(
            f"forgetting: loss per {'row' if rows else 'token'} on rows of {source}, which no arm was trained for, "
            "after − before."
        )


def _number(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else formats.signed(value) if sign else formats.loss(value)


def _interval(ends: Any, *, sign: bool = False) -> str:
    if not ends or ends[0] is None or ends[1] is None:
        return "–"
    return " to ".join(_number(end, sign=sign) for end in ends)


def _steps(saved: Mapping[str, float | None] | None) -> str:
    if not saved or saved["value"] is None:
        return "–"
    ends = ["?" if (end := saved[name]) is None else formats.whole(end) for name in ("low", "high")]
    return f"{formats.whole(saved['value'])}\n{ends[0]} to\n{ends[1]}"
