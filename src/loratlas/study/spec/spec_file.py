"""A study's file: one YAML document, checked by one schema.

An error names the field's path, the value given and what to write instead; an unknown key, the nearest
valid one.

>>> spec = parse_spec('''
... name: where
... model: demo:llama-mini
... data: {train: "demo:facts-300"}
... arms: {full: "all:8", attention: attention, feedforward: feedforward}
... match: params
... ''')
>>> spec.reference, spec.evaluation.seeds, spec.delta
('full', 5, 0.01)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from loratlas import demo
from loratlas.bounded_yaml import UnboundedError, load_yaml
from loratlas.errors import SpecError, printable
from loratlas.study.spec.spec_checks import check
from loratlas.study.spec.spec_sizes import on_files, sized
from loratlas.study.spec.study_spec import ArmSpec, StudySpec

LARGEST = 200_000
"""Characters of a study's file."""


class _UniqueLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the first value would be dropped silently."""


def _mapping(loader: _UniqueLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            continue
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {printable(str(key), 60)!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_OTHER_BASES = re.compile(r"[+-]?0[0-9_]+|.*:.*")
"""``0100`` is 64 and ``1:30`` is 90 to YAML 1.1, and to nobody who writes them."""


def _plain_number(loader: _UniqueLoader, node: yaml.ScalarNode) -> int | float:
    if _OTHER_BASES.fullmatch(node.value):
        problem = (
            f"{printable(node.value, 60)!r} is to YAML a number that is not to the base ten; plain digits, or quotes "
            "around a text"
        )
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    kind = node.tag.rpartition(":")[2]
    return getattr(yaml.SafeLoader, f"construct_yaml_{kind}")(loader, node)


_UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_UniqueLoader.add_constructor("tag:yaml.org,2002:int", _plain_number)
_UniqueLoader.add_constructor("tag:yaml.org,2002:float", _plain_number)


def load_spec(
    path: str | Path,
    *,
    size: str | None = None,
    model: str | None = None,
    train: str | None = None,
    eval: str | None = None,
    changes: Sequence[str] = (),
) -> StudySpec:
    """Read a study's file.

    Args:
        path: of the file; or ``demo:facts``, a recipe that comes with the package.
        size: one of its `sizes` (`loratlas.study.spec.spec_sizes`).
        model, train, eval: used instead of the file's base and rows.
        changes: ``KEY=VALUE`` each, over what the file says: a dotted key and a value in YAML, such as
            ``delta=0.02``, ``evaluation.seeds=8`` or ``learning_rates=[1e-3, 1e-2]``.

    Raises:
        SpecError: no such file or recipe, broken YAML (with its line), an unknown key, a value out of range.
    """
    path = _recipe(str(path)) if str(path).startswith(demo.PREFIX) else Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        raise SpecError(
            given=f"the study file {path}", found=why, instead="the path of a YAML file"
        ) from error
    where = str(path)
    values = _keys_of(text, where)
    if not values.get("name"):
        values = {**values, "name": path.stem}
    values = on_files(sized(values, size, where=where), model=model, train=train, eval=eval)
    values = _changed({**values}, changes)
    return parse_spec(values, folder=path.resolve().parent, where=where)


def _changed(values: Any, changes: Sequence[str]) -> Any:
    """A study's values with some of them replaced; the rest, and what is wrong with it, stays as it is."""
    for change in changes:
        key, equals, value = change.partition("=")
        if not (key.strip() and equals):
            raise SpecError(
                given=f"--set {printable(change, 60)}", found="no KEY=VALUE", instead="--set delta=0.02"
            )
        *above, last = key.strip().split(".")
        inner = values
        for name in above:
            if isinstance(inner, dict):
                inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SpecError(
                given=f"--set {printable(change, 60)}",
                found=f"{'.'.join(above) or 'a file'} without keys of its own",
                instead="a key that docs/guide/studies.md lists",
            )
        inner[last] = _yaml(value, f"--set {printable(change, 60)}")
    return values


def _recipe(name: str) -> Path:
    path = demo.recipe_path(name)
    if path is None:
        named = [f"{demo.PREFIX}{recipe}" for recipe in demo.RECIPES]
        raise SpecError(
            given=f"the study {name}",
            found=f"the recipes of the package are {', '.join(named)}",
            instead=f"{named[0]}, or the path of a YAML file",
        )
    return path


