"""Run a study: what is missing is trained by worker processes; the coordinator alone writes the ledger."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratlas.errors import DataError, Interrupted, OutputError, RunError
from loratlas.files import digest, write_json
from loratlas.models.task import CAUSAL
from loratlas.scan.pace import OnEvent as OnScan
from loratlas.study import side_metrics as beside
from loratlas.study.fleet_sizing import fleet_size
from loratlas.study.ledger import NAME, Key, Ledger, claim, unstorable, unwritable
from loratlas.study.prepare import (
    Prepared,
    machine,
    prepare,
    revision,
    training,
    training_device,
    versions,
)
from loratlas.study.run_records import read_record, save_encoded
from loratlas.study.schedule import nll, schedule
from loratlas.study.study_result import StudyResult, load_study
from loratlas.study.study_spec import StudySpec
from loratlas.study.worker_pool import Pool, Process, rebuilt
from loratlas.training.memory import free_bytes
from loratlas.training.run_context import Stop, interruptible

ATTEMPTS = 2
"""How often a run is begun whose worker process died."""

OURS = frozenset({NAME, "claim.lock", "runs", "cache", "findings.json", "report.html"})
"""What a study's folder holds."""

OnEvent = Callable[["StudyEvent"], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEvent:
    """What happens, for a progress display.

    Args:
        kind: "scan" (a step of it; ``planned`` and ``done`` count its units), "prepared", "ready" (a worker loaded the
            base), "started", "step", "finished", "complete".
        planned: runs known to be needed by now (tuning may extend the grid); done: finished ones.
        phase, arm, lr, seed: of the run that the event is about.
        step, steps: of that run.
        nll: of a finished run, nats per token; None if it diverged.
        seconds_left: estimate for the whole study; None before there is anything to go by.
        message: one line in words.
    """

    kind: str
    planned: int
    done: int
    phase: str = ""
    arm: str = ""
    lr: float | None = None
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    nll: float | None = None
    seconds_left: float | None = None
    message: str = ""


def run_study(
    spec: StudySpec, out: str | Path, *, workers: int | None = None, on_event: OnEvent | None = None
) -> StudyResult:
    """Run a study, or what is missing of it.

    Args:
        spec: the study.
        out: its folder: new, empty, or holding the same study.
        workers: processes that train at the same time, one thread each; default: one per CPU core, or one
            where there is a GPU. It changes how long the study takes and nothing else.
        on_event: called with a :class:`StudyEvent` for everything that happens.

    Returns:
        The result, as :func:`loratlas.study.study_result.load_study` reads it from the folder.

    Raises:
        RequestError: the spec, the data or the folder cannot be used; nothing was trained.
        StorageError: the disk is full or not writable; finished runs are kept.
        Interrupted: Ctrl-C; finished runs are kept.
        RunError: a run failed in a way that would repeat itself.
    """
    out = Path(out)
    with ExitStack() as stack:
        known = out.exists()
        if known:
            _check_folder(out, spec)
            stack.enter_context(claim(out))
        else:
            _check_parent(out)
        begun = Ledger.open(out).facts if known and (out / NAME).exists() else {}
        prepared = prepare(spec, begun if begun.get("begun") else None, on_scan=_scan_reporter(on_event))
        if not known:  # made only now: a request that cannot be met leaves nothing behind
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(out, error) from error
            stack.enter_context(claim(out))
        ledger = Ledger.open(out)
        _enter(ledger, prepared, spec, out)
        ledger.requeue()
        coordinator = Coordinator(spec=spec, out=out, prepared=prepared, ledger=ledger, on_event=on_event)
        try:
            coordinator.run(workers)
            result = load_study(out)
            write_json(out / "findings.json", result.to_json())
        except KeyboardInterrupt:
            raise Interrupted(
                given="Ctrl-C",
                found=f"{coordinator.done} of {coordinator.planned} runs are finished and kept in {out}",
                instead="the same command again: it does only what is missing",
            ) from None
        except OSError as error:
            raise unstorable(str(out), error) from error
    coordinator.tell("complete", message=f"{coordinator.done} runs finished")
    return result


def _scan_reporter(on_event: OnEvent | None) -> OnScan | None:
    """What a scan reports, as events of the study."""
    if on_event is None:
        return None
    return lambda event: on_event(
        StudyEvent(
            kind="scan",
            planned=event.total,
            done=event.done,
            phase="scan",
            seconds_left=event.seconds_left,
            message=f"{event.phase} for the arms that are auto",
        )
    )


def _check_folder(out: Path, spec: StudySpec) -> None:
    """Refuse a folder that holds another study, or anything else."""
    if not out.is_dir():
        raise OutputError(given=str(out), found="a file", instead="a folder, new or of this study")
    if not (out / NAME).exists():
        strange = sorted(entry.name for entry in out.iterdir() if entry.name not in OURS)
        if strange:
            raise OutputError(
                given=str(out),
                found=f"a folder that is no study's: it holds {', '.join(strange[:3])}",
                instead="a new folder",
            )
        return
    _same_study(Ledger.open(out).facts, spec, out)


def _check_parent(out: Path) -> None:
    """Refuse a folder that could not be made, before minutes go into preparing what would stand in it."""
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            given=str(out),
            found=f"{above}, in which no folder can be made",
            instead="a folder that you may write to",
        )


