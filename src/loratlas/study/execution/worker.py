"""A worker process: loads the base and the encoded rows once, then trains one run after another.

Started as ``python -m loratlas.study.execution.worker SETUP``; SETUP is a JSON file. Jobs come in as JSON lines,
messages go out as JSON lines on what was standard output; whatever libraries print goes to the worker's
log instead. A plain process needs no ``if __name__ == "__main__"`` in the caller's script, and nothing is
pickled.

Between two runs the base is given back as it was: the adapter is taken off and a checksum over all weights is
compared. Initialisations that change the base (PiSSA and its like) are the reason that it can fail; then
the base is loaded again. A worker whose coordinator died stops at its next step.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from loratlas.errors import LoratlasError, OutputError, RunError
from loratlas.study.execution.ledger import unstorable
from loratlas.study.execution.moving_run import moves_of, moving_hook
from loratlas.study.execution.preference_runs import fit_pairs, judge_pairs
from loratlas.study.execution.run_records import load_encoded, write_run
from loratlas.study.results.side_metrics import SideMetrics

SECONDS_BETWEEN_STEPS = 0.5
"""Steps are reported at most this often."""


class Orphaned(Exception):
    """The coordinator is gone; nobody waits for this run."""


class Worker:
    """One base, many runs.

    Args:
        setup: what the coordinator wrote: ``model`` (path or Hub id), ``dtype``, ``base_dropout``,
            ``packing``, ``task`` and ``pad_id`` (see `loratlas.models.task.for_task`), ``data`` (name → .npz),
            ``training`` (settings that all runs share), ``device``,
            ``max_length``, ``metric`` (see `loratlas.study.results.side_metrics.SideMetrics`).
        send: hands a message to the coordinator.
    """

    def __init__(self, setup: Mapping[str, Any], send: Any) -> None:
        import torch

        self._setup, self._send = setup, send
        self._parent = os.getppid()
        if setup["device"] == "cpu":
            torch.set_num_threads(1)
        self._data = {name: load_encoded(Path(path)) for name, path in setup["data"].items()}
        self._side_metrics = SideMetrics(setup, self._data.get("forgetting"))
        self._load()
        self._packed, self._packing = self._decide_packing()

    def _load(self) -> None:
        from loratlas.models.load import load_model
        from loratlas.models.task import CAUSAL, PREFERENCE, for_task

        setup, task = self._setup, self._data["train"].task
        config = (
            None
            if task.name in (CAUSAL, PREFERENCE)
            else for_task(setup["model"], task, pad_id=setup["pad_id"])
        )
        model = load_model(
            setup["model"], dtype=setup["dtype"], base_dropout=setup["base_dropout"], config=config
        )
        self._model = model.to(self._setup["device"])
        self._base_gaps: dict[int, Any] = {}
        self._checksum = checksum(self._model)

    @property
    def weights(self) -> str:
        """Names the base's weights and buffers, as loaded."""
        return f"{self._checksum:08x}"

    def _decide_packing(self) -> tuple[bool, str]:
        wanted = self._setup["packing"]
        if wanted == "off":
            return False, "padded, as asked"
        why = self._data["train"].task.why_padded
        if why is not None:
            return False, why
        if self._setup["base_dropout"]:
            return False, "padded: dropout in the base draws other numbers for other layouts"
        from loratlas.data.batches.packing_proof import prove_packing

        proof = prove_packing(self._model, max_length=self._setup["max_length"])
        if proof.exact:
            return True, f"packed; proven on this model (largest difference {proof.worst:.1e})"
        return False, f"padded: {proof.reason}"

    def run_all(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Train and judge runs, as a fleet where that is possible, and say after each that it is finished."""
        trained: dict[int, tuple[Any, Any]] = {}
        fleet, members, alone = self._fleet(jobs)
        if fleet is not None:
            last = self._reporter(jobs)

            def report(number: int, event: Any) -> None:
                last(members[number], event)

            try:
                results = fleet.fit(resume=True, on_step=report)
            except OutputError:  # a checkpoint that cannot be read: these runs begin at the beginning
                for job in jobs:
                    shutil.rmtree(job["checkpoint"], ignore_errors=True)
                fleet, members, alone = self._fleet(jobs)
                assert fleet is not None
                results = fleet.fit(resume=True, on_step=report)
            for number, index in enumerate(members):
                trained[index] = (fleet, (number, results[number]))
        for index, job in enumerate(jobs):
            self.run(job, trained.get(index), index, alone=alone.get(index))
            self._send({"event": "finished", "index": index})

    def _fleet(self, jobs: Sequence[Mapping[str, Any]]) -> tuple[Any, list[int], dict[int, str]]:
        """The runs that can train side by side, their places among the jobs, and what keeps others out, by index.

        No fleet for fewer than two.
        """
        from loratlas.training.fleet.train_fleet import CannotShareError, Fleet, Member, why_not_in_fleet

        members, indices, alone = [], [], dict[int, str]()
        if self._setup.get("trainer"):
            return None, [], dict.fromkeys(range(len(jobs)), "TRL trains one run")
        for index, job in enumerate(jobs):
            if job["plan"] is None:
                continue
            if job.get("moving") is not None:
                alone[index] = "its adapters move while it trains"
                continue
            plan, settings = self._asked(job)
            kept = Path(job["checkpoint"])
            member = Member(rows=plan.rows, settings=settings, rslora=plan.rslora, out=kept)
            reason = why_not_in_fleet(self._model, member)
            if reason is None:
                members.append(member)
                indices.append(index)
            else:
                alone[index] = reason
        if len(members) < 2:
            return None, [], alone
        try:
            return Fleet(self._model, self._data["train"], members, packed=self._packed), indices, alone
        except CannotShareError as error:
            return None, [], alone | dict.fromkeys(indices, error.found)

    def _asked(self, job: Mapping[str, Any]) -> tuple[Any, Any]:
        """Plan and settings of a run."""
        from loratlas.placement.plan import Plan
        from loratlas.training.settings import Settings

        arm, key = job["arm"], job["key"]
        settings = Settings(
            **{
                "compile": "off",
                **self._setup["training"],
                **({"steps": key["steps"]} if "steps" in key else {}),
            },
            lr=key["lr"],
            seed=key["seed"],
            dropout=arm["dropout"],
            init=arm["init"],
            loraplus=arm["loraplus"],
            site_rates=arm.get("site_rates", "equal"),
        )
        return Plan.from_json(job["plan"]), settings

    def run(
        self,
        job: Mapping[str, Any],
        trained: tuple[Any, Any] | None = None,
        index: int = 0,
        *,
        alone: str | None = None,
    ) -> None:
        """Train and judge one run (or judge the bare base) and write its folder.

        Args:
            job: what the coordinator asked for.
            trained: the fleet that has trained it already, its index there and its result.
            index: of the job among those that came with it.
            alone: what kept the run out of a fleet, if something did.
        """
        begun = time.perf_counter()
        key = job["key"]
        record: dict[str, Any] = {"key": key, "identity": job["identity"], "digest": job["digest"]}
        record |= {"packing": self._packing, "diverged": False, "curve_points": 0}
        curve: list[dict[str, float]] = []
        tables: dict[str, Any] = {}
        rows = self._data["tuning" if key["phase"] == "tuning" else "evaluation"]
        if key["phase"] == "base":
            scores, more, tables = self._judge(self._model, rows)
            numbers, others = self._side_metrics.measure(self._model, self._score)
            numbers, tables = more | numbers, tables | others
        else:
            scores, numbers, curve, tables = self._train(job, rows, trained, index)
            why = f": {alone}" if alone else ""
            fleet = f"in a fleet of {len(trained[0].runs)}" if trained is not None else f"alone{why}"
            record |= {"trained": fleet}
        record |= numbers
        examples = None
        if scores is not None:
            examples = {"example": scores.example, "n": scores.n, "nll": scores.nll}
            record["nll"] = float(scores.nll.sum() / scores.n.sum())
        else:
            record["nll"] = None
        record |= {"seconds": time.perf_counter() - begun, "curve_points": len(curve)}
        record |= {"revision": self._setup["revision"], "versions": self._setup["versions"]}
        write_run(Path(job["folder"]), record, examples=examples, curve=curve, tables=tables)

    def _judge(self, model: Any, rows: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Losses of every row; of a classifier also what the record says of its predictions, and their table."""
        if self._setup.get("trainer"):
            beta, known = self._setup["trainer"]["beta"], self._base_gaps
            return judge_pairs(model, rows, beta=beta, packed=self._packed, known=known)
        if not rows.task.labels:
            return self._score(model, rows), {}, {}
        from loratlas.evaluation.class_losses import classify
        from loratlas.evaluation.class_metrics import PREDICTIONS

        classified = classify(model, rows)
        said = {"name": "accuracy", "value": classified.accuracy, "rows": len(classified.label)}
        return classified.scores, {"metric": said}, {PREDICTIONS: classified.columns()}

    def _score(self, model: Any, rows: Any) -> Any:
        from loratlas.evaluation.score import score

        return score(model, rows, packed=self._packed)

    def _train(
        self, job: Mapping[str, Any], rows: Any, trained: tuple[Any, Any] | None, index: int
    ) -> tuple[Any, dict[str, Any], list[dict[str, float]], dict[str, Any]]:
        key = job["key"]
        plan, settings = self._asked(job)
        result: Any = None
        if trained is not None:
            fleet, (number, result) = trained
            model = fleet.peft_model(number)
        else:
            model = plan.attach(self._model, seed=key["seed"], dropout=settings.dropout, init=settings.drawn)
        try:
            hook = moving_hook(job, plan, self._model, settings.steps_for(len(self._data["train"])))
            if result is None:
                report = self._reporter([job])
                hooks = () if hook is None else (hook,)
                result = self._fit(model, settings, lambda event: report(index, event), hooks)
            curve = [
                {name: float(getattr(point, name)) for name in ("step", "nll", "lr", "tokens", "seconds")}
                for point in result.curve
            ]
            # The last step counts; a diverged run has no last step worth judging.
            scores, more, tables = (None, {}, {}) if result.diverged else self._judge(model, rows)
            diverged = bool(result.diverged or not bool(_finite(scores)))
            moved = {} if hook is None else moves_of(hook, plan, model)
            if key["phase"] == "evaluation" and not diverged:
                asked, others = self._side_metrics.measure(model, self._score)
                more, tables = more | asked, tables | others
        finally:
            self._restore(model)
        numbers = {
            "diverged": diverged,
            "diverged_at": result.diverged_at,
            "train_nll": result.train_nll,
            "steps": result.steps,
            "tokens": result.tokens,
            "labelled_tokens": result.labelled_tokens,
            "step_seconds": result.step_seconds,
            "setup_seconds": result.setup_seconds,
            "tokens_per_second": result.tokens_per_second,
            "peak_bytes": result.peak_bytes,
            "compiled": result.compiled,
            "compile_reason": result.compile_reason,
            "trainable": plan.trainable,
            **moved,
            **more,
        }
        return (None if diverged else scores), numbers, curve, tables

    def _fit(self, model: Any, settings: Any, on_step: Any, hooks: Any) -> Any:
        """The training itself: this project's own, or that of the trainer that the study names."""
        train, trainer = self._data["train"], self._setup.get("trainer")
        if trainer:
            return fit_pairs(model, train, self._setup, settings, on_step)
        from loratlas.training.loop import fit

        return fit(
            model, train, settings, evaluate=None, out=None, on_step=on_step, packed=self._packed, hooks=hooks
        )

    def _reporter(self, jobs: Sequence[Mapping[str, Any]]) -> Any:
        """A function that passes on steps of these jobs, some of them."""
        last: dict[int, float] = {}

        def report(index: int, event: Any) -> None:
            if os.getppid() != self._parent:
                raise Orphaned
            now = time.monotonic()
            if now - last.get(index, 0.0) >= SECONDS_BETWEEN_STEPS:
                last[index] = now
                steps = self._setup["training"]["steps"]
                self._send({"event": "step", "index": index, "step": int(event.step), "steps": steps})

        return report

    def _restore(self, model: Any) -> None:
        """Take the adapter off; load the base again if that did not give it back bit for bit."""
        from loratlas.adapters.trained_heads import detach_adapters

        base = detach_adapters(model)
        base.eval()
        self._model = base
        if checksum(base) != self._checksum:
            self._load()


def checksum(model: Any) -> int:
    """CRC-32 over the bytes of all weights and buffers, in the order of their names."""
    import torch

    total = 0
    for _, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        total = zlib.crc32(flat.cpu().numpy(), total)
    return total


def _finite(scores: Any) -> bool:
    import numpy as np

    return scores is not None and bool(np.isfinite(scores.nll).all())


def describe(error: BaseException) -> dict[str, str]:
    """Any failure of a run as what the coordinator raises: class name and three texts."""
    if isinstance(error, LoratlasError):
        return {
            "class": type(error).__name__,
            "given": error.given,
            "found": error.found,
            "instead": error.instead,
        }
    if isinstance(error, OSError):
        return describe(unstorable("a run's folder", error))
    return {
        "class": RunError.__name__,
        "given": "a run of the study",
        "found": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "instead": "see the worker's log in the study's cache folder; the same command continues where it stopped",
    }


def main(setup_file: str) -> int:
    """The process: read jobs until the coordinator closes the pipe."""
    import traceback

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's; it stops the workers
    channel: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        worker = Worker(json.loads(Path(setup_file).read_text(encoding="utf-8")), send)
        send({"event": "ready", "weights": worker.weights})
        for line in sys.stdin:
            worker.run_all(json.loads(line)["jobs"])
            send({"event": "idle"})
    except (Orphaned, BrokenPipeError):
        return 0
    except Exception as error:
        traceback.print_exc()
        send({"event": "failed", "error": describe(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
