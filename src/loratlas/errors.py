"""What can go wrong, drawn as a tree.

    LoratlasError                 catch this one to catch them all
    ├── RequestError              exit 2: what was asked for cannot be done as written
    │   ├── ModelError            an unknown model, a directory without a config, no network
    │   ├── PlacementError        a placement that does not parse, matches nothing or contradicts itself
    │   ├── BudgetError           a budget that does not parse or is smaller than one rank
    │   ├── AttachError           PEFT would adapt other sites than the plan names
    │   ├── DataError             rows that are missing, broken, unlabelled or too long
    │   ├── SpecError             a study file with an unknown key or a value out of range
    │   ├── SettingsError         a learning rate, a count or a combination that makes no sense
    │   └── OutputError           a folder that holds something else, or cannot be written
    ├── RunError                  exit 3: a run that began could not go on
    │   ├── StorageError          the disk is full or no longer writable; what was finished stays
    │   └── DivergedError         the loss became NaN or infinite; the last good state is kept
    └── Interrupted               exit 130: Ctrl-C or SIGTERM; everything finished is saved

Every error says what was given, what was found and what to write instead. Its fields name options as the command line
writes them, where they are printed one by one; as a Python exception it names the arguments (`python_spelling`):

>>> error = BudgetError(given="--budget params=3", found="one rank at one site costs 512 parameters",
...                     instead="a budget of at least params=512")
>>> print(error)
Given: budget='params=3'. Found: one rank at one site costs 512 parameters. Instead: a budget of at least params=512.
>>> error.exit_code, error.code
(2, 'budget')
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

ARGUMENTS = {"eval": "evaluate", "from": "adapter", "map": "columns", "for": "target"}
"""Options whose argument of the Python functions has another name; all others differ in dashes alone."""

_WORDS = "task|split|by|signal|loss|placement|compile|packing|dtype|quantize|for"
"""Options whose value is a word."""

_OPTION = re.compile(
    rf"(?<![\w-])--(?:(?P<word>{_WORDS}) (?!(?:with|without|and|or|as|to|for|instead|of)\b)(?P<choice>[a-zA-Z0-9_:/-]+)"
    r"|(?P<name>[a-z][a-z-]*[a-z])"
    r"(?: (?P<value>[A-Z]{2,}\b|\d[\w%.]*\w%?|\d|\w+=[^\s,;()]*[^\s,;().]|auto\b|on\b|once\b))?)"
)
_COMMAND = re.compile(r"`[^`]*`|\bloratlas [a-z]+-?[a-z]* [^,;]*--[^,;]*")


def printable(text: str, limit: int = 200) -> str:
    r"""A stranger's text in a form that is safe to print: what a terminal would obey is made visible.

    Control characters, escape sequences, line breaks, marks that turn the direction of writing and lone
    surrogates become their escapes; a long text is cut.

    Args:
        text: from a file, a config, a template, a name.
        limit: characters of it that are kept.

    >>> printable("red \x1b[31m, turned \u202e")
    'red \\x1b[31m, turned \\u202e'
    >>> printable("0123456789", limit=4)
    '0123…'
    """
    kept = text[:limit]
    safe = kept if kept.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in kept)
    return safe if len(text) <= limit else safe + "…"


def printable_lines(text: str) -> str:
    r"""As :func:`printable`, whole and with its line breaks: what goes to a terminal last of all.

    >>> printable_lines("one\ntwo \x1b]0;title\x07")
    'one\ntwo \\x1b]0;title\\x07'
    """
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def python_spelling(text: str) -> str:
    """A sentence about options of the command line as one about arguments of the Python functions.

    What stands in backticks, and a whole command, stays as it is.

    Args:
        text: of an error.

    >>> python_spelling("--dtype float32, a larger --max-length, or rows for --eval")
    "dtype='float32', a larger max_length, or rows for evaluate"
    >>> python_spelling("--task seq2seq, or --map text=question")
    "task='seq2seq', or columns={'text': 'question'}"
    >>> python_spelling("--eval DATA, or what `loratlas eval --out` wrote")
    'evaluate=DATA, or what `loratlas eval --out` wrote'
    """

    def argument(match: re.Match[str]) -> str:
        name, value = match["word"] or match["name"], match["choice"] or match["value"]
        if name == "map" and value is not None and "=" in value:
            return "columns={{{!r}: {!r}}}".format(*value.split("=", 1))
        name = ARGUMENTS.get(name, name.replace("-", "_"))
        if value is None:
            return name
        bare = value.isupper() or value.replace(".", "").isdigit()
        return f"{name}={value if bare else repr(value)}"

    pieces, end = [], 0
    for command in _COMMAND.finditer(text):
        pieces += [_OPTION.sub(argument, text[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*pieces, _OPTION.sub(argument, text[end:])]).replace("} columns={", ", ")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class LoratlasError(Exception):
    """Base of all errors raised on purpose.

    Args:
        given: what the user wrote or passed; options as the command line writes them.
        found: what loratlas saw when it looked.
        instead: what to write or do instead.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 3

    def __init__(self, *, given: str, found: str, instead: str) -> None:
        self.given = given
        self.found = found
        self.instead = instead
        super().__init__(given, found, instead)

    def __str__(self) -> str:
        fields = (("Given", self.given), ("Found", self.found), ("Instead", self.instead))
        said = " ".join(f"{label}: {python_spelling(text).rstrip('. ')}." for label, text in fields)
        return printable_lines(said)

    def __reduce__(self):
        # Keyword-only arguments do not survive the default protocol; worker processes hand errors over.
        return _rebuild, (type(self), self.given, self.found, self.instead, self.__dict__)

    def to_json(self) -> dict[str, Any]:
        """The object printed under ``--json``, of schema ``loratlas.error``."""
        return {
            "schema": "loratlas.error",
            "version": 1,
            "error": {"code": self.code, "given": self.given, "found": self.found, "instead": self.instead},
        }


