"""Hand the runs of a study to workers and enter what they finish; the coordinator alone writes the ledger."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loratlas.errors import OutputError, RunError
from loratlas.files import digest, write_json
from loratlas.interruption import Stop, interruptible
from loratlas.models.task import CAUSAL
from loratlas.study.execution.ledger import Key, Ledger
from loratlas.study.execution.machine_record import revision, versions
from loratlas.study.execution.run_records import is_whole, read_record, save_encoded
from loratlas.study.execution.schedule import scan_steps, schedule
from loratlas.study.execution.schedule_state import Schedule, nll
from loratlas.study.execution.study_events import OnEvent, StudyEvent, describe_run
from loratlas.study.execution.worker_pool import Pool, Process, rebuilt
from loratlas.study.inputs.fleet_sizing import fleet_size
from loratlas.study.inputs.match_budgets import moving_of
from loratlas.study.inputs.prepare import Prepared, training, training_device
from loratlas.study.inputs.study_cost import study_cost
from loratlas.study.results import side_metrics
from loratlas.study.spec.study_spec import StudySpec
from loratlas.time_left import TimeLeft
from loratlas.training.step.memory import free_bytes

ATTEMPTS = 2
"""How often a run is begun whose worker process died."""

FIRST = 3
"""First steps of a process that say nothing about its pace."""


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
        self._time = TimeLeft()
        self._fleet = 1
        self._weights: str | None = self.ledger.about.get("weights")

    @property
    def done(self) -> int:
        """Finished runs."""
        return len(self.finished)

    def run(self, workers: int | None) -> None:
        """Until nothing is missing."""
        self.finished = self._unbroken(self.ledger.finished())
        self._adopt()
        state = self._schedule()
        self.planned = state.planned
        count = max(1, min(workers or default_workers(), len(state.pending)))
        device = training_device()
        self.tell("prepared", message=self._ahead(count, device))
        if state.complete:
            return
        setup = self._write_setup(device)
        threads = 1 if device == "cpu" else None
        free = free_bytes(device) // count
        self._fleet = fleet_size(self.spec, self.prepared, device, free=free)
        first = min(FIRST, max(1, self.spec.steps // 10))
        first *= min(count * self._fleet, len(state.pending))  # which take their first steps together
        self._time = TimeLeft(warm=first, basis=first, window=2 * count * self._fleet * self._whole())
        # A Ctrl-C is asked for, not thrown: thrown into a destructor, say, Python would swallow it.
        with (
            interruptible("stopping; finished runs are kept…") as stop,
            Pool(setup, self.out / "cache", workers=count, threads=threads) as pool,
        ):
            self._loop(pool, stop)

    def _ahead(self, workers: int, device: str) -> str:
        """What is done, or where nothing is, what the study will take."""
        if self.done:
            return f"{self.done} of {self.planned} runs are finished"
        ahead = study_cost(
            self.spec, self.prepared, runs=self.planned, workers=workers, device=device, timed=False
        )
        return f"This study takes {ahead.sentence()}."

    def _schedule(self) -> Schedule:
        extra = scan_steps(self.prepared.scan, self.spec.batch_size)
        return schedule(self.spec, self.finished, extra_steps=extra)

    def _unbroken(self, finished: Mapping[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        """Finished runs whose folders are as they were written; the others are done again."""
        whole = {
            key: record
            for key, record in finished.items()
            if is_whole(self.out / "runs" / record["digest"], record)
        }
        broken = [key for key in finished if key not in whole]
        if broken:
            names = ", ".join(describe_run(key) for key in broken[:3]) + ", …" * (len(broken) > 3)
            self.tell("redo", message=f"done again, for their files are missing or broken: {names}")
        return whole

    def _loop(self, pool: Pool, stop: Stop) -> None:
        queue = deque[Key]()
        while not stop.requested:
            if not queue and not pool.busy:
                state = self._schedule()
                self.planned = state.planned
                if state.complete:
                    return
                queue.extend(state.pending)
            for process in pool.idle:
                if queue:
                    most = min(self._fleet, -(-len(queue) // max(1, len(pool.processes))))
                    self._start(process, _alike(queue, most))
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
                    "moving": self._moving(key),
                }
            )
        process.give(keys, {"jobs": jobs})
        for key in keys:
            self.tell("started", key)

    def _heard(self, pool: Pool, process: Process, message: Mapping[str, Any], queue: deque[Key]) -> None:
        keys: list[Key] = process.job or []
        match message["event"]:
            case "ready":
                self._check_weights(message["weights"])
                self.tell("ready")
            case "step" if keys:
                key = keys[message["index"]]
                self._steps[key] = message["step"]
                self.tell("step", key, step=message["step"])
            case "finished" if keys:
                key = keys[message["index"]]
                name = digest(self._identity(key))
                record = read_record(self.out / "runs" / name)
                if record is None:
                    raise RunError(
                        given=str(self.out / "runs"),
                        found="a finished run's folder is gone",
                        instead="leaving it there",
                    )
                if message["index"] == len(keys) - 1:
                    process.job = None
                shutil.rmtree(self.out / "cache" / "checkpoints" / name, ignore_errors=True)
                self._enter_run(key, record)
            case "failed":
                self._abandon(keys)
                process.job = None
                raise rebuilt(message["error"])
            case "died":
                self._died(pool, process, keys, message["code"], queue)

    def _check_weights(self, weights: str) -> None:
        """Refuse to go on with another base than the study began with; the first worker says which that is."""
        if self._weights is None:
            self.ledger.note(weights=weights)
            self._weights = weights
        elif weights != self._weights:
            raise OutputError(
                given=str(self.out),
                found=f"a study of another base: the weights of {self.spec.model} are not those that it began with",
                instead="the weights as they were, or another --out",
            )

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
                doing = f"running {describe_run(key)}" if left else "loading the base"
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
        if key.phase != "base":
            self._steps_before += self._whole()
        self.planned = max(self.planned, self._schedule().planned)
        self.tell("finished", key, step=self.spec.steps, nll=record.get("nll"))

    def _adopt(self) -> None:
        """Enter runs whose folder is whole although the coordinator died before it could enter them."""
        while True:
            adopted = 0
            for key in self._schedule().pending:
                identity = self._identity(key)
                folder = self.out / "runs" / digest(identity)
                record = read_record(folder)
                if record is not None and record.get("identity") == identity and is_whole(folder):
                    self._trials[key] = self.ledger.begin(key, identity)
                    self.ledger.finish(self._trials.pop(key), value=nll(record), record=record)
                    self.finished[key] = record
                    adopted += 1
            if not adopted:
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
        if self._weights is not None:
            identity["weights"] = self._weights
        if key.phase != "tuning":
            identity |= side_metrics.identity(spec, prepared.forgetting)
        if prepared.task.name != CAUSAL:
            identity["task"] = prepared.task.to_json()
        if spec.trainer is not None:
            identity["trainer"] = spec.trainer.model_dump(mode="json")
        if key.phase == "base":
            return identity
        return identity | {
            "train": prepared.train.digest,
            "plan": prepared.plans[key.arm].to_json(),
            "arm": spec.arms[key.arm].model_dump(mode="json"),
            "training": self._training | ({"steps": key.steps} if key.steps else {}),
            **({"moving": moving} if (moving := self._moving(key)) is not None else {}),
        }

    def _moving(self, key: Key) -> dict[str, Any] | None:
        """How the adapters of a run move; None where they stay where they are."""
        if key.phase == "base" or key.arm not in self.prepared.moving:
            return None
        return {**asdict(moving_of(self.spec.arms[key.arm])), "budget": self.prepared.moving[key.arm]}

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
            side_metrics.save_rows(path, self.prepared.asked)
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
            "trainer": None if self.spec.trainer is None else self.spec.trainer.model_dump(mode="json"),
            "training": self._training,
            "versions": versions(),
            "revision": revision(),
        }
        path = cache / "setup.json"
        write_json(path, setup)
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
                **{"message": describe_run(key), **about, **more},
            )
        )

    def _left(self) -> float | None:
        if self.done >= self.planned:
            return 0.0
        self._time.update(self._worked())
        return self._time.seconds((self.planned - self.done) * self._whole() - sum(self._steps.values()))


def _alike(queue: deque[Key], most: int) -> list[Key]:
    """The next runs of one length, at most so many: a fleet's runs take their steps together."""
    taken = [queue.popleft()]
    while queue and len(taken) < most and queue[0].steps == taken[0].steps:
        taken.append(queue.popleft())
    return taken


def default_workers() -> int:
    """One per core that this process may use, which a container can make fewer than the machine has; one on a GPU."""
    if training_device() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
