"""What other tools wrote about a loss: their files become numbers, with what the files do not say.

====================  ===================================================================================
tool                  files
====================  ===================================================================================
transformers Trainer  ``trainer_state.json``, ``eval_results.json``, ``all_results.json``, its printed log
LLaMA-Factory         ``trainer_log.jsonl``; the list of perplexities that ``cal_ppl.py`` saves
axolotl               ``eval_summary.csv``; its printed log and ``trainer_state.json`` are the Trainer's
lm-evaluation-harness ``results_….json`` with word_perplexity, byte_perplexity or bits_per_byte
====================  ===================================================================================

No file is executed and nothing is unpickled: ``training_args.bin``, which would say more, is left alone.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from loratlas.errors import DataError

Kind: TypeAlias = Literal["loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]

KNOWN = (
    "trainer_state.json",
    "eval_results.json",
    "all_results.json",
    "trainer_log.jsonl",
    "eval_summary.csv",
    "ppl.json",
)
"""Files that are looked for in a folder, with ``results_*.json``."""

FEW_DIGITS = 9
"""A number printed with fewer significant digits than this was rounded to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One loss or perplexity of a log.

    Args:
        name: as the tool calls it.
        value: as it is written.
        kind: what the tool says that it is.
        where: a JSON pointer, or ``line 7``.
        rounding: half a unit of the last digit that was printed; 0 where all digits were.
        step: of the training run, where the log says it.
        training: a mean of training losses, which no evaluation reproduces.
    """

    name: str
    value: float
    kind: Kind
    where: str
    rounding: float = 0.0
    step: int | None = None
    training: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Something that decides a number, and that the log does not say.

    Args:
        name: of the setting.
        effect: what it could have done to the number.
    """

    name: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One file, read.

    Args:
        tool: which tool wrote it.
        path: of the file.
        numbers: in the order of the file.
        settings: what it does say, e.g. ``{"eval_batch_size": [8]}``.
        missing: what it does not say.
        examples: perplexity of every example, where the file lists them.
    """

    tool: str
    path: Path
    numbers: tuple[Number, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[Setting, ...] = ()
    examples: np.ndarray | None = None

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that the log's own rates allow."""
        return tuple(self.settings.get("eval_batch_size", ()))


BATCH = Setting(
    name="per_device_eval_batch_size",
    effect="eval_loss is a mean of batch means and changes with the batch size",
)
COMMON = (
    Setting(
        name="which tokens are labels",
        effect="prompt, padding or begin tokens counted, or the end token left out where pad = eos",
    ),
    Setting(
        name="max_length and the side that is cut",
        effect="other tokens are scored, or the same ones with less before them",
    ),
    Setting(name="the template", effect="other text around the rows, hence other tokens"),
    Setting(name="number format of the pass", effect="losses of logits rounded to bfloat16 or float16"),
)
TRAINER = (
    BATCH,
    *COMMON,
    Setting(name="label_smoothing_factor", effect="eval_loss is smoothed as the training loss is"),
    Setting(name="packing", effect="rows end to end, which may see each other"),
    Setting(name="number of processes", effect="examples repeated to fill the sampler's last round"),
    Setting(name="compute_loss", effect="a regulariser inside the loss: AdaLoRA, mixture-of-experts balance"),
)
CAL_PPL = (
    Setting(name="train_on_prompt", effect="prompt tokens counted as answers"),
    Setting(name="cutoff_len", effect="rows cut to another length"),
    Setting(name="template", effect="other text around the rows, hence other tokens"),
    Setting(name="number format of the pass", effect="losses of logits rounded to bfloat16 or float16"),
)
HARNESS = (
    Setting(name="how the words and bytes were counted", effect="of the raw text, before it was cleaned"),
    Setting(name="the documents", effect="other texts, or the same ones joined or split otherwise"),
)