def _rebuild(kind: type[LoratlasError], given: str, found: str, instead: str, state: dict) -> LoratlasError:
    error = kind.__new__(kind)
    LoratlasError.__init__(error, given=given, found=found, instead=instead)
    error.__dict__.update(state)
    return error


class RequestError(LoratlasError):
    """What was asked for cannot be done as written."""

    code = "request"
    exit_code = 2


class ModelError(RequestError):
    """The model cannot be found, read or built."""

    code = "model"


class PlacementError(RequestError):
    """A placement text that does not parse, matches nothing or contradicts itself.

    Args:
        position: index of the character in the text where the trouble begins, if there is one.
        suggestions: whole placements to write instead, each of which was tried.
    """

    code = "placement"

    def __init__(
        self,
        *,
        given: str,
        found: str,
        instead: str,
        position: int | None = None,
        suggestions: tuple[str, ...] = (),
    ) -> None:
        super().__init__(given=given, found=found, instead=instead)
        self.position = position
        self.suggestions = suggestions


class BudgetError(RequestError):
    """A budget that does not parse, or that cannot pay for one rank."""

    code = "budget"


class AttachError(RequestError):
    """PEFT would adapt other sites than the plan names."""

    code = "attach"


class DataError(RequestError):
    """Rows that are missing, broken, unlabelled or too long."""

    code = "data"


class SpecError(RequestError):
    """A study file with an unknown key or a value out of range."""

    code = "spec"


class SettingsError(RequestError):
    """A training setting that makes no sense."""

    code = "settings"


class OutputError(RequestError):
    """A folder that holds something else, or that cannot be written."""

    code = "output"


class RunError(LoratlasError):
    """A run that began could not go on."""

    code = "run"
    exit_code = 3


class StorageError(RunError):
    """The disk is full or no longer writable; what was finished stays readable."""

    code = "storage"


class DivergedError(RunError):
    """The loss became NaN or infinite; the last good state is kept."""

    code = "diverged"


class Interrupted(LoratlasError):
    """Ctrl-C or SIGTERM: everything finished is saved, and ``instead`` says how to resume."""

    code = "interrupted"
    exit_code = 130
