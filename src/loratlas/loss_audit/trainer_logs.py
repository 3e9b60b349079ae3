"""Logs of Trainer and of tools built on it: state, results, JSON lines, printed lines, tables."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratlas.errors import DataError
from loratlas.loss_audit.log_numbers import (
    CAL_PPL,
    COMMON,
    Log,
    Number,
    Printed,
    Setting,
    as_number,
    kind_of,
    numbers_of,
    pointer,
    rounding_of,
)

BATCH = Setting(
    name="per_device_eval_batch_size",
    effect="eval_loss is a mean of batch means and changes with the batch size",
)
TRAINER = (
    BATCH,
    *COMMON,
    Setting(name="label_smoothing_factor", effect="eval_loss is smoothed as the training loss is"),
    Setting(name="packing", effect="rows end to end, which may see each other"),
    Setting(name="number of processes", effect="examples repeated to fill the sampler's last round"),
    Setting(name="compute_loss", effect="a regulariser inside the loss: AdaLoRA, mixture-of-experts balance"),
)
SIZE_KEYS = ("per_device_eval_batch_size", "eval_batch_size")
"""Keys under which tools write the batch size of an evaluation, at the top or under ``args``."""


def results_log(path: Path, value: Mapping[str, Any]) -> Log:
    """``eval_results.json``, ``all_results.json``: one object of metrics."""
    numbers = tuple(numbers_of(value, lambda key: pointer(key), None))
    return trainer_log("transformers Trainer", path, numbers, [dict(value)])


def state_log(path: Path, value: Mapping[str, Any]) -> Log:
    """``trainer_state.json``."""
    numbers: list[Number] = []
    history = [entry for entry in value["log_history"] if isinstance(entry, dict)]
    for index, entry in enumerate(history):
        numbers += numbers_of(
            entry,
            lambda key, at=index: pointer("log_history", at, key),
            entry.get("step"),
            entry.get("epoch"),
        )
    log = trainer_log("transformers Trainer", path, tuple(numbers), [dict(value), *history])
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


def json_lines_log(path: Path, text: str) -> Log:
    """One JSON object a line, as LLaMA-Factory's callback writes them."""
    entries: list[dict[str, Any]] = []
    numbers: list[Number] = []
    for index, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_float=Printed)
        except (ValueError, RecursionError) as error:
            raise DataError(
                given=f"the log {path}",
                found=f"broken JSON on line {index} ({error})",
                instead="one object a line, as the tool wrote it",
            ) from error
        if isinstance(entry, dict):
            entries.append(entry)
            step = entry.get("current_steps", entry.get("step"))
            numbers += numbers_of(entry, lambda key, at=index: f"line {at}, {key}", step, entry.get("epoch"))
    factory = any("current_steps" in entry for entry in entries)
    tool = "LLaMA-Factory" if factory else "transformers Trainer"
    return trainer_log(tool, path, tuple(numbers), entries)


def printed_log(path: Path, text: str) -> Log:
    """Dictionaries among other lines: what the Trainer prints, also under axolotl and TRL.

    A dictionary may be wrapped over several lines, and may hold nan and inf.
    """
    numbers: list[Number] = []
    entries: list[dict[str, Any]] = []
    for match in re.finditer(r"\{\s*'[^{}]*\}", text):
        entry = _dictionary(match.group())
        if entry is None:
            continue
        line = text[: match.start()].count("\n") + 1
        entries.append(entry)
        numbers += numbers_of(entry, lambda key, at=line: f"line {at}, {key}", None, entry.get("epoch"))
    said = re.search(r"Average perplexity is (\d+(?:\.\d+)?)(?![\d.]*\d)", text)
    if said and not numbers:  # what cal_ppl.py of LLaMA-Factory prints besides the list that it saves
        value = Printed(said.group(1))
        mean = Number(
            name="average perplexity",
            value=float(value),
            kind="perplexity",
            where=f"line {text[: said.start()].count(chr(10)) + 1}",
            rounding=rounding_of(value),
        )
        return Log(tool="LLaMA-Factory cal_ppl", path=path, numbers=(mean,), missing=CAL_PPL)
    tool = "axolotl" if "axolotl" in text else "transformers Trainer"
    return trainer_log(tool, path, tuple(numbers), entries, rough=True)


_NO_LITERAL = re.compile(r"(?<=[\s:\[(,])([-+]?(?:nan|inf(?:inity)?))(?=\s*[,}\])])", re.IGNORECASE)
_NUMBER = re.compile(r"(?<=:)(\s*)([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?=\s*[,}])")


def _dictionary(text: str) -> dict[str, Any] | None:
    """A printed dictionary, its numbers as they were written; None where it is something else."""
    for joint in (" ", ""):  # wrapped at a space, or by a terminal anywhere
        whole = re.sub(r"[ \t]*\r?\n[ \t]*", joint, text)
        # As texts, numbers keep their digits, and nan becomes readable.
        quoted = _NUMBER.sub(r"\1'\2'", _NO_LITERAL.sub(r"'\1'", whole))
        try:
            entry = ast.literal_eval(quoted)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(entry, dict):
            return entry
    return None