def read_logs(path: Path) -> list[Log]:
    """Read a file, or every known file in a folder.

    Raises:
        DataError: nothing there, or a file that holds no loss and no perplexity.
    """
    if path.is_dir():
        found = [path / name for name in KNOWN if (path / name).is_file()]
        found += sorted(path.glob("results_*.json"))
        if not found:
            raise DataError(
                given=f"the folder {path}",
                found="none of the files that tools write",
                instead=f"a folder with {', '.join(KNOWN)} or results_*.json, or the file itself",
            )
        return _without_repeats([read_log(file) for file in found])
    return [read_log(path)]


def _without_repeats(logs: list[Log]) -> list[Log]:
    """Without files whose numbers all stand in one before them: all_results.json repeats eval_results.json."""
    kept: list[Log] = []
    for log in logs:
        seen = {(number.name, number.value) for before in kept for number in before.numbers}
        if not {(number.name, number.value) for number in log.numbers} <= seen:
            kept.append(log)
    return kept


def read_log(path: Path) -> Log:
    """Read one file.

    Raises:
        DataError: it cannot be read, is of no known form, or holds no loss and no perplexity.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        raise DataError(given=f"the log {path}", found=why, instead="a file that a trainer wrote") from error
    readers = {".csv": _summary, ".jsonl": _lines}
    log = readers.get(path.suffix.lower(), _any)(path, text)
    if not log.numbers:
        raise DataError(
            given=f"the log {path}",
            found="no loss and no perplexity in it",
            instead="trainer_state.json, eval_results.json, trainer_log.jsonl, the list that cal_ppl saved, "
            "eval_summary.csv or results of lm-evaluation-harness",
        )
    return log


class _Printed(float):
    """A number that remembers how it was written."""

    text: str

    def __new__(cls, text: str) -> _Printed:
        made = super().__new__(cls, text)
        made.text = text
        return made


def _any(path: Path, text: str) -> Log:
    try:
        value = json.loads(text, parse_float=_Printed)
    except ValueError as error:
        if path.suffix.lower() != ".json":
            return _printed(path, text)
        raise DataError(
            given=f"the log {path}", found=f"broken JSON ({error})", instead="the file as the tool wrote it"
        ) from error
    if isinstance(value, list):
        return _perplexities(path, value)
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        return _state(path, value)
    if isinstance(value, dict) and isinstance(value.get("results"), dict):
        return _harness(path, value)
    if isinstance(value, dict):
        numbers = tuple(_numbers(value, lambda key: _pointer(key), None))
        return _trainer("transformers Trainer", path, numbers, [value])
    return Log(tool="?", path=path, numbers=())


def _state(path: Path, value: Mapping[str, Any]) -> Log:
    numbers: list[Number] = []
    history = [entry for entry in value["log_history"] if isinstance(entry, dict)]
    for index, entry in enumerate(history):
        step = entry.get("step")
        numbers += _numbers(entry, lambda key, at=index: _pointer("log_history", at, key), step)
    log = _trainer("transformers Trainer", path, tuple(numbers), history)
    known = {
        name: value[name] for name in ("global_step", "max_steps", "train_batch_size") if value.get(name)
    }
    return Log(
        tool=log.tool,
        path=path,
        numbers=log.numbers,
        settings={**known, **log.settings},
        missing=log.missing,
    )


def _lines(path: Path, text: str) -> Log:
    """One JSON object a line, as LLaMA-Factory's callback writes them."""
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_float=_Printed)
        except ValueError as error:
            raise DataError(
                given=f"the log {path}",
                found=f"broken JSON on line {number} ({error})",
                instead="one object a line, as the tool wrote it",
            ) from error
        if isinstance(entry, dict):
            entries.append({**entry, "\n": number})
    numbers = [
        number
        for entry in entries
        for number in _numbers(
            entry,
            lambda key, at=entry["\n"]: f"line {at}, {key}",
            entry.get("current_steps", entry.get("step")),
        )
    ]
    factory = any("current_steps" in entry for entry in entries)
    tool = "LLaMA-Factory" if factory else "transformers Trainer"
    return _trainer(tool, path, tuple(numbers), entries)


