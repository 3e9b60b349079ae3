"""The list of commands. Nothing here, nor in the commands' files, imports torch before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from loratlas.cli import (
    audit_log,
    check_lint,
    evaluate,
    export,
    mapping,
    scan,
    show_shrink,
    study,
    train,
)

ABOUT = "\n\n".join(
    (
        "Where in this transformer should LoRA go, for this data, under this budget?",
        "map shows what can be adapted, plan counts what a placement costs, scan measures where adapters help most, "
        "train and eval do one run, study compares placements with confidence intervals, export writes the "
        "adapter for other tools; show measures its updates, shrink makes it smaller.",
        "Every command takes --json and then prints one JSON object. Exit codes: 0 done, 1 a check failed, "
        "2 the request was wrong, 3 the run failed, 130 stopped by Ctrl-C or SIGTERM.",
    )
)


def build() -> Any:
    """The whole command line as one typer command."""
    app = typer.Typer(
        name="loratlas",
        help=ABOUT,
        epilog="Example: loratlas plan gpt2-medium --placement attention:16",
        rich_markup_mode="rich",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_front)
    for name, function, example in (
        ("map", mapping.map_model, "loratlas map gpt2-medium"),
        (
            "plan",
            mapping.plan_model,
            'loratlas plan gpt2-medium --placement "feedforward.down" --budget params=1M',
        ),
        ("scan", scan.scan, "loratlas scan demo:llama-mini demo:facts-300 --budget like=all:1"),
        (
            "train",
            train.train,
            "loratlas train demo:llama-mini demo:facts-300 --placement all:8 --steps 100 --out run",
        ),
        ("eval", evaluate.evaluate, "loratlas eval demo:llama-mini demo:facts-300 --adapter run"),
        (
            "audit-log",
            audit_log.audit_log,
            "loratlas audit-log out/trainer_state.json rows.jsonl --model gpt2 --adapter out",
        ),
        ("study", study.study, "loratlas study demo:facts --out facts-study"),
        ("report", study.report, "loratlas report facts-study"),
        ("claims", study.claims, "loratlas claims --out claims.md"),
        ("demo", study.demo, "loratlas demo"),
        ("export", export.export, "loratlas export run --for merged --out model"),
        ("check", check_lint.check_adapter, "loratlas check run --for vllm --for llama.cpp"),
        ("lint", check_lint.lint_config, "loratlas lint adapter_config.json gpt2-medium"),
        ("show", show_shrink.show_adapter, "loratlas show run"),
        (
            "shrink",
            show_shrink.shrink_adapter,
            "loratlas shrink run --budget params=100k --eval demo:facts-300 --out small",
        ),
    ):
        app.command(name, help=_paragraphs(function), epilog=f"Example: {example}")(function)
    return typer.main.get_command(app)


def _paragraphs(function: Callable[..., Any]) -> str:
    """A docstring with one line per paragraph, so that the terminal's width decides where lines break."""
    return "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))


def _print_version(wanted: bool) -> None:
    if wanted:
        from loratlas import __version__

        typer.echo(f"loratlas {__version__}")
        raise typer.Exit


def _front(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass
