"""Run a study's parts again and again, each time killed before its next file operation, and then once more unharmed.

    python kill_study.py FOLDER SPEC MOST

The coordinator is killed on its way to its first run and at its end, the worker wherever it trains and writes. Printed
is one JSON object: how many operations there were, how many kills before one of them (at most MOST of each, evenly
spread), and of every kill whether what followed went on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.kill_at_each_operation import KILLED, chosen, kill_before

from loratlas.study import run_study as front
from loratlas.study.execution.coordinator import Coordinator
from loratlas.study.execution.run_records import is_whole
from loratlas.study.execution.worker import Worker
from loratlas.study.inputs.prepare import prepare as prepare_study
from loratlas.study.results.study_result import load_study
from loratlas.study.spec.spec_file import parse_spec


class Begun(Exception):
    """The coordinator has come to its first run."""


def forked(work: Callable[[], Any], *, kill: int | None, folder: Path, counted: Path) -> int:
    """Work in a fork of this process; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        if kill is not None:
            kill_before(kill, str(folder), counted)
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def each_kill(
    name: str,
    base: Path,
    prepare: Callable[[Path], Any],
    work: Callable[[Path], Any],
    check: Callable[[Path], bool],
    most: int,
) -> dict[str, Any]:
    """Kills before every operation of ``work`` on a folder; what went on afterwards."""
    counted = base / f"{name}-operations"
    out = base / f"{name}-whole"
    prepare(out)
    assert forked(lambda: work(out), kill=0, folder=out, counted=counted) == 0, name
    operations = counted.read_text().splitlines()
    failed = []
    numbers = chosen(len(operations), most)
    for number in numbers:
        out = base / f"{name}-{number}"
        prepare(out)
        first = forked(lambda out=out: work(out), kill=number, folder=out, counted=counted)
        second = forked(lambda out=out: work(out), kill=None, folder=out, counted=counted)
        if (first, second) != (KILLED, 0) or not check(out):
            failed.append({"at": number, "operation": operations[number - 1], "codes": [first, second]})
        shutil.rmtree(out, ignore_errors=True)
    return {"operations": len(operations), "kills": len(numbers), "failed": failed}


def main() -> None:
    """All of it."""
    base, spec, most = Path(sys.argv[1]), parse_spec(json.loads(sys.argv[2])), int(sys.argv[3])
    whole = base / "study"
    front.run_study(spec, whole, workers=1)
    # What it prepares depends on no file of its folder: once is enough.
    prepared = prepare_study(spec)
    front.prepare = lambda *_, **__: prepared
    wanted = load_study(whole).to_json()["findings"]

    def begin(out: Path) -> None:
        def stop(_: Coordinator, *__: Any) -> None:
            raise Begun

        own, Coordinator._loop = Coordinator._loop, stop  # no worker is needed to come so far
        try:
            front.run_study(spec, out, workers=1)
        except Begun:
            pass
        finally:
            Coordinator._loop = own

    def copied(out: Path) -> None:
        shutil.copytree(whole, out)
        (out / "findings.json").unlink()

    # The jobs as the coordinator hands them over, from the records that it got back.
    setup = json.loads((whole / "cache" / "setup.json").read_text())
    about = load_study(whole).to_json()
    plans = {arm["name"]: arm["plan"] for arm in about["arms"]}
    records = [json.loads(path.read_text()) for path in sorted(whole.glob("runs/*/record.json"))]
    messages: list[Any] = []
    worker = Worker(setup, messages.append)
    worker._parent = os.getpid()  # of the forks that train

    def jobs(out: Path) -> list[dict[str, Any]]:
        chosen = [r for r in records if r["key"]["phase"] == "evaluation"][:2]
        chosen += [r for r in records if r["key"]["phase"] == "base"]
        return [
            {
                "key": record["key"],
                "identity": record["identity"],
                "digest": record["digest"],
                "folder": str(out / "runs" / record["digest"]),
                "checkpoint": str(out / "cache" / "checkpoints" / record["digest"]),
                "arm": record["identity"].get("arm"),
                "plan": plans.get(record["key"]["arm"]),
            }
            for record in chosen
        ]

    def train(out: Path) -> None:
        worker.run_all(jobs(out))

    def trained(out: Path) -> bool:
        return all(is_whole(Path(job["folder"])) for job in jobs(out)) and not [
            path for path in (out / "runs").iterdir() if path.name.startswith(".")
        ]

    by_name = {
        "begin": each_kill(
            "begin", base, lambda out: None, begin, lambda out: (out / "ledger.db").exists(), most
        ),
        "end": each_kill(
            "end",
            base,
            copied,
            lambda out: front.run_study(spec, out),
            lambda out: load_study(out).to_json()["findings"] == wanted,
            most,
        ),
        "worker": each_kill(
            "worker", base, lambda out: (out / "runs").mkdir(parents=True), train, trained, most
        ),
    }
    print(json.dumps(by_name))


if __name__ == "__main__":
    main()
