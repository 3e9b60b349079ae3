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

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from loratlas.errors import SpecError

FEWEST_TUNING_ROWS = 500
FEWEST_TUNING_SEEDS = 2
WIDEST_FACTOR = 3.0
BESIDE = ("metric", "forgetting")
"""Keys of what is measured beside the loss; none of them changes a run's training."""

WRITTEN = ("exact_match", "rouge_l")
"""Metrics of answers that a model writes."""

UNSAID = (*BESIDE, "task")
"""Keys that a study without them does not have, so that it is the study that it was before they existed."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataSpec(_Part):
    """Where rows come from and which of their tokens count."""

    train: str = Field(min_length=1)
    eval: str | None = None
    split: str | None = None
    eval_split: str | None = None
    map: dict[str, str] = Field(default_factory=dict)
    limit: Count | None = None
    loss: Literal["answer", "all"] = "answer"


class ArmSpec(_Part):
    """One contestant: a placement and what is special about its training."""

    placement: str = Field(min_length=1)
    alpha: Positive | None = None
    rslora: bool = False
    dropout: Share = 0.0
    init: bool | str = True
    loraplus: Positive | None = None
    budget: str | None = None


class TuningSpec(_Part):
    """How the learning rate of every arm is chosen."""

    seeds: Count = 2
    rows: Count = FEWEST_TUNING_ROWS
    extensions: Annotated[int, Field(ge=0, le=10)] = 2
    """How often everyone's grid may grow on each side when an optimum lies at its edge."""


class EvaluationSpec(_Part):
    """What the findings stand on."""

    seeds: Annotated[int, Field(ge=2)] = 5
    rows: Annotated[int, Field(ge=2)] = 1000


class ForgettingSpec(_Part):
    """Rows that no arm is trained for: their loss before and after says what an adapter costs elsewhere."""

    data: str = Field(min_length=1)
    split: str | None = None
    map: dict[str, str] = Field(default_factory=dict)
    rows: Annotated[int, Field(ge=2)] = 200
    loss: Literal["answer", "all"] = "all"


class MetricSpec(_Part):
    """A measure of the task itself, taken on the first evaluation rows after every evaluation run."""

    name: Literal["exact_match", "rouge_l", "accuracy", "macro_f1"]
    """The first two are of written answers (ROUGE-L counts exact matches as well). A classification tells the other
    two of all evaluation rows whatever is written here, the one that is named first."""
    rows: Annotated[int, Field(ge=2)] = 100
    max_new_tokens: Count = 64


