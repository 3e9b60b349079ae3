"""How much work a LoraConfig's names and expressions are for PEFT: bounds on both, known before anything is matched.

Lists of names are compared with every module of a base, and several fields are regular expressions although they look
like names: the keys of ``rank_pattern`` and ``alpha_pattern``, ``layers_pattern`` and ``modules_to_save``. Python's
matcher tries one way after another and cannot be stopped, so that ``(a+)+`` or ``.*.*.*.*.*.*`` may never come back.
Here the ways are counted instead of tried: for every position in a name in how many ways it can be reached. That
takes time polynomial in the name, whatever the expression.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from re import _compiler, _parser  # pyright: ignore[reportAttributeAccessIssue]
from re import _constants as op  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

MOST_FIELDS = 1_000
"""Fields of a config; PEFT has some fifty."""

MOST_NAMES = 10_000
"""Entries of a list; the largest models have some thousand matrices with a module of their own."""

MOST_KEYS = 2_000
"""Keys of a table of patterns: PEFT tries each on every adapted module."""

LONGEST = 200_000
"""Characters of all expressions of a config."""

MOST_STEPS = 200_000
"""Positions that matching one name may try: some hundredths of a second."""

MOST_COUNTED = 5_000_000
"""Positions that are counted for all expressions and names of a config: some seconds."""

_LISTS = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "modules_to_save",
    "layers_pattern",
    "layers_to_transform",
    "trainable_token_indices",
)
_TABLES = ("rank_pattern", "alpha_pattern")
_MOST_TOKENS = 1_000_000

_END_OF_NAME = r"(.*\.)?({})$"
_WRITTEN = {
    "rank_pattern": _END_OF_NAME,
    "alpha_pattern": _END_OF_NAME,
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(\d+)\.",
}
"""What PEFT matches against the names of modules, where that is more than what is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What is too much in a config.

    Args:
        where: the field.
        given: what is written there, cut.
        found: what is wrong with it.
        instead: what to write.
    """

    where: str
    given: str
    found: str
    instead: str


def excess(config: Mapping[str, Any]) -> Excess | None:
    """The first field that holds too many names, or an expression that is too long, does not parse or may never end.

    Args:
        config: fields of a LoraConfig, of any types.

    >>> excess({"target_modules": ["q_proj"], "rank_pattern": {"(x*)*y": 4}}).found
    'a repetition inside a repetition, which may never end'
    >>> excess({"target_modules": ["q_proj"], "layers_pattern": "(("}).where
    'layers_pattern'
    """
    if len(config) > MOST_FIELDS:
        found = f"more than {MOST_FIELDS:,}"
        return Excess(
            where="the config",
            given=f"{len(config):,} fields",
            found=found,
            instead="the fields of a LoraConfig",
        )
    for field in (*_LISTS, *_TABLES):
        value = config.get(field)
        most = MOST_KEYS if field in _TABLES else _MOST_TOKENS if field.endswith("indices") else MOST_NAMES
        count = len(value) if isinstance(value, (list, tuple, set, dict)) else 0
        if count > most:
            return Excess(
                where=field,
                given=f"{count:,} entries",
                found=f"more than {most:,}",
                instead=f"at most {most:,}",
            )
    written = list(_expressions(config))
    if sum(len(expression) for _, expression in written) > LONGEST:
        where, expression = max(written, key=lambda pair: len(pair[1]))
        return Excess(
            where=where,
            given=expression[:60],
            found=f"expressions of more than {LONGEST:,} characters",
            instead="a list of names",
        )
    for field, expression in written:
        for text in (expression, _WRITTEN.get(field, "{}").replace("{}", expression)):
            try:
                endless = _repeats_repeat(_parser.parse(text), inside=False)
            except (re.error, RecursionError, OverflowError) as error:
                found = f"an expression that does not parse ({error})"
                return Excess(where=field, given=expression[:60], found=found, instead="names of modules")
            if endless:
                found = "a repetition inside a repetition, which may never end"
                return Excess(where=field, given=expression[:60], found=found, instead="names of modules")
    return None


def slow(config: Mapping[str, Any], modules: Iterable[str]) -> Excess | None:
    """The first expression that takes too long on one of a model's modules.

    Args:
        config: fields of a LoraConfig in which `excess` found nothing.
        modules: names that PEFT will match it against.

    >>> slow({"target_modules": r".*\\.(q|v)_proj"}, ["model.layers.0.self_attn.q_proj"])
    >>> slow({"target_modules": ".*" * 10 + "Q"}, ["model.layers.0.self_attn.q_proj"]).given
    '.*.*.*.*.*.*.*.*.*.*Q'
    """
    modules = list(modules)
    longest, left = max(map(len, modules), default=0), MOST_COUNTED
    for field, expression in dict.fromkeys(_expressions(config)):
        parsed = _parser.parse(_WRITTEN.get(field, "{}").replace("{}", expression))
        if _ways(parsed, longest) <= MOST_STEPS:
            continue  # nearly all that people write: a large model has hundreds of patterns and of modules
        for name in modules:
            tried = steps(parsed, name)
            left -= tried
            if tried > MOST_STEPS or left < 0:
                much = (
                    f"more than {MOST_STEPS:,} steps on the name {name[:100]}"
                    if left >= 0
                    else "too long in all"
                )
                return Excess(
                    where=field,
                    given=expression[:60],
                    found=f"an expression that takes {much}",
                    instead="names of modules",
                )
    return None


def pattern_value(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """What a pattern of ranks or alphas says of a name, by PEFT's rule: the first key that matches its end.

    >>> pattern_value({"v_proj": 3, ".*proj": 4}, "model.layers.0.self_attn.v_proj", 8)
    3
    """
    for key, value in (patterns or {}).items():
        if _compiled(_END_OF_NAME.replace("{}", key)).match(name):
            return value
    return default


# Python's own cache holds 512 expressions, and a config of a large model has more keys.
_compiled = lru_cache(maxsize=2 * MOST_KEYS)(re.compile)


def _expressions(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What PEFT reads as a regular expression, with its field."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(value := config.get(field), str):
            yield field, value
    for field in ("modules_to_save", "layers_pattern", *_TABLES):
        value = config.get(field)
        for entry in [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else ():
            yield field, str(entry)


_LOOPS = {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}


def _repeats_repeat(node: Any, *, inside: bool) -> bool:
    """Whether an expression holds an unbounded repetition inside another: matching it may take exponential time."""
    if isinstance(node, tuple) and len(node) == 2 and node[0] in _LOOPS:
        _, most, body = node[1]
        endless = most is op.MAXREPEAT or most > 1000
        return (endless and inside) or _repeats_repeat(body, inside=inside or endless)
    if isinstance(node, (tuple, list, _parser.SubPattern)):
        return any(_repeats_repeat(item, inside=inside) for item in node)
    return False


_CHARACTERS = {op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN}


def _ways(parsed: Any, length: int) -> float:
    """A bound on the ways through an expression that holds for every name of at most so many characters.

    With k repetitions of one character each, C(n + k, k) ends for each choice among branches. Infinite where a bound
    takes more than a look: repetitions of more than a character, references, conditions.
    """
    choices, loops = _choices(parsed)
    return choices * min(math.comb(length + loops, loops), 10**18)


def _choices(node: Any) -> tuple[float, int]:
    """In how many ways branches can be taken, and how many repetitions of one character lie on a way."""
    if isinstance(node, tuple) and len(node) == 2:
        kind, value = node
        if kind in _LOOPS:
            least, most, body = value
            choices, loops = _choices(body)
            if (least, most) == (0, 1):
                return choices + 1, loops
            single = len(body) == 1 and body[0][0] in _CHARACTERS
            return (1.0, 1) if single else (math.inf, 0)
        if kind is op.BRANCH:
            branches = [_choices(branch) for branch in value[1]]
            return sum(choices for choices, _ in branches), max(loops for _, loops in branches)
        if kind is op.SUBPATTERN:
            return _choices(value[3])
        return (1.0, 0) if kind in _CHARACTERS or kind is op.AT else (math.inf, 0)
    choices, loops = 1.0, 0
    for item in node:
        more = _choices(item)
        choices, loops = choices * more[0], loops + more[1]
    return choices, loops


class _Exceeded(Exception):
    """More steps than are counted."""


def steps(parsed: Any, name: str) -> int:
    """A bound on the positions that a matcher tries in the worst case, which is where nothing matches in the end.

    Args:
        parsed: an expression, of Python's own parser.
        name: to match it against, from its beginning.
    """
    counted = _Steps(name)
    try:
        counted.through(parsed, Counter({0: 1}))
    except (_Exceeded, RecursionError):
        return MOST_STEPS + 1
    return counted.total


class _Steps:
    """In how many ways each position of a name is reached; the sum over all elements of an expression."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = 0

    def through(self, sequence: Any, ways: Counter[int]) -> Counter[int]:
        """Positions behind a sequence of elements, from those before it."""
        for kind, value in sequence:
            self._count(ways)
            ways = self._element(kind, value, ways)
        return ways

    def _count(self, ways: Counter[int]) -> None:
        self.total += ways.total()
        if self.total > MOST_STEPS:
            raise _Exceeded

    def _element(self, kind: Any, value: Any, ways: Counter[int]) -> Counter[int]:
        if kind in _CHARACTERS:
            here = _character(kind, value)
            return Counter(
                {at + 1: n for at, n in ways.items() if at < len(self.name) and here(self.name[at])}
            )
        if kind is op.SUBPATTERN:
            return self.through(value[3], ways)
        if kind is op.BRANCH:
            behind: Counter[int] = Counter()
            for branch in value[1]:
                self._count(ways)
                behind.update(self.through(branch, ways))
            return behind
        if kind in _LOOPS:
            least, most, body = value
            return self._loop(least, most, body, ways)
        if kind is op.AT:
            # A boundary of words is taken to be everywhere.
            ends = {op.AT_BEGINNING: 0, op.AT_BEGINNING_STRING: 0, op.AT_END: len(self.name)}
            return Counter({ends[value]: ways[ends[value]]}) if value in ends else ways
        if kind in (op.ASSERT, op.ASSERT_NOT):
            self.through(value[1], ways)
            return ways
        if kind is op.ATOMIC_GROUP:
            return self.through(value, ways)
        # What refers to an earlier group may end anywhere.
        return Counter({at: ways.total() for at in range(len(self.name) + 1)})

    def _loop(self, least: int, most: Any, body: Any, ways: Counter[int]) -> Counter[int]:
        behind = Counter(ways) if least == 0 else Counter()
        for turn in range(1, max(least, min(int(most), len(self.name) + 1)) + 1):
            self._count(ways)
            ways = self.through(body, ways)
            if not ways:
                break
            if turn >= least:
                behind.update(ways)
        return behind


def _character(kind: Any, value: Any) -> Callable[[str], Any]:
    """Whether one character fits an element; large and small letters are taken for the same."""
    if kind is op.LITERAL:
        return lambda character: character.lower() == chr(value).lower()
    return _set_of(tuple(value)).match if kind is op.IN else lambda character: True


@lru_cache(maxsize=1000)
def _set_of(members: tuple[Any, ...]) -> re.Pattern[str]:
    return _compiler.compile(_parser.SubPattern(_parser.State(), [(op.IN, list(members))]), re.IGNORECASE)
