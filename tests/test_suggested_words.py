"""What errors suggest can be typed: every command, option and value in every ``instead=`` of the source exists.

Suggested placements are typed one by one in tests/placement/test_suggestions.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.tiny import tiny_config

from loratlas.anatomy.read import read
from loratlas.cli.app import build
from loratlas.data.load_rows import load_rows
from loratlas.errors import LoratlasError, python_spelling
from loratlas.integrations.emit_plan import emit
from loratlas.placement.budget import parse_budget
from loratlas.placement.language import parse
from loratlas.placement.plan import place
from loratlas.serving.engine_registry import engine_of
from loratlas.study.spec.spec_file import parse_spec
from loratlas.training.settings import Settings

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "loratlas"
GAP = "…"
"""Where a text takes its words from what was given."""

COMMAND = re.compile(r"loratlas ([a-z]+(?:-[a-z]+)?)\b([^`,;]*)")
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])(?:[ =]([^\s`,;()]+))?")
BUDGET = re.compile(r"(?<![\w-])(?:params|time|memory|like)=[\w.%:,+-]*[\w%]")
FOREIGN = re.compile(r"\b(?:llama-[\w-]+|torchrun)[^,;`]*")
"""Commands of other tools, with their options."""


Look = Callable[[ast.expr], list[str]]
"""Looks up the texts that an expression stands for which is no text itself."""


def texts_of(node: ast.expr, look: Look = lambda node: [GAP]) -> list[str]:
    """The texts that an expression can be, with `GAP` for what is filled in."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [GAP]
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else GAP for v in node.values)]
    if isinstance(node, ast.IfExp):
        return texts_of(node.body, look) + texts_of(node.orelse, look)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in texts_of(node.left, look) for b in texts_of(node.right, look)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts_of(value, look)]
    return look(node)


@dataclass(frozen=True, eq=False)
class Source:
    """One file of the package, and what its expressions can be.

    Args:
        path: below ``src/loratlas``.
    """

    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse((PACKAGE / self.path).read_text(encoding="utf-8"))

    @cached_property
    def names(self) -> dict[str, Any]:
        """Of its module, with their values."""
        words = self.path.with_suffix("").parts
        return vars(import_module(".".join(("loratlas", *words)).removesuffix(".__init__")))

    @cached_property
    def functions(self) -> list[ast.FunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]

    def suggestions(self) -> Iterator[tuple[str, list[str]]]:
        """(where, texts) of every ``instead=``."""
        for keyword in [word for call in self.calls for word in call.keywords if word.arg == "instead"]:
            inside = self.function_of(keyword.value)
            yield f"{self.path}:{keyword.value.lineno}", self.texts(keyword.value, inside)

    def function_of(self, node: ast.expr) -> ast.FunctionDef | None:
        """The innermost function around an expression."""
        around = [f for f in self.functions if any(inner is node for inner in ast.walk(f))]
        return around[-1] if around else None

    def texts(self, node: ast.expr, inside: ast.FunctionDef | None, deep: int = 0) -> list[str]:
        """What an expression can be, looked up where it is a name or a call of a function that stands in this file."""
        if deep > 4:
            return [GAP]

        def look(node: ast.expr) -> list[str]:
            if isinstance(node, ast.Name) and inside is not None:
                given = self.passed(inside, node.id)
                given += [(self, one, inside) for one in assigned(inside, node.id)]
                given += [(self, one, f) for one, f in self.yielded(inside, node.id)]
                if given:
                    return [text for of, value, f in given for text in of.texts(value, f, deep + 1)]
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            for function in self.functions:
                if function.name == called:
                    returns = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
                    return [text for value in returns for text in self.texts(value, function, deep + 1)]
            free = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            free -= {one.id for loop in ast.walk(node) if isinstance(loop, ast.comprehension)
                     for one in ast.walk(loop.target) if isinstance(one, ast.Name)}  # fmt: skip
            if free <= set(self.names):
                value = eval(compile(ast.Expression(node), str(self.path), "eval"), self.names)
                return [value] if isinstance(value, str) else [GAP]
            return [GAP]

        return texts_of(node, look)

    def passed(self, function: ast.FunctionDef, name: str) -> list[Given]:
        """What callers pass for a parameter: those of this file, and of all where no other function has its name."""
        listed = [argument.arg for argument in function.args.args]
        if name not in [*listed, *(argument.arg for argument in function.args.kwonlyargs)]:
            return []
        namesakes = sum(one.name == function.name for source in SOURCES for one in source.functions)
        given: list[Given] = []
        for source in SOURCES if namesakes == 1 else [self]:
            for call in source.calls:
                if isinstance(call.func, ast.Name) and call.func.id == function.name:
                    by_name = [word.value for word in call.keywords if word.arg == name]
                    at = listed.index(name) if name in listed else len(call.args)
                    values = by_name or call.args[at : at + 1]
                    given += [(source, value, source.function_of(call)) for value in values]
        return given

    def yielded(self, inside: ast.FunctionDef, name: str) -> Iterator[tuple[ast.expr, ast.FunctionDef]]:
        """What a function of this file yields for a name of ``for given, found, instead in function(…)``."""
        for loop in ast.walk(inside):
            if not (isinstance(loop, ast.For) and isinstance(loop.target, ast.Tuple)):
                continue
            names = [one.id if isinstance(one, ast.Name) else "" for one in loop.target.elts]
            called = getattr(getattr(loop.iter, "func", None), "id", None)
            for function in self.functions if name in names else []:
                for node in ast.walk(function) if function.name == called else []:
                    if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                        yield node.value.elts[names.index(name)], function


