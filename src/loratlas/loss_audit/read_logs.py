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

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loratlas.errors import DataError
from loratlas.loss_audit.log_numbers import CAL_PPL, HARNESS, Log, Number, Printed, pointer, rounding_of
from loratlas.loss_audit.trainer_logs import (
    json_lines_log,
    printed_log,
    results_log,
    state_log,
    summary_log,
)

KNOWN = (
    "trainer_state.json",
    "eval_results.json",
    "all_results.json",
    "trainer_log.jsonl",
    "eval_summary.csv",
    "ppl.json",
)
"""Files that are looked for in a folder, with ``results_*.json``."""


def read_logs(path: Path) -> list[Log]:
    """Read a file, or every known file in a folder.

    Raises:
        DataError: nothing there, or a file that holds no loss and no perplexity.
    """
    if path.is_dir():
        files = [path / name for name in KNOWN if (path / name).is_file()]
        files += sorted(path.glob("results_*.json"))
        if not files:
            raise DataError(
                given=f"the folder {path}",
                found="none of the files that tools write",
                instead=f"a folder with {', '.join(KNOWN)} or results_*.json, or the file itself",
            )
        return _without_repeats([read_log(file) for file in files])
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
    readers = {".csv": summary_log, ".jsonl": json_lines_log}
    log = readers.get(path.suffix.lower(), _any)(path, text)
    if not log.numbers:
        raise DataError(
            given=f"the log {path}",
            found="no loss and no perplexity in it",
            instead="trainer_state.json, eval_results.json, trainer_log.jsonl, the list that cal_ppl saved, "
            "evalsummary_log.csv or results of lm-evaluation-harness",
        )
    return log


def _any(path: Path, text: str) -> Log:
    try:
        value = json.loads(text, parse_float=Printed)
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() != ".json":
            return printed_log(path, text)
        raise DataError(
            given=f"the log {path}", found=f"broken JSON ({error})", instead="the file as the tool wrote it"
        ) from error
    if isinstance(value, list):
        return _perplexities(path, value)
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        return state_log(path, value)
    if isinstance(value, dict) and isinstance(value.get("results"), dict):
        return _harness(path, value)
    if isinstance(value, dict):
        return results_log(path, value)
    return Log(tool="?", path=path, numbers=())


def _perplexities(path: Path, values: list[Any]) -> Log:
    """A bare list of numbers: LLaMA-Factory's ``cal_ppl.py``. What it prints is their mean."""
    if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return Log(tool="LLaMA-Factory cal_ppl", path=path, numbers=())
    numbers = np.asarray([float(v) for v in values])
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(
            given=f"the log {path}",
            found=f"example {bad[0]} has the perplexity {numbers[bad[0]]} ({len(bad)} such): it has no answer "
            "tokens, or a log-probability of −inf",
            instead="rows with an answer, or a list without these examples",
        )
    mean = Number(
        name="average perplexity",
        value=float(numbers.mean()),
        kind="perplexity",
        where=f"mean of {len(numbers)} numbers",
    )
    return Log(
        tool="LLaMA-Factory cal_ppl",
        path=path,
        numbers=(mean,),
        settings={"examples": len(numbers)},
        missing=CAL_PPL,
        examples=numbers,
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
                        where=pointer("results", task, key),
                        rounding=rounding_of(number),
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