def summary_log(path: Path, text: str) -> Log:
    """axolotl's table of a metric a line, or a table of an evaluation a line, as Lightning and many scripts write it.

    axolotl's has a column for the training rows and one for the validation rows.
    """
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise DataError(
            given=f"the log {path}", found=f"no table ({error})", instead="the file as the tool wrote it"
        ) from error
    heading = [cell.strip().lower() for cell in rows[0]] if rows else []
    if heading[:1] != ["metric"] or "validation" not in heading:
        if any(kind_of(name) is not None for name in heading):
            return _table_log(path, heading, rows[1:])
        raise DataError(
            given=f"the log {path}",
            found=f"a table with the columns {', '.join(heading) or '(none)'}",
            instead="a table with a column such as eval_loss, or axolotl's eval_summary.csv: metric, training, "
            "validation",
        )
    columns: dict[str, dict[str, Any]] = {name: {} for name in heading[1:]}
    for row in rows[1:]:
        for name, cell in zip(heading[1:], row[1:], strict=False):
            value = as_number(cell)
            if value is not None:
                columns[name][row[0]] = value
    numbers = [
        Number(
            name=f"{name} {metric}",
            value=float(value),
            kind=kind,
            where=f"row {metric}, column {name}",
            rounding=rounding_of(value),
        )
        for name, entry in columns.items()
        for metric, value in entry.items()
        if (kind := kind_of(f"eval_{metric}")) is not None
    ]
    return trainer_log("axolotl", path, tuple(numbers), list(columns.values()))


def _table_log(path: Path, heading: list[str], rows: list[list[str]]) -> Log:
    """A table whose columns are metrics: blank cells are metrics that a line does not have."""
    numbers: list[Number] = []
    entries: list[dict[str, Any]] = []
    for index, row in enumerate(rows, 2):
        entry = {
            name: number
            for name, cell in zip(heading, row, strict=False)
            if (number := as_number(cell)) is not None
        }
        step = entry.get("step")
        numbers += numbers_of(
            entry,
            lambda key, at=index: f"row {at}, column {key}",
            None if step is None or not step.is_integer() else int(step),
            entry.get("epoch"),
        )
        entries.append(entry)
    return trainer_log("a table", path, tuple(numbers), entries)


def trainer_log(
    tool: str, path: Path, numbers: tuple[Number, ...], entries: list[Any], *, rough: bool = False
) -> Log:
    """A log of a Trainer: the batch size of its evaluation is said, or follows from its rates."""
    sizes = next((size for entry in entries if (size := _said_sizes(entry))), None)
    if sizes is None:
        sizes = next((s for entry in reversed(entries) if (s := batch_sizes(entry, rough=rough))), [])
    settings: dict[str, Any] = {"eval_batch_size": sizes} if sizes else {}
    samples = next((e["eval_samples"] for e in reversed(entries) if "eval_samples" in e), None)
    if samples is not None:
        settings["eval_samples"] = samples
    missing = tuple(setting for setting in TRAINER if not (sizes and setting is BATCH))
    return Log(tool=tool, path=path, numbers=numbers, settings=settings, missing=missing)


def _said_sizes(entry: Mapping[str, Any]) -> list[int]:
    for holder in (entry, entry.get("args"), entry.get("training_args")):
        if not isinstance(holder, Mapping):
            continue
        for key in SIZE_KEYS:
            size = as_number(holder.get(key))
            if size is not None and size >= 1 and size == int(size):
                return [int(size)]
    return []


def batch_sizes(entry: Mapping[str, Any], *, rough: bool = False, most: int = 16) -> list[int]:
    """Batch sizes b with ⌈N / b⌉ = steps, from N and steps as runtime times rates; [] if none or too many fit.

    The rates have three decimals, and on a printed line (``rough``) four significant digits: where that leaves N or
    the steps open, nothing is said.

    >>> batch_sizes({"eval_runtime": 2.0, "eval_samples_per_second": 50.0, "eval_steps_per_second": 6.5})
    [8]
    """
    for name in entry:
        prefix = str(name).removesuffix("_steps_per_second")
        rates = [
            as_number(entry.get(f"{prefix}_{end}"))
            for end in ("runtime", "samples_per_second", "steps_per_second")
        ]
        if prefix == name or prefix == "train" or not all(rate is not None and rate > 0 for rate in rates):
            continue
        runtime, samples, steps = (float(rate) for rate in rates if rate is not None)
        count, passes = round(runtime * samples), round(runtime * steps)
        if passes < 1 or runtime * 5e-4 + (1e-3 * count if rough else 0.0) > 0.5:
            continue
        fit = [b for b in range(1, count + 1) if -(-count // b) == passes]
        return fit if len(fit) <= most else []
    return []