Given = tuple[Source, ast.expr, ast.FunctionDef | None]
"""An expression, the file that it stands in, and the function."""

SOURCES = [Source(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))]


def assigned(function: ast.FunctionDef, name: str) -> list[ast.expr]:
    """What a function assigns to one of its names."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and name in [one.id for one in node.targets if isinstance(one, ast.Name)]
    ]


def suggested() -> Iterator[tuple[str, str]]:
    """(where, text) of every ``instead=`` in the source."""
    for source in SOURCES:
        for where, texts in source.suggestions():
            yield from ((where, text) for text in texts)


SUGGESTED = sorted(set(suggested()))
APP: Any = build()


def options(command: str) -> dict[str, Any]:
    """Option → its parameter."""
    return {
        name.removeprefix("--"): parameter
        for parameter in APP.commands[command].params
        for name in parameter.opts
        if name.startswith("--")
    }


OPTIONS: dict[str, list[tuple[str, Any]]] = {}
"""Option → (command, parameter) of all that have it."""
for _command in APP.commands:
    for _name, _parameter in options(_command).items():
        OPTIONS.setdefault(_name, []).append((_command, _parameter))


def is_typed(value: str) -> bool:
    """Whether a word is meant as it stands: no placeholder such as DIR or N, no part of a sentence."""
    return not value.isupper() and GAP not in value and value not in ENGLISH


ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "with without and or as to for instead of alone that there from in on is are it was has takes than before if "
        "both then only where which by names lists says",
    )
)
"""Words that may follow an option in a sentence."""


def accepts(option: str, value: str) -> bool:
    """Whether a command takes this value for this option."""
    for command, parameter in OPTIONS[option]:
        context = typer.Context(APP.commands[command])
        try:
            parameter.process_value(context, [value] if parameter.multiple else value)
        except Exception as problem:
            if not hasattr(problem, "format_message"):  # not what typer says of a wrong value
                raise
        else:
            return True
    return False


def test_texts_are_seen():
    assert len(SUGGESTED) >= 450
    assert sum("--" in text for _, text in SUGGESTED) >= 100


MADE_ELSEWHERE = {
    "adapters/resizable.py": "the nearest sites of this model; tests/adapters/test_resize.py",
    "adapters/stored/lora_options.py": "bounds of a field; tests/adapters/test_expressions.py",
    "cli/__init__.py": "the nearest value of an option; tests/cli/test_bad_input.py",
    "data/records/folder_configs.py": "the rows as they were named, without what is not there; typed below",
    "data/records/source_records.py": "the same",
    "errors.py": "the base class, and an error that another process hands over",
    "integrations/emit_plan.py": "the nearest of the trainers; typed below",
    "lint/header_rules.py": "names of this adapter; tests/lint/test_header_rules.py",
    "lint/lint_config.py": "names of this model; tests/lint/test_lint_config.py tries what is suggested",
    "lint/name_rules.py": "the same",
    "lint/value_rules.py": "the same",
    "placement/terms.py": "placements; tests/placement/test_suggestions.py types every one",
    "serving/ask_server.py": "a name that the server itself lists, in the same sentence",
    "serving/engine_registry.py": "the nearest of the engines; typed below",
    "study/execution/worker_pool.py": "an error that a worker hands over",
    "study/spec/spec_checks.py": "the bound that the value is compared with",
    "study/spec/spec_file.py": "the nearest key, an example or a bound; typed below",
    "training/settings.py": "the values that exist, or the bounds; typed below",
}
"""Files where a text comes from what was given → what it is, and where it is tried."""


def test_what_is_made_of_the_input_is_accounted_for():
    assert {where.partition(":")[0] for where, text in SUGGESTED if text.strip() == GAP} == set(
        MADE_ELSEWHERE
    )


def refused(attempt: Callable[[], Any]) -> str:
    """What an error says to write instead."""
    with pytest.raises(LoratlasError) as caught:
        attempt()
    return caught.value.instead


@pytest.mark.parametrize("name", ["schedule", "dtype", "packing", "compile", "site_rates", "report_to"])
def test_settings_take_what_they_suggest(name: str):
    def made(word: str) -> Settings:
        return Settings(**{"lr": 1e-3, name: (word,) if name == "report_to" else word})

    for word in refused(lambda: made("no such word")).split(" or "):
        assert getattr(made(word), name) in (word, (word,))


def test_the_nearest_engine_and_trainer_exist():
    config = tiny_config("llama")
    anatomy = read(config)
    plan = place(anatomy, "q,v:4")
    assert engine_of(refused(lambda: engine_of("vlm")))
    near = refused(lambda: emit(plan, anatomy, config, "unslot", model="m"))
    assert emit(plan, anatomy, config, near, model="m").text


STUDY = {
    "name": "x",
    "model": "m",
    "data": {"train": "a", "eval": "b"},
    "arms": {"full": "all:1", "q": "q:1"},
}


@pytest.mark.parametrize("missing", ["model", "data", "arms"])
def test_a_study_takes_the_example_of_a_key_that_it_lacks(missing: str):
    kept = {key: value for key, value in STUDY.items() if key != missing}
    example = yaml.safe_load(refused(lambda: parse_spec(kept)))
    if missing == "data":
        example["data"]["eval"] = "b"  # which has no default either
    assert parse_spec(kept | example).to_json()[missing]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"stepz": 9}, "steps"), ({"data": {"trian": "a", "eval": "b"}}, "data.train"), ({"lerning_rates": [0.1]}, "")],
)  # fmt: skip
def test_a_study_takes_the_key_that_is_nearest(wrong: dict[str, Any], key: str):
    near = refused(lambda: parse_spec(STUDY | wrong))
    assert near == (key or "learning_rates")
    assert near.partition(".")[0] in type(parse_spec(STUDY)).model_fields


def test_rows_are_read_by_the_name_that_is_suggested(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": "a"}\n')
    name = str(tmp_path / "rows")
    assert load_rows(refused(lambda: load_rows(f"{name}:small"))).rows


@pytest.mark.parametrize(("where", "text"), SUGGESTED, ids=[where for where, _ in SUGGESTED])
def test_what_is_suggested_exists(where: str, text: str):
    for name, rest in COMMAND.findall(text):
        if name in APP.commands:
            for option, _ in OPTION.findall(rest):
                assert option in options(name) or option in OPTIONS, f"loratlas {name} has no --{option}"
        else:
            assert "`" not in text or f"`loratlas {name}" not in text, f"no command {name}"
    for option, value in OPTION.findall(FOREIGN.sub("", text)):
        assert option in OPTIONS or option == "help", f"no command has --{option}"
        flag = any(parameter.is_flag for _, parameter in OPTIONS.get(option, []))
        if value and is_typed(value.rstrip(".:")) and not flag and option in OPTIONS:
            word = value.rstrip(".:").strip("'\"")
            assert accepts(option, word), f"--{option} takes no {word}"
            if option == "placement" and word != "auto":
                assert parse(word).terms
    for budget in BUDGET.findall(text):
        if GAP not in budget and text.partition(budget)[2][:1] != GAP:
            assert parse_budget(budget).quantity


@pytest.mark.parametrize(("where", "text"), SUGGESTED, ids=[where for where, _ in SUGGESTED])
def test_what_is_suggested_can_be_said_in_python(where: str, text: str):
    """A Python caller reads arguments; what stays an option there is a command in backticks."""
    text = FOREIGN.sub("", text)
    said = re.sub(r"`[^`]*`|loratlas [a-z]+-?[a-z]* [^,;]*", "", python_spelling(text))
    assert not OPTION.search(said), said


def test_a_word_that_does_not_exist_is_seen():
    assert texts_of(ast.parse("f'--lr {x}' if a else 'b'", mode="eval").body) == ["--lr …", "b"]
    assert not accepts("dtype", "float31")
    assert accepts("dtype", "float32")
    assert not accepts("steps", "some")
    assert OPTION.findall("--placement all:8, or --from DIR") == [("placement", "all:8"), ("from", "DIR")]
    assert BUDGET.findall("`params=1M`, or --budget like=q,v:4") == ["params=1M", "like=q,v:4"]