def parse_spec(
    source: str | Mapping[str, Any],
    *,
    name: str | None = None,
    folder: Path | None = None,
    where: str = "the study",
    kept: bool = False,
) -> StudySpec:
    """Check a study's text or mapping.

    Args:
        source: YAML text, or what it would parse to.
        name: the study's name where the text has none.
        folder: where relative data paths start.
        where: how error messages call the source.
        kept: whether a ledger or a result kept it: one that names no protocol is then of the first edition.

    Raises:
        SpecError: see :func:`load_spec`.
    """
    values = sized(_keys_of(source, where) if isinstance(source, str) else source, None, where=where)
    if kept:
        values = {"protocol": 1, **values}
    if name and not values.get("name"):
        values = {**values, "name": name}
    try:
        spec = StudySpec.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, where) from None
    check(spec, where, kept=kept)
    spec._folder = folder
    return spec


def _keys_of(text: str, where: str) -> dict[str, Any]:
    values = _yaml(text, where)
    if not isinstance(values, dict):
        raise SpecError(
            given=where,
            found=f"{'nothing' if values is None else 'a ' + type(values).__name__}, not keys with values",
            instead="lines like `model: demo:llama-mini`",
        )
    return values


def _yaml(text: str, where: str) -> Any:
    if len(text) > LARGEST:
        raise SpecError(
            given=where, found=f"more than {LARGEST:,} characters", instead="a study's file of a page or two"
        )
    try:
        return load_yaml(text, _UniqueLoader)
    except UnboundedError as error:
        raise SpecError(given=where, found=error.found, instead=error.instead) from None
    except RecursionError:
        raise SpecError(
            given=where, found="keys within keys without an end", instead="one `key: value` a line"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" on line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(
            given=where, found=f"broken YAML{line}: {printable(problem)}", instead="one `key: value` a line"
        ) from None


def _sentence(error: ValidationError, where: str) -> SpecError:
    """The first trouble as a sentence; unknown keys come first, for a misspelt key is also a missing one."""
    problems = error.errors()
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    path = ".".join(printable(str(part), 60) for part in first["loc"])
    more = f" ({len(problems) - 1} more after it)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, key = (printable(str(part), 60) for part in first["loc"])
        valid = _keys(parents)
        near = get_close_matches(key, valid, n=1, cutoff=0.4)
        nearest = ".".join([*parents, near[0]]) if near else f"one of {', '.join(valid)}"
        return SpecError(given=f"{path} in {where}", found=f"an unknown key{more}", instead=nearest)
    if first["type"] == "missing":
        return SpecError(given=where, found=f"no {path}{more}", instead=f"{path}: {_EXAMPLES.get(path, '…')}")
    given = f"{path}: {_short(first['input'])} in {where}" if path else where
    return SpecError(given=given, found=f"{printable(first['msg'])}{more}", instead=_instead(first))


_EXAMPLES = {
    "model": "demo:llama-mini",
    "data": "{train: demo:facts-300}",
    "data.train": "demo:facts-300",
    "arms": "{full: all:8, attention: attention:8}",
    "forgetting.data": "other-rows.jsonl.gz",
    "metric.name": "exact_match",
}


def _instead(problem: Any) -> str:
    context, kind = problem.get("ctx") or {}, problem["type"]
    if kind == "literal_error":
        return str(context["expected"])
    words = {
        "greater_than": "more than {gt}",
        "greater_than_equal": "{ge} or more",
        "less_than": "less than {lt}",
    }
    if kind in words:
        return "a number, " + words[kind].format(**context)
    if kind == "less_than_equal":
        return f"a number, {context['le']} or less"
    if kind == "finite_number":
        return "a finite number"
    if kind == "too_short":
        return f"at least {context['min_length']} of them"
    if kind.startswith(("int", "float", "bool", "string", "dict", "tuple", "model")):
        plain = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text"}
        plain |= {
            "dict": "keys with values",
            "tuple": "a list like [1e-3, 3e-3]",
            "model": "keys with values",
        }
        return next(text for start, text in plain.items() if kind.startswith(start))
    return "a value of the kind that docs/guide/studies.md lists"


def _keys(parents: list[str]) -> list[str]:
    """Valid keys at a path of the schema; the second part of ``arms.NAME`` may be any name."""
    if parents and parents[0] == "arms":
        return list(ArmSpec.model_fields)
    model: Any = StudySpec
    for part in parents:
        annotation = model.model_fields[part].annotation
        model = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)
    return list(model.model_fields)


def _short(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)) and len(value) > 20:
        return f"{len(value):,} values"
    return printable(repr(value), 60)