def _forgetting(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


def _metric(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _arm(value: Any) -> Any:
    return {"placement": value} if isinstance(value, str) else value


def _switch(value: Any) -> Any:
    # YAML reads a bare `on` as true and `off` as false.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class StudySpec(_Part):
    """Everything that decides a study's numbers; what is not in here (workers, folders) does not."""

    name: str = "study"
    model: str = Field(min_length=1)
    task: Literal["causal", "seq2seq", "classification"] | None = None
    """What the rows are for; told from their fields and the architecture unless given."""
    data: DataSpec
    arms: dict[str, Annotated[ArmSpec, BeforeValidator(_arm)]] = Field(min_length=2)
    reference: str = ""
    match: Annotated[Literal["params", "time", "memory", "none"], BeforeValidator(lambda v: v or "none")] = (
        "none"
    )
    budget: str | None = None
    learning_rates: tuple[Positive, ...] = Field(default=(1e-4, 3e-4, 9e-4, 2.7e-3, 8.1e-3), min_length=1)
    tuning: TuningSpec = TuningSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    metric: Annotated[MetricSpec | None, BeforeValidator(_metric)] = None
    forgetting: Annotated[ForgettingSpec | None, BeforeValidator(_forgetting)] = None
    steps: Count = 200
    batch_size: Count = 16
    micro_batch: Count | None = None
    subset: Count | None = None
    max_length: Annotated[int, Field(ge=2)] = 512
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.03
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    clip: Positive | None = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    packing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    compile: Annotated[Literal["on", "off"], BeforeValidator(_switch)] = "off"
    """Never by a run's own judgement: that goes by its pace, and a study's numbers must not depend on the machine's."""
    checkpointing: bool = False
    base_dropout: bool = False
    allow_unresolved: bool = False
    delta: Positive = 0.01
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    demonstration: bool = False

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        # "Default: all linear layers": the one arm whose placement is the set `all`, whatever its rank.
        if isinstance(values, dict) and not values.get("reference") and isinstance(values.get("arms"), dict):
            texts = {name: _arm(arm) for name, arm in values["arms"].items()}
            whole = [
                name
                for name, arm in texts.items()
                if isinstance(arm, Mapping)
                and str(arm.get("placement", "")).partition(":")[0].strip() == "all"
            ]
            if len(whole) == 1:
                return {**values, "reference": whole[0]}
        return values

    @property
    def folder(self) -> Path | None:
        """Folder of the file this was read from; relative data paths start there."""
        return self._folder

    @property
    def digest(self) -> str:
        """16 hex digits over the normalised spec, δ included: another digest is another study."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The spec with all defaults written out; ``${NAME}`` stays as written: no machine is in it.

        What was not asked for (compiling, measures beside the loss, unknown matrices) is left out: a study without it
        is the study that it was before this could be asked, digest included.
        """
        whole = self.model_dump(mode="json")
        if whole["compile"] == "off":
            del whole["compile"]
        if not self.allow_unresolved:
            del whole["allow_unresolved"]
        return {key: value for key, value in whole.items() if key not in UNSAID or value is not None}


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
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_spec(path: str | Path) -> StudySpec:
    """Read a study's file.

    Raises:
        SpecError: no such file, broken YAML (with its line), an unknown key, a value out of range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        raise SpecError(
            given=f"the study file {path}", found=why, instead="the path of a YAML file"
        ) from error
    return parse_spec(text, name=path.stem, folder=path.resolve().parent, where=str(path))


def parse_spec(
    source: str | Mapping[str, Any],
    *,
    name: str | None = None,
    folder: Path | None = None,
    where: str = "the study",
) -> StudySpec:
    """Check a study's text or mapping.

    Args:
        source: YAML text, or what it would parse to.
        name: the study's name where the text has none.
        folder: where relative data paths start.
        where: how error messages call the source.

    Raises:
        SpecError: see :func:`load_spec`.
    """
    values = _yaml(source, where) if isinstance(source, str) else dict(source)
    if not isinstance(values, dict):
        raise SpecError(
            given=where,
            found=f"{'nothing' if values is None else 'a ' + type(values).__name__}, not keys with values",
            instead="lines like `model: demo:llama-mini`",
        )
    if name and not values.get("name"):
        values = {**values, "name": name}
    try:
        spec = StudySpec.model_validate(values)
    except ValidationError as error:
        raise _sentence(error, where) from None
    _check(spec, where)
    spec._folder = folder
    return spec


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueLoader)  # a SafeLoader: only plain data
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" on line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(
            given=where, found=f"broken YAML{line}: {problem}", instead="one `key: value` a line"
        ) from None


def _sentence(error: ValidationError, where: str) -> SpecError:
    """The first trouble as a sentence; unknown keys come first, for a misspelt key is also a missing one."""
    problems = error.errors()
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in first["loc"])
    more = f" ({len(problems) - 1} more after it)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in first["loc"])
        valid = _keys(parents)
        near = get_close_matches(key, valid, n=1, cutoff=0.4)
        nearest = ".".join([*parents, near[0]]) if near else f"one of {', '.join(valid)}"
        return SpecError(given=f"{path} in {where}", found=f"an unknown key{more}", instead=nearest)
    if first["type"] == "missing":
        return SpecError(given=where, found=f"no {path}{more}", instead=f"{path}: {_EXAMPLES.get(path, '…')}")
    given = f"{path}: {_short(first['input'])} in {where}" if path else where
    return SpecError(given=given, found=f"{first['msg']}{more}", instead=_instead(first))


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
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _check(spec: StudySpec, where: str) -> None:
    """What takes more than one field to judge."""
    for given, found, instead in _faults(spec):
        raise SpecError(given=f"{given} in {where}", found=found, instead=instead)


def _faults(spec: StudySpec) -> Iterator[tuple[str, str, str]]:
    names = ", ".join(spec.arms)
    if not spec.reference:
        yield (
            "no reference",
            f"no arm, or more than one, is `all`; the arms are {names}",
            "reference: one of them",
        )
    elif spec.reference not in spec.arms:
        near = get_close_matches(spec.reference, spec.arms, n=1, cutoff=0.3)
        yield (
            f"reference: {spec.reference!r}",
            f"no arm has this name; the arms are {names}",
            f"reference: {near[0] if near else next(iter(spec.arms))}",
        )
    for name in spec.arms:
        if not name.strip() or any(character in name for character in "/\\\n\t"):
            yield f"arms.{name}", "a name that is empty or holds a slash", "a short plain name"
    rates = spec.learning_rates
    if list(rates) != sorted(set(rates)):
        yield f"learning_rates: {list(rates)}", "rates that repeat or do not rise", str(sorted(set(rates)))
    wide = [(a, b) for a, b in pairwise(rates) if b / a > WIDEST_FACTOR * (1 + 1e-9)]
    if wide and not spec.demonstration:
        a, b = wide[0]
        yield (
            f"learning_rates: {list(rates)}",
            f"{a:g} and {b:g} are a factor of {b / a:.3g} apart, so that the best rate may lie between them",
            f"rates at most a factor of {WIDEST_FACTOR:g} apart, e.g. {a:g}, {a * WIDEST_FACTOR:g}, "
            f"{a * WIDEST_FACTOR**2:g} (or demonstration: true)",
        )
    if spec.tuning.rows < FEWEST_TUNING_ROWS and not spec.demonstration:
        yield (
            f"tuning.rows: {spec.tuning.rows}",
            "too few rows to choose a learning rate on",
            f"{FEWEST_TUNING_ROWS} or more (or demonstration: true)",
        )
    if spec.tuning.seeds < FEWEST_TUNING_SEEDS and not spec.demonstration:
        yield (
            f"tuning.seeds: {spec.tuning.seeds}",
            "one seed cannot tell a good rate from a lucky one",
            f"{FEWEST_TUNING_SEEDS} or more (or demonstration: true)",
        )
    written = spec.metric is not None and spec.metric.name in WRITTEN
    if spec.metric is not None and written and spec.metric.rows > spec.evaluation.rows:
        yield (
            f"metric.rows: {spec.metric.rows}",
            f"{spec.evaluation.rows} evaluation rows to take them from",
            f"{spec.evaluation.rows} or less",
        )
    if spec.data.eval is None and spec.data.eval_split is None and not spec.data.train.startswith("demo:"):
        yield (
            f"data.train: {spec.data.train!r}",
            "no rows to evaluate on: neither data.eval nor data.eval_split",
            "data.eval: another file, or data.eval_split: another split of the same source",
        )


def grid(spec: StudySpec, *, below: int, above: int) -> tuple[float, ...]:
    """The candidates after so many extensions on each side, by the spec's own factor at that edge.

    The factor of a single rate is 3. Rates are rounded to 6 significant digits: they print as they are.

    >>> spec = parse_spec({"model": "m", "data": {"train": "a", "eval": "b"}, "learning_rates": [1e-3, 3e-3],
    ...                    "arms": {"full": "all", "q": "q"}})
    >>> grid(spec, below=1, above=2)
    (0.000333333, 0.001, 0.003, 0.009, 0.027)
    """
    rates: list[float] = list(spec.learning_rates)
    low = rates[1] / rates[0] if len(rates) > 1 else WIDEST_FACTOR
    high = rates[-1] / rates[-2] if len(rates) > 1 else WIDEST_FACTOR
    lower = [_rounded(rates[0] / low**k) for k in range(below, 0, -1)]
    upper = [_rounded(rates[-1] * high**k) for k in range(1, above + 1)]
    return (*lower, *rates, *upper)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value


def seeds(spec: StudySpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tuning seeds and evaluation seeds, disjoint, drawn from the master seed.

    More seeds of one kind leave the first ones as they are.
    """
    import numpy as np

    def draw(stream: np.random.SeedSequence, count: int, first: int) -> tuple[int, ...]:
        random = np.random.Generator(np.random.PCG64(stream))
        found: dict[int, None] = {}
        while len(found) < count:
            found[first + int(random.integers(0, 2**30))] = None
        return tuple(found)

    # Tuning seeds lie in [0, 2³⁰) and evaluation seeds in [2³⁰, 2³¹): never the same number.
    tuning, evaluation = np.random.SeedSequence(spec.seed).spawn(2)
    return draw(tuning, spec.tuning.seeds, 0), draw(evaluation, spec.evaluation.seeds, 2**30)
