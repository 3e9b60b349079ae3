"""`loratlas.study`: compare placements, and say which is better and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.listener import Bar, Held, Listener, Silent, known
from loratlas.api.results import Study

if TYPE_CHECKING:
    from loratlas.study.execution.study_events import StudyEvent
    from loratlas.study.inputs.study_cost import StudyCost
    from loratlas.study.spec.study_spec import StudySpec


def study(
    spec: str | Path | Mapping[str, Any] | StudySpec,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    listener: Listener | None = None,
) -> Study:
    """Compare placements: tune each at equal cost, train on fresh seeds, say which is better and how sure that is.

    Args:
        spec: a study's YAML file, its contents, or ``demo:facts``, a recipe of the package.
        out: the study's folder; ``loratlas-NAME`` unless given. The same study there is continued.
        workers: runs trained at the same time; one per core unless given. It changes no number.
        listener: see :func:`loratlas.train`.

    Returns:
        Arms, findings and the page.

    Raises:
        SpecError: the file is no study. RequestError, RunError: see `loratlas.study.run_study.run_study`.

    >>> import loratlas
    >>> loratlas.study({"name": "x"})
    Traceback (most recent call last):
    loratlas.errors.SpecError: ...
    """
    from loratlas.report import build
    from loratlas.study.run_study import run_study
    from loratlas.study.spec.study_spec import StudySpec

    listener = listener or Silent()
    hear = Held(listener)
    read = spec if isinstance(spec, StudySpec) else _read(spec)
    folder = Path(out) if out is not None else Path(f"loratlas-{read.name}")
    if read.demonstration:
        hear.note("This is a demonstration: short runs, few candidates. It settles nothing.")
    with listener.progress("preparing", total=1, unit="runs") as bar:
        result = run_study(read, folder, workers=workers, on_event=_watch(bar, hear))
    page = build(result.to_json(), folder / "report.html")
    return Study(numbers={**result.to_json(), "page": str(page)})


def study_cost(spec: str | Path | Mapping[str, Any] | StudySpec, *, workers: int | None = None) -> StudyCost:
    """What a study would take on this machine: runs, steps, time, memory, disk. Nothing is trained or written.

    Args:
        spec, workers: as for :func:`study`.

    Returns:
        The cost; it prints as one line, and `StudyCost.to_json` has the numbers.

    Raises:
        SpecError: the file is no study. RequestError: the base or the rows cannot be used.

    >>> import loratlas
    >>> loratlas.study_cost({"name": "x"})
    Traceback (most recent call last):
    loratlas.errors.SpecError: ...

    With a file: ``print(loratlas.study_cost("study.yaml").sentence())``.
    """
    from loratlas.study.run_study import cost_of
    from loratlas.study.spec.study_spec import StudySpec

    return cost_of(spec if isinstance(spec, StudySpec) else _read(spec), workers=workers)


def _read(spec: str | Path | Mapping[str, Any]) -> StudySpec:
    from loratlas.study.spec.spec_file import load_spec, parse_spec

    return parse_spec(dict(spec), where="the study") if isinstance(spec, Mapping) else load_spec(Path(spec))


def _watch(bar: Bar, listener: Held) -> Callable[[StudyEvent], None]:
    """What a study reports, on a bar."""
    running: dict[tuple[Any, ...], float] = {}

    def on_event(event: StudyEvent) -> None:
        listener.release()  # the request was checked: work begins
        key = (event.phase, event.arm, event.lr, event.seed)
        if event.kind in ("started", "step"):
            running[key] = event.step / event.steps if event.steps else 0.0
        elif event.kind == "finished":
            running.pop(key, None)
        if event.kind == "complete":
            return
        if event.kind == "redo":
            listener.note(event.message)
            return
        if event.kind == "scan":
            bar.total = event.planned
            bar.to(event.done, event.message, title="scanning", left=known(event.seconds_left), unit="units")
            return
        bar.total = max(event.planned, 1)
        if event.kind == "prepared":
            bar.unit = "runs"
            bar.start_at(event.done)
            if event.done < event.planned:
                listener.note(event.message)
            return
        bar.to(
            event.done + min(sum(running.values()), 0.99 * len(running)),
            f"{event.arm}, lr {event.lr:g}, seed {event.seed}" if event.arm else event.message,
            title=event.phase or bar.title,
            left=known(event.seconds_left),
        )

    return on_event
