"""`check` and `lint`: what engines would do with an adapter, and what a LoraConfig would do to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loratlas.cli import options, output
from loratlas.cli.base_name import Base, base_named


def check_adapter(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER",
            help="PEFT adapters' directories, or their adapter_config.json; or --out folders of `loratlas train`.",
            show_default=False,
        ),
    ],
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help="vllm, sglang, llama.cpp, …; may be repeated. All that are known unless given.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    base: Base = None,
    numbers: Annotated[
        bool | None,
        typer.Option(
            "--numbers/--no-numbers",
            help="Look for NaN and for updates that are 0; unless given, in files of at most 64 MiB.",
            show_default=False,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Also ask a running OpenAI-compatible server, with and without the adapter: http://localhost:8000.",
            show_default=False,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    served_adapter: Annotated[
        str | None,
        typer.Option(
            "--served-adapter",
            metavar="NAME",
            help="The adapter's name on that server.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    served_base: Annotated[
        str | None,
        typer.Option(
            "--served-base",
            metavar="NAME",
            help="The base's name on that server.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what serving engines would do with an adapter, and what is wrong with its files.

    Only headers are read: which tensors an engine drops, refuses, or scales by another factor than PEFT. Exit 1 where
    an engine is not right, or something was found.
    """
    from loratlas.api.check_adapter import check

    base = base_named(base)
    verdicts = [
        check(
            folder.parent if folder.name == "adapter_config.json" else folder,
            engines or (),
            base=base,
            numbers=numbers,
            url=url,
            served_adapter=served_adapter,
            served_base=served_base,
        )
        for folder in dict.fromkeys(adapters)
    ]
    if as_json and len(verdicts) == 1:
        output.emit(verdicts[0].to_json())
    elif as_json:
        output.emit(
            {"schema": "loratlas.checks", "version": 1, "adapters": [each.to_json() for each in verdicts]}
        )
    else:
        for each in verdicts:
            if len(verdicts) > 1:
                output.say(f"{each.adapter}:")
            output.say_blocks(each.blocks())
    if not all(each.good for each in verdicts):
        raise typer.Exit(1)


def lint_config(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="An adapter_config.json or its folder, or a YAML file with the fields of a LoraConfig.",
            show_default=False,
        ),
    ],
    model: options.ModelOrConfig,
    as_json: options.Json = False,
) -> None:
    """Look for faults in a LoraConfig before any training: names that match nothing, too much, or something else.

    No weights are needed. Exit 1 where something was found.
    """
    from loratlas.api.check_adapter import lint

    report = lint(config, base_named(model))
    if as_json:
        output.emit(report.to_json())
    else:
        output.say_blocks(report.blocks())
    if report.findings:
        raise typer.Exit(1)