def _same_study(facts: Mapping[str, Any], spec: StudySpec, out: Path) -> None:
    if facts and facts.get("spec_digest") != spec.digest:
        before, now = facts.get("spec") or {}, spec.to_json()
        different = [key for key in {**now, **before} if before.get(key) != now.get(key)]
        raise OutputError(
            given=str(out),
            found=f"another study in it, {before.get('name', 'without a name')!r}, which differs in "
            f"{', '.join(different) or 'its version'}",
            instead="another --out, or the spec that this folder began with",
        )


def _enter(ledger: Ledger, prepared: Prepared, spec: StudySpec, out: Path) -> None:
    """Write the study's facts once; on later runs make sure that they still hold."""
    known = ledger.facts
    _same_study(known, spec, out)
    facts = prepared.facts(spec)
    if not known.get("begun"):
        ledger.note(**facts, machine=machine(), versions=versions(), revision=revision(), begun=time.time())
        return
    ledger.note(**{name: fact for name, fact in facts.items() if name not in known})  # of an earlier version
    for name in ("train", "tuning", "evaluation", "forgetting"):
        if name in facts["data"] and known["data"][name]["digest"] != facts["data"][name]["digest"]:
            raise DataError(
                given=facts["data"][name]["source"],
                found=f"other {name} rows than this study began with",
                instead="the rows as they were, or another --out",
            )
    tables = [{name: plan["digest"] for name, plan in found["plans"].items()} for found in (known, facts)]
    if tables[0] != tables[1] or known["base"] != facts["base"]:
        raise OutputError(
            given=str(out), found="a study of another base or with other plans", instead="another --out"
        )


