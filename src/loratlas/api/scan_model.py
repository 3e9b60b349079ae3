"""`loratlas.scan`: where adapters help most on rows, and the plan that follows from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.checks import announced_base, to_device, tokenizer_source
from loratlas.api.folders import check_out
from loratlas.api.listener import Held, Listener, Silent, scan_progress
from loratlas.api.place_model import read_named
from loratlas.api.results import Placed, ScanResult
from loratlas.errors import SettingsError
from loratlas.files import jsonable
from loratlas.scan.advice import DECIDES, track_record
from loratlas.sealed_json import write_sealed

if TYPE_CHECKING:
    from loratlas.placement.allocate import Limits
    from loratlas.scan.scores import Scan


def scan(
    model: Any,
    data: Any,
    *,
    budget: str | float | None = None,
    signals: Sequence[str] = (),
    all_signals: bool = False,
    by: str | None = None,
    among: str = "all",
    rows: int = 128,
    fisher: bool = False,
    trial_steps: int | None = None,
    minutes: float | None = None,
    limits: Limits | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    round_ranks: bool = False,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    loss: str = "answer",
    max_length: int = 512,
    seed: int = 0,
    dtype: str | None = None,
    quantize: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    tokenizer: Any = None,
    listener: Listener | None = None,
) -> ScanResult:
    """Measure where adapters help most on these rows, before a run, and distribute a budget by that.

    Args:
        model, data, split, columns, limit, loss, max_length, quantize, tokenizer, listener: see
            :func:`loratlas.train`.
        budget: what the plan may cost, as text or a number of parameters; as much as ``all`` at rank 16 unless given.
        signals, all_signals: what else is measured, by name, or everything that does not train.
        by: the score that decides; ``probe_energy``, of two short trials, unless given.
        among: the sites to choose from, as a placement.
        rows: that signals read at most.
        fisher: also measure per-example second moments.
        trial_steps: of each of the two trials.
        minutes: stop at once where the first steps say that it would take longer; None for no limit.
        limits: lowest and highest ranks and the like; see `loratlas.placement.allocate.Limits`.
        alpha, rslora, round_ranks: see :func:`loratlas.place`.
        seed, dtype: of the trials; what this machine multiplies fastest unless given.
        out, resume: keep scores and state there; go on with a scan that was stopped.

    Returns:
        Scores and the plan that follows from them.

    Raises:
        RequestError: something cannot be done as asked. Interrupted: Ctrl-C or SIGTERM.

    >>> import loratlas
    >>> rows = [{"prompt": f"{n}+{n}=", "completion": str(2 * n)} for n in range(16)]
    >>> found = loratlas.scan("demo:llama-mini", rows, by="gradient", budget="like=q:1", max_length=32)
    >>> found.plan is not None and found.plan.trainable <= 4096
    True
    """
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.data.model_limits import fitted
    from loratlas.models.load import native_dtype
    from loratlas.models.task import CAUSAL, recognise
    from loratlas.placement.allocate import Limits
    from loratlas.placement.budget import LIKE, budget_text, parse_budget
    from loratlas.scan.plan_from_scores import candidates, check_budget, plan_from
    from loratlas.scan.run_scan import scan as run
    from loratlas.sources import base_config, open_base, open_rows
    from loratlas.training.settings import Settings

    began = time.monotonic()
    hear, limits = Held(listener or Silent()), limits or Limits()
    model = announced_base(model, hear).model
    out = None if out is None else Path(out)
    budget = budget_text(budget)
    if budget is not None:
        parse_budget(budget)  # before the model is looked at
    by, dtype = by or DECIDES, dtype or native_dtype()
    names = _signals(signals, by, everything=all_signals)
    _check_out(out, resume=resume, hear=hear)
    anatomy = read_named(model)
    check_budget(anatomy, budget or LIKE, among=among, limits=limits)
    source = base_config(model)
    tokenizer = tokenizer or load_tokenizer(tokenizer_source(model))
    read = open_rows(data, split=split, mapping=columns or {}, limit=limit)
    recognise(source, read.form, asked=CAUSAL)  # signals are measured on causal language models
    encoded = encode(read, tokenizer, max_length=max_length, loss=loss)
    hear.release()
    base = open_base(model, dtype=dtype, quantize=quantize)
    encoded = fitted(encoded, base.config)
    hear.remark(read)
    hear.note(f"{read.source}: {encoded.report.sentence()}")
    with hear.progress("scanning", total=1, unit="steps") as bar:
        scanned = run(
            to_device(base),
            anatomy,
            encoded,
            signals=names,
            by=by,
            among=among,
            most_rows=rows,
            seed=seed,
            fisher=fisher,
            trial_steps=trial_steps,
            minutes=minutes,
            passed=time.monotonic() - began,
            out=out,
            resume=resume,
            on_event=scan_progress(bar, hear),
        )
    placed = None
    if scanned.readings[by].silent is None:
        settings = Settings(dtype=dtype)
        plan, allocation = plan_from(
            scanned,
            anatomy,
            budget=budget,
            among=among,
            limits=limits,
            alpha=alpha,
            rslora=rslora,
            round_ranks=round_ranks,
            memory=PeakMemory.of_run(base.config, anatomy, encoded, settings),
        )
        placed = Placed(plan=plan, allocation=allocation, peft=jsonable(plan.to_peft(base.config).to_dict()))
    kept = _json(scanned, placed)
    if out is not None:
        _keep(out, kept)
    return ScanResult(
        scan=scanned,
        anatomy=anatomy,
        sites=tuple(candidates(anatomy, among)),
        placed=placed,
        numbers=kept,
        is_plain=limits == Limits() and among == "all",
    )


def _signals(asked: Sequence[str] | None, by: str, *, everything: bool) -> list[str]:
    """Signals to be measured: those asked for, or the one that decides."""
    from loratlas.signals.registry import check_signals, signal_of, untrained

    if asked:
        check_signals(asked)
    owner = signal_of(by)
    names = list(dict.fromkeys([*(asked or ()), *(untrained() if everything else ())]))
    if owner not in names and not ("probe" in names and owner == "probe_yield"):
        if asked:
            raise SettingsError(
                given=f"--by {by} with the signals {', '.join(asked)}",
                found=f"{by} is not measured",
                instead=f"{owner} among the signals as well, or another --by",
            )
        names.append(owner)
    return names


def _check_out(out: Path | None, *, resume: bool, hear: Listener) -> None:
    from loratlas.scan.scan_folder import STATE, has_begun
    from loratlas.scan.scores import RESULT

    if resume and out is None:
        raise SettingsError(
            given="--resume without --out", found="no folder to continue", instead="--out DIR --resume"
        )
    check_out(out, mine=(RESULT, STATE) if resume else (), what="scan, or --resume to continue the one there")
    if resume and out is not None and not has_begun(out):
        hear.note(f"{out}: no scan to resume; it begins at the beginning.")


def _keep(out: Path, data: dict[str, Any]) -> None:
    from loratlas.scan.scores import RESULT

    write_sealed(out / RESULT, data)


def _json(scanned: Scan, placed: Placed | None) -> dict[str, Any]:
    allocation = None
    if placed is not None:
        whole = asdict(placed.allocation)
        allocation = {k: v for k, v in whole.items() if k not in ("ranks", "reasons")}
    return {
        **scanned.to_json(),
        "plan": placed and placed.plan.to_json(),
        "peft": placed and placed.peft,
        "allocation": allocation,
        "track_record": track_record(scanned.by),
        "notes": scanned.notes(),
    }
