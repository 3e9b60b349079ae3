"""Reading a JSONL file beside `datasets.load_dataset("json")`: seconds, processor seconds, and peak memory.

Both sides read the same file of generated rows (a prompt, a completion and a number that no form reads), each time in a
fresh process whose imports are done before the clock starts. They take turns, A B A B …, and a ratio is the median
over pairs, so that what else the machine does falls on both. Two things are measured: *read*, until the rows can be
asked for (both sides have then checked every row), and *through*, which also hands out each row once. `datasets` gets
an empty cache folder every time, for a file that is in its cache is not read.

    python benchmarks/reading.py --rows 1000000 --pairs 5 --out benchmarks/results/reading.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIDES = ("loratlas", "datasets")
WORDS = (
    'alpha beta gamma delta epsilon größe straße "quoted" back\\slash line\nbreak kappa lambda 12 3.50 omega'
)


def write_rows(path: Path, count: int) -> None:
    """Rows of 5 to 30 words asked and 1 to 20 answered, from a fixed seed."""
    draw, words = random.Random(0), WORDS.split(" ")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {
                "id": number,
                "prompt": " ".join(draw.choices(words, k=draw.randint(5, 30))),
                "completion": " ".join(draw.choices(words, k=draw.randint(1, 20))),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(side: str, path: str) -> dict[str, float]:
    """One reading, in this process."""
    import resource

    with tempfile.TemporaryDirectory() as scratch:
        if side == "loratlas":
            from loratlas.data.load_rows import load_rows

            load_rows([{"prompt": "a", "completion": "b"}])

            def read() -> Any:
                return load_rows(path).rows
        else:
            import datasets

            datasets.disable_progress_bars()

            def read() -> Any:
                return datasets.load_dataset("json", data_files=path, cache_dir=scratch, split="train")

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        rows = read()
        by_name = {"read_s": time.perf_counter() - wall, "read_cpu_s": time.process_time() - cpu}
        count = sum(1 for _ in rows)
        by_name |= {"through_s": time.perf_counter() - wall, "through_cpu_s": time.process_time() - cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return by_name | {"rows": count, "added_mib": (peak - before) / 1024, "peak_mib": peak / 1024}


def in_turns(path: Path, pairs: int) -> dict[str, list[dict[str, float]]]:
    """Both sides in turns, each in a process of its own; one of each first, so that the file is in memory."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(pairs + 1):
        for side in SIDES:
            command = [sys.executable, __file__, "--one", side, "--file", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            if number:
                runs[side].append(json.loads(done.stdout))
                print(side, {name: round(value, 2) for name, value in runs[side][-1].items()}, flush=True)
    return runs


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("loratlas", "datasets", "pyarrow", "msgspec")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=SIDES)
    parser.add_argument("--file", type=Path)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, str(asked.file))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, asked.rows)
        size = path.stat().st_size
        runs = in_turns(path, asked.pairs)
    ours, theirs = (runs[side] for side in SIDES)
    timed = ("read_s", "read_cpu_s", "through_s", "through_cpu_s")
    result = {
        "what": "datasets' seconds divided by loratlas', median over pairs; above 1, loratlas is faster",
        "ratios": {
            name: median(b[name] / a[name] for a, b in zip(ours, theirs, strict=True)) for name in timed
        },
        "added_mib": {side: median(run["added_mib"] for run in runs[side]) for side in SIDES},
        "rows": asked.rows,
        "file_bytes": size,
        "runs": runs,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_average": os.getloadavg()[0],
        "versions": versions(),
        "command": f"python benchmarks/reading.py --rows {asked.rows} --pairs {asked.pairs}",
    }
    print(json.dumps({key: result[key] for key in ("ratios", "added_mib")}, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
