"""Run a study, or what is missing of it: its folder is checked and claimed, what holds for it is entered once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loratlas.errors import DataError, Interrupted, OutputError
from loratlas.files import is_leftover
from loratlas.interruption import asked_by
from loratlas.scan.pace import OnEvent as OnScan
from loratlas.scan.plan_from_scores import is_scan
from loratlas.study.execution.coordinator import Coordinator, default_workers
from loratlas.study.execution.ledger import CLAIM, HOLDER, NAME, Ledger, claim, unstorable, unwritable
from loratlas.study.execution.machine_record import machine, revision, versions
from loratlas.study.execution.schedule import schedule
from loratlas.study.execution.study_events import OnEvent, StudyEvent
from loratlas.study.inputs.prepare import Prepared, prepare, training_device
from loratlas.study.inputs.study_cost import StudyCost, study_cost
from loratlas.study.results.study_result import FINDINGS, StudyResult, load_study, write_findings
from loratlas.study.spec.study_spec import StudySpec

OURS = frozenset({NAME, CLAIM, HOLDER, "runs", "cache", FINDINGS, "report.html"})
"""What a study's folder holds."""

SCAN = Path("cache") / "scan"
"""Where the scan of arms that it places keeps its state until the ledger holds its result."""

AGAIN = "the same command again: it does only what is missing"


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
        The result, as :func:`loratlas.study.results.study_result.load_study` reads it from the folder.

    Raises:
        RequestError: the spec, the data or the folder cannot be used; nothing was trained.
        StorageError: the disk is full or not writable; finished runs are kept.
        Interrupted: Ctrl-C or SIGTERM; finished runs are kept.
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
        begun = Ledger.open(out).about if known and (out / NAME).exists() else {}
        held = known

        def hold() -> None:
            nonlocal held
            if held:
                return
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(out, error) from error
            stack.enter_context(claim(out))
            held = True

        def scan_folder() -> Path:
            hold()
            return out / SCAN

        try:
            prepared = prepare(
                spec,
                begun if begun.get("begun") else None,
                on_scan=_scan_reporter(on_event),
                scan_folder=scan_folder,
            )
        except Interrupted as stopped:
            raise Interrupted(
                given=stopped.given,
                found=f"the study was stopped in its scan, whose state is kept in {out}",
                instead=AGAIN,
            ) from None
        hold()  # only now, or for a scan: a request that cannot be met leaves nothing behind
        ledger = Ledger.open(out)
        # It is written last and holds the digest of the ledger, which may change now.
        (out / FINDINGS).unlink(missing_ok=True)
        _enter(ledger, prepared, spec, out)
        shutil.rmtree(out / SCAN, ignore_errors=True)
        ledger.requeue()
        coordinator = Coordinator(spec=spec, out=out, prepared=prepared, ledger=ledger, on_event=on_event)
        try:
            coordinator.run(workers)
            result = load_study(out)
            write_findings(out, result)
        except KeyboardInterrupt:
            raise Interrupted(
                given=asked_by(),
                found=f"{coordinator.done} of {coordinator.planned} runs are finished and kept in {out}",
                instead=AGAIN,
            ) from None
        except OSError as error:
            raise unstorable(str(out), error) from error
    coordinator.tell("complete", message=f"{coordinator.done} runs finished")
    return result


def cost_of(spec: StudySpec, *, workers: int | None = None) -> StudyCost:
    """What a study would take on this machine. Nothing is trained, scanned or written.

    An arm that a scan would place is priced as adapters everywhere at its budget.

    Args:
        spec: the study.
        workers: as for :func:`run_study`.

    Raises:
        RequestError: the spec or the data cannot be used.
    """
    everywhere = {
        name: arm.model_copy(update={"placement": "all"}) if is_scan(arm.placement) else arm
        for name, arm in spec.arms.items()
    }
    priced = spec.model_copy(update={"arms": everywhere})
    prepared = prepare(priced)
    runs = schedule(priced, {}).planned
    at_once = min(workers or default_workers(), runs)
    return study_cost(priced, prepared, runs=runs, workers=at_once, device=training_device(), timed=True)


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
            message=f"{event.phase} for the arms that a scan places",
        )
    )


def _check_folder(out: Path, spec: StudySpec) -> None:
    """Refuse a folder that holds another study, or anything else."""
    if not out.is_dir():
        raise OutputError(given=str(out), found="a file", instead="a folder, new or of this study")
    if not (out / NAME).exists():
        strange = sorted(
            entry.name
            for entry in out.iterdir()
            if entry.name not in OURS and not is_leftover(entry) and not entry.name.startswith(f".{NAME}.")
        )
        if strange:
            raise OutputError(
                given=str(out),
                found=f"a folder that is no study's: it holds {', '.join(strange[:3])}",
                instead="a new folder",
            )
        return
    _same_study(Ledger.open(out).about, spec, out)


def _check_parent(out: Path) -> None:
    """Refuse a folder that could not be made, before minutes go into preparing what would stand in it."""
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            given=str(out),
            found=f"{above}, in which no folder can be made",
            instead="a folder that you may write to",
        )


def _same_study(about: Mapping[str, Any], spec: StudySpec, out: Path) -> None:
    if about.get("begun") and about.get("spec_digest") != spec.digest:
        before, now = about.get("spec") or {}, spec.to_json()
        different = [key for key in {**now, **before} if before.get(key) != now.get(key)]
        raise OutputError(
            given=str(out),
            found=f"another study in it, {before.get('name', 'without a name')!r}, which differs in "
            f"{', '.join(different) or 'its version'}",
            instead="another --out, or the spec that this folder began with",
        )


def _enter(ledger: Ledger, prepared: Prepared, spec: StudySpec, out: Path) -> None:
    """Write what holds for the study once; on later runs make sure that they still hold."""
    known = ledger.about
    _same_study(known, spec, out)
    about = prepared.about(spec)
    if not known.get("begun"):
        ledger.note(**about, machine=machine(), versions=versions(), revision=revision(), begun=time.time())
        return
    ledger.note(**{name: fact for name, fact in about.items() if name not in known})  # of an earlier version
    for name in ("train", "tuning", "evaluation", "forgetting"):
        if name in about["data"] and known["data"][name]["digest"] != about["data"][name]["digest"]:
            raise DataError(
                given=about["data"][name]["source"],
                found=f"other {name} rows than this study began with",
                instead="the rows as they were, or another --out",
            )
    tables = [{name: plan["digest"] for name, plan in record["plans"].items()} for record in (known, about)]
    if tables[0] != tables[1] or known["base"] != about["base"]:
        raise OutputError(
            given=str(out), found="a study of another base or with other plans", instead="another --out"
        )