@dataclass(kw_only=True)
class Coordinator:
    """Gives runs to workers and enters what they finish; see :func:`run_study`."""

    spec: StudySpec
    out: Path
    prepared: Prepared
    ledger: Ledger
    on_event: OnEvent | None
    finished: dict[Key, dict[str, Any]] = field(default_factory=dict)
    planned: int = 0

    def __post_init__(self) -> None:
        self._deaths: dict[Key, int] = {}
        self._trials: dict[Key, int] = {}
        self._steps: dict[Key, int] = {}
        self._steps_before = 0
        self._training = training(self.spec)
        self._clock = 0.0
        self._fleet = 1

    @property
    def done(self) -> int:
        """Finished runs."""
        return len(self.finished)

    def run(self, workers: int | None) -> None:
        """Until nothing is missing."""
        self.finished = self.ledger.finished()
        self._adopt()
        state = schedule(self.spec, self.finished)
        self.planned = state.planned
        self.tell("prepared", message=f"{self.done} of {self.planned} runs are finished")
        if state.complete:
            return
        device = training_device()
        setup = self._write_setup(device)
        count = workers or (_cores() if device == "cpu" else 1)
        count = max(1, min(count, len(state.pending)))
        threads = 1 if device == "cpu" else None
        free = free_bytes(device) // count
        self._fleet = fleet_size(self.spec, self.prepared, device, free=free)
        # A Ctrl-C is asked for, not thrown: thrown into a destructor, say, Python would swallow it.
        with interruptible() as stop, Pool(setup, self.out / "cache", workers=count, threads=threads) as pool:
            self._loop(pool, stop)

    def _loop(self, pool: Pool, stop: Stop) -> None:
        queue = deque[Key]()
        while not stop.asked:
            if not queue and not pool.busy:
                state = schedule(self.spec, self.finished)
                self.planned = state.planned
                if state.complete:
                    return
                queue.extend(state.pending)
            for process in pool.idle:
                if queue:
                    most = min(self._fleet, -(-len(queue) // max(1, len(pool.processes))))
                    self._start(process, [queue.popleft() for _ in range(most)])
            for process, message in pool.hear():
                self._heard(pool, process, message, queue)
        raise KeyboardInterrupt

    def _start(self, process: Process, keys: list[Key]) -> None:
        jobs = []
        for key in keys:
            identity = self._identity(key)
            name = digest(identity)
            self._trials[key] = self.ledger.begin(key, identity)
            jobs.append(
                {
                    "key": key.to_json(),
                    "identity": identity,
                    "digest": name,
                    "folder": str((self.out / "runs" / name).resolve()),
                    "checkpoint": str((self.out / "cache" / "checkpoints" / name).resolve()),
                    "arm": None if key.phase == "base" else self.spec.arms[key.arm].model_dump(mode="json"),
                    "plan": None if key.phase == "base" else self.prepared.plans[key.arm].to_json(),
                }
            )
        process.give(keys, {"jobs": jobs})
        self._clock = self._clock or time.monotonic()
        for key in keys:
            self.tell("started", key)

    def _heard(self, pool: Pool, process: Process, message: Mapping[str, Any], queue: deque[Key]) -> None:
        keys: list[Key] = process.job or []
        match message["event"]:
            case "ready":
                self.tell("ready")
            case "step" if keys:
                key = keys[message["place"]]
                self._steps[key] = message["step"]
                self.tell("step", key, step=message["step"])
            case "finished" if keys:
                key = keys[message["place"]]
                name = digest(self._identity(key))
                record = read_record(self.out / "runs" / name)
                if record is None:
                    raise RunError(
                        given=str(self.out / "runs"),
                        found="a finished run's folder is gone",
                        instead="leaving it there",
                    )
                if message["place"] == len(keys) - 1:
                    process.job = None
                shutil.rmtree(self.out / "cache" / "checkpoints" / name, ignore_errors=True)
                self._enter_run(key, record)
            case "failed":
                self._abandon(keys)
                process.job = None
                raise rebuilt(message["error"])
            case "died":
                self._died(pool, process, keys, message["code"], queue)

    def _abandon(self, keys: list[Key]) -> list[Key]:
        """Close the runs of these that are still open; they are returned."""
        left = [key for key in keys if key in self._trials]
        for key in left:
            self.ledger.abandon(self._trials.pop(key))
            self._steps.pop(key, None)
        return left

    def _died(self, pool: Pool, process: Process, keys: list[Key], code: int, queue: deque[Key]) -> None:
        """A worker that the system ended (out of memory, say): its runs are begun once more, one by one, then
        given up."""
        left = self._abandon(keys)
        for key in left or [Key(phase="base", arm="(loading)")]:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] >= ATTEMPTS:
                doing = f"running {_words(key)}" if left else "loading the base"
                raise RunError(
                    given=f"a worker process {doing}",
                    found=f"it ended {self._deaths[key]} times without a word (exit code {code}; out of memory?); "
                    f"its log is {process.log}",
                    instead="fewer workers or more memory, then the same command: finished runs are kept",
                )
        if len(left) > 1:
            self._fleet = 1
        queue.extendleft(reversed(left))
        pool.replace()

    def _enter_run(self, key: Key, record: dict[str, Any]) -> None:
        self.ledger.finish(self._trials.pop(key), value=nll(record), record=record)
        self.finished[key] = record
        self._steps.pop(key, None)
        if key.phase == "base":  # only judged: where nothing trained beside it, its time is no training's
            self._clock = self._clock if self._worked() else time.monotonic()
        else:
            self._steps_before += self._whole()
        self.planned = max(self.planned, schedule(self.spec, self.finished).planned)
        self.tell("finished", key, step=self.spec.steps, nll=record.get("nll"))

    def _adopt(self) -> None:
        """Enter runs whose folder is whole although the coordinator died before it could enter them."""
        while True:
            found = 0
            for key in schedule(self.spec, self.finished).pending:
                identity = self._identity(key)
                record = read_record(self.out / "runs" / digest(identity))
                if record is not None and record.get("identity") == identity:
                    self._trials[key] = self.ledger.begin(key, identity)
                    self.ledger.finish(self._trials.pop(key), value=nll(record), record=record)
                    self.finished[key] = record
                    found += 1
            if not found:
                return

    def _identity(self, key: Key) -> dict[str, Any]:
        """Everything that decides a run's numbers."""
        prepared, spec = self.prepared, self.spec
        rows = prepared.tuning if key.phase == "tuning" else prepared.evaluation
        identity = {
            "key": key.to_json(),
            "model": spec.model,
            "config": prepared.anatomy.config_digest,
            "rows": rows.digest,
            "shared": {"dtype": spec.dtype, "packing": spec.packing, "base_dropout": spec.base_dropout},
        }
        if key.phase != "tuning":
            identity |= beside.identity(spec, prepared.forgetting)
        if prepared.task.name != CAUSAL:
            identity["task"] = prepared.task.to_json()
        if key.phase == "base":
            return identity
        return identity | {
            "train": prepared.train.digest,
            "plan": prepared.plans[key.arm].to_json(),
            "arm": spec.arms[key.arm].model_dump(mode="json"),
            "training": self._training,
        }

    def _write_setup(self, device: str) -> Path:
        """The file that workers start from, with the encoded rows beside it."""
        cache = self.out / "cache"
        cache.mkdir(exist_ok=True)
        data = {}
        for name in ("train", "tuning", "evaluation"):
            path = (cache / f"{name}.npz").resolve()
            save_encoded(path, getattr(self.prepared, name))
            data[name] = str(path)
        if self.prepared.forgetting is not None:
            path = (cache / "forgetting.npz").resolve()
            save_encoded(path, self.prepared.forgetting)
            data["forgetting"] = str(path)
        metric = None
        if self.spec.metric is not None and self.prepared.asked is not None:
            path = (cache / "asked.json").resolve()
            beside.save_rows(path, self.prepared.asked)
            metric = {**self.spec.metric.model_dump(mode="json"), "file": str(path)}
        source = Path(self.prepared.source)
        setup = {
            "model": str(source.resolve()) if source.exists() else self.prepared.source,
            "dtype": self.spec.dtype,
            "base_dropout": self.spec.base_dropout,
            "packing": self.spec.packing,
            "pad_id": self.prepared.train.pad_id,
            "max_length": self.spec.max_length,
            "device": device,
            "data": data,
            "metric": metric,
            "training": self._training,
            "versions": versions(),
            "revision": revision(),
        }
        path = cache / "setup.json"
        path.write_text(json.dumps(setup, indent=1), encoding="utf-8")
        return path

    def _whole(self) -> int:
        """A run's work in steps; judging counts like a tenth of the training. For the time that is left only."""
        return self.spec.steps // 10 + self.spec.steps

    def _worked(self) -> int:
        """Steps of all runs since this process began."""
        return self._steps_before + sum(self._steps.values())

    def tell(self, kind: str, key: Key | None = None, **more: Any) -> None:
        """Hand an event to whoever listens."""
        if self.on_event is None:
            return
        about = {} if key is None else {"phase": key.phase, "arm": key.arm, "lr": key.lr, "seed": key.seed}
        self.on_event(
            StudyEvent(
                kind=kind,
                planned=self.planned,
                done=self.done,
                steps=self.spec.steps,
                seconds_left=None if key is not None and key.phase == "base" else self._left(),
                **{"message": _words(key), **about, **more},
            )
        )

    def _left(self) -> float | None:
        if self.done >= self.planned:
            return 0.0
        worked = self._worked()
        if not self._clock or not worked:
            return None
        rate = worked / (time.monotonic() - self._clock)
        return max(0.0, (self.planned - self.done) * self._whole() - sum(self._steps.values())) / rate


def _words(key: Key | None) -> str:
    if key is None:
        return ""
    return (
        "the bare base" if key.phase == "base" else f"{key.phase} {key.arm}, lr {key.lr:g}, seed {key.seed}"
    )


def _cores() -> int:
    """Cores that this process may use, which a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