def _printed(path: Path, text: str) -> Log:
    """Dictionaries among other lines: what the Trainer prints, also under axolotl and TRL."""
    numbers: list[Number] = []
    entries: list[dict[str, Any]] = []
    for place, line in enumerate(text.splitlines(), 1):
        for found in re.findall(r"\{'[^{}]*\}", line):
            try:
                entry = ast.literal_eval(found)
            except (ValueError, SyntaxError):
                continue
            if not isinstance(entry, dict):
                continue
            written = dict(re.findall(r"'([^']+)': '?([-+.\deE]+)", found))
            entry = {
                key: _Printed(written[key]) if key in written and _is_number(written[key]) else value
                for key, value in entry.items()
            }
            entries.append(entry)
            numbers += _numbers(entry, lambda key, at=place: f"line {at}, {key}", None)
    said = re.search(r"Average perplexity is ([\d.]*\d)", text)
    if said and not numbers:  # what cal_ppl.py of LLaMA-Factory prints beside the list that it saves
        value = _Printed(said.group(1))
        where = f"line {text[: said.start()].count(chr(10)) + 1}"
        mean = Number(
            name="average perplexity",
            value=float(value),
            kind="perplexity",
            where=where,
            rounding=_rounding(value),
        )
        return Log(tool="LLaMA-Factory cal_ppl", path=path, numbers=(mean,), missing=CAL_PPL)
    tool = "axolotl" if "axolotl" in text else "transformers Trainer"
    return _trainer(tool, path, tuple(numbers), entries, rough=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "." in text or "e" in text.lower()


def _summary(path: Path, text: str) -> Log:
    """axolotl's table of a metric a line, with a column for the training rows and one for the validation rows."""
    rows = list(csv.reader(text.splitlines()))
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    if heading[:1] != ["metric"] or "validation" not in heading:
        raise DataError(
            given=f"the log {path}",
            found=f"a table with the columns {', '.join(heading) or '(none)'}",
            instead="axolotl's eval_summary.csv: metric, training, validation",
        )
    columns = {name: {} for name in heading[1:]}
    for row in rows[1:]:
        for name, cell in zip(heading[1:], row[1:], strict=False):
            if row and _is_number(cell):
                columns[name][row[0]] = _Printed(cell)
    numbers = []
    for name, entry in columns.items():
        for metric, value in entry.items():
            kind = _kind(f"eval_{metric}")
            if kind is not None and math.isfinite(value):
                numbers.append(
                    Number(
                        name=f"{name} {metric}",
                        value=float(value),
                        kind=kind,
                        where=f"row {metric}, column {name}",
                        rounding=_rounding(value),
                    )
                )
    return _trainer("axolotl", path, tuple(numbers), list(columns.values()))


def _perplexities(path: Path, values: list[Any]) -> Log:
    """A bare list of numbers: LLaMA-Factory's ``cal_ppl.py``. What it prints is their mean."""
    if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return Log(tool="LLaMA-Factory cal_ppl", path=path, numbers=())
    found = np.asarray([float(v) for v in values])
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise DataError(
            given=f"the log {path}",
            found=f"example {bad[0]} has the perplexity {found[bad[0]]} ({len(bad)} such): it has no answer "
            "tokens, or a log-probability of −inf",
            instead="rows with an answer, or a list without these examples",
        )
    mean = Number(
        name="average perplexity",
        value=float(found.mean()),
        kind="perplexity",
        where=f"mean of {len(found)} numbers",
    )
    return Log(
        tool="LLaMA-Factory cal_ppl",
        path=path,
        numbers=(mean,),
        settings={"examples": len(found)},
        missing=CAL_PPL,
        examples=found,
    )


def _harness(path: Path, value: Mapping[str, Any]) -> Log:
    numbers = []
    for task, metrics in value["results"].items():
        for key, number in metrics.items() if isinstance(metrics, dict) else ():
            name = key.partition(",")[0]
            if name not in ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity"):
                continue
            if isinstance(number, (int, float)) and math.isfinite(number):
                numbers.append(
                    Number(
                        name=f"{task} {name}",
                        value=float(number),
                        kind=name,
                        where=_pointer("results", task, key),
                        rounding=_rounding(number),
                    )
                )
    config = value.get("config")
    config = config if isinstance(config, dict) else {}
    said = {key: config[key] for key in ("model", "model_args", "batch_size", "limit") if key in config}
    if "n-samples" in value:
        said["n-samples"] = value["n-samples"]
    return Log(
        tool="lm-evaluation-harness", path=path, numbers=tuple(numbers), settings=said, missing=HARNESS
    )


def _trainer(
    tool: str, path: Path, numbers: tuple[Number, ...], entries: list[Any], *, rough: bool = False
) -> Log:
    """A log of a Trainer: the batch size of its evaluation follows from its rates, if they are there."""
    sizes = next((found for entry in reversed(entries) if (found := _batch_sizes(entry, rough=rough))), [])
    settings: dict[str, Any] = {"eval_batch_size": sizes} if sizes else {}
    samples = next((e["eval_samples"] for e in reversed(entries) if "eval_samples" in e), None)
    if samples is not None:
        settings["eval_samples"] = samples
    missing = tuple(setting for setting in TRAINER if not (sizes and setting is BATCH))
    return Log(tool=tool, path=path, numbers=numbers, settings=settings, missing=missing)


def _batch_sizes(entry: Mapping[str, Any], *, rough: bool = False, most: int = 16) -> list[int]:
    """Batch sizes b with ⌈N / b⌉ = steps, from N and steps as runtime times rates; [] if none or too many fit.

    The rates have three decimals, and on a printed line (``rough``) four significant digits: where that leaves N or
    the steps open, nothing is said.

    >>> _batch_sizes({"eval_runtime": 2.0, "eval_samples_per_second": 50.0, "eval_steps_per_second": 6.5})
    [8]
    """
    for name in entry:
        prefix = str(name).removesuffix("_steps_per_second")
        rates = [
            entry.get(f"{prefix}_{end}") for end in ("runtime", "samples_per_second", "steps_per_second")
        ]
        if prefix == name or prefix == "train" or not all(_positive(rate) for rate in rates):
            continue
        runtime, samples, steps = (float(rate) for rate in rates if rate is not None)
        count, passes = round(runtime * samples), round(runtime * steps)
        if passes < 1 or runtime * 5e-4 + (1e-3 * count if rough else 0.0) > 0.5:
            continue
        fit = [b for b in range(1, count + 1) if -(-count // b) == passes]
        return fit if len(fit) <= most else []
    return []


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _numbers(entry: Mapping[str, Any], where: Any, step: Any) -> Iterator[Number]:
    for key, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        kind = _kind(str(key))
        if kind is None or not math.isfinite(value):
            continue
        yield Number(
            name=str(key),
            value=float(value),
            kind=kind,
            where=where(key),
            rounding=_rounding(value),
            step=step if isinstance(step, int) else None,
            training=str(key) in ("loss", "ppl") or str(key).startswith("train_"),
        )


def _kind(key: str) -> Kind | None:
    """What a trainer's key is, if it is a loss.

    >>> [_kind(key) for key in ("eval_loss", "perplexity", "eval_ppl", "loss", "grad_norm", "eval_bench_loss")]
    ['loss', 'perplexity', 'perplexity', 'loss', None, None]
    """
    last = key.rpartition("_")[2]
    if "bench" in key or "aux" in key or "router" in key:
        return None
    if last == "loss":
        return "loss"
    return "perplexity" if last in ("perplexity", "ppl") else None


def _rounding(value: Any) -> float:
    """Half a unit of the last digit of a number that was printed with few of them.

    >>> _rounding(_Printed("2.31")), _rounding(_Printed("2.3104518413543701"))
    (0.005, 0.0)
    """
    if not isinstance(value, _Printed):
        return 0.0
    digits, _, exponent = value.text.lower().lstrip("+-").partition("e")
    decimals = len(digits.partition(".")[2])
    if len(digits.replace(".", "").lstrip("0")) >= FEW_DIGITS:
        return 0.0
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)


def _pointer(*keys: Any) -> str:
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
