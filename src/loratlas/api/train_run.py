"""`loratlas.train`: from rows to an adapter that PEFT loads, in the order in which things can go wrong.

Everything that can be refused is refused before the output folder is made: settings, folder, rows, placement.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loratlas.api.checks import (
    adapter_task,
    announced_base,
    check_samples,
    rows_to_judge,
    to_device,
    tokenizer_source,
)
from loratlas.api.listener import Held, Listener, Silent
from loratlas.api.moving_placement import controller
from loratlas.api.place_model import read_named
from loratlas.api.results import Run
from loratlas.api.train_job import (
    Job,
    adapted_base,
    check_job,
    finish,
    fit_job,
    loss_before,
    note_rate,
    places_itself,
    plan_of,
    rows_to_evaluate,
    start_of,
    with_start,
)
from loratlas.dynamic.moving_plan import Moving, moved_plan
from loratlas.errors import Interrupted, SettingsError
from loratlas.interruption import asked_by
from loratlas.placement.budget import budget_text
from loratlas.training.settings import Settings

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.placement.plan import Plan


def train(
    model: Any,
    data: Any,
    *,
    placement: str | None = None,
    budget: str | float | None = None,
    lr: float | Literal["auto"] | Sequence[float] | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    evaluate: Any = None,
    eval_split: str | None = None,
    signal: str | None = None,
    head: str | float | None = None,
    decide: str | int | None = None,
    scores: str | Path | None = None,
    by: str | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    round_ranks: bool = False,
    allow_unresolved: bool = False,
    adapter: str | Path | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    task: str | None = None,
    loss: str = "answer",
    max_length: int = 512,
    samples: int = 0,
    rouge: bool = False,
    forgetting: str | None = None,
    tokenizer: Any = None,
    quantize: str | None = None,
    base_dropout: bool = False,
    resume: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Train adapters at the sites of a placement.

    Rows of text and label train a classifier with its head, an encoder-decoder writes targets from sources, every other
    model continues a text. The base stays frozen; the loss of a step is the mean over all counted tokens.

    Args:
        model: as in :func:`loratlas.read`. A live model gets the adapters in place, and needs ``tokenizer`` unless its
            config names the folder that it came from. The folder of an adapter stands for its base; without
            ``placement`` that adapter is trained further.
        data: rows: a file, a Hub id, ``demo:…``, a `datasets.Dataset`, or a list of dicts.
        placement: where adapters go, ``"q,v:8 + ffn.down:4"``, or ``"auto"``: the run begins with all linear layers and
            decides in its own first steps where adapters go on, with the parameters of ``budget``.
        budget: what the ranks may cost, ``"params=1M"`` or a number of parameters; see :func:`loratlas.place`.
        lr, steps, epochs, batch_size, seed: of ``settings``, by name; steps or epochs has to be given. ``lr="auto"``,
            as where no rate is given, tries neighbouring rates in the first steps and goes on with the best, for at
            most a tenth of the run's steps; a list names the rates to try, in rising order. Runs too short for that
            take a rate by the base's width and the batch.
        settings: everything else about the optimisation, :class:`loratlas.training.settings.Settings`.
        out: folder of the run; None keeps the run in a temporary folder until `Run.save`.
        evaluate, eval_split: rows, or a split of ``data``, on which the loss is measured at the end.
        signal, head, decide: of ``placement="auto"``: which policy (``"weighted"``, ``"energy"``, ``"gradient"``,
            ``"attention"``, …), the steps before it decides (``"10%"``, or a count), and whether it decides again
            (``"every=50"``).
        scores, by: a scan's file, and the score that decides, for ``placement="auto"`` before the run instead.
        alpha, rslora, dora, round_ranks, allow_unresolved: see :func:`loratlas.place`.
        adapter: goes on with this adapter instead of a new one.
        split, columns, limit: which rows, and which column is which field.
        task, loss: ``"causal"``, ``"seq2seq"`` or ``"classification"``; over the ``"answer"`` or ``"all"`` tokens.
        max_length: tokens of a row.
        forgetting: rows that are not trained on; their loss is compared with the base's.
        samples, rouge: answers that are generated at the end, and scored by ROUGE-L.
        tokenizer: of the base, for a live model.
        quantize, base_dropout: ``"4bit"``; keep the base's own dropout.
        resume: go on where a run in ``out`` was stopped.
        listener: hears of progress and remarks; None for silence.

    Returns:
        What was measured, with the trained model and the folder of its adapter.

    Raises:
        RequestError: something cannot be done as asked; nothing was written.
        DivergedError: the loss became NaN or infinite; the last good adapter was written.
        Interrupted: Ctrl-C or SIGTERM; the state was saved.

    >>> import loratlas
    >>> rows = [{"prompt": "2+2=", "completion": "4"}] * 8
    >>> run = loratlas.train("demo:llama-mini", rows, placement="q,v:2", steps=2, lr=0.01, max_length=32)
    >>> run.steps, run.trainable, (run.adapter / "adapter_config.json").is_file()
    (2, 14336, True)
    """
    named = {
        "lr": lr if lr is None or isinstance(lr, float | int | str) else tuple(lr),
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    given = {name: value for name, value in named.items() if value is not None}
    made = replace(settings, **given) if settings is not None else Settings(**given)
    hear = Held(listener or Silent())
    read = announced_base(model, hear)
    if placement is None and adapter is None and read.adapter is not None:
        adapter = read.adapter
        hear.note("No --placement: the adapter is trained further on that base.")
    temporary = None
    if out is None:
        if resume:
            raise SettingsError(
                given="resume without out", found="no folder to continue", instead='out="run"'
            )
        temporary = _Temporary()
        out = temporary.folder / "run"
    job = Job(
        model=read.model,
        data=data,
        out=Path(out),
        placement=placement,
        budget=budget_text(budget),
        scores=None if scores is None else Path(scores),
        by=by,
        alpha=alpha,
        rslora=rslora,
        dora=dora,
        round_ranks=round_ranks,
        allow_unresolved=allow_unresolved,
        adapter=None if adapter is None else Path(adapter),
        split=split,
        columns=columns or {},
        limit=limit,
        task=task,
        loss=loss,
        max_length=max_length,
        evaluate=evaluate,
        eval_split=eval_split,
        samples=samples,
        rouge=rouge,
        forgetting=forgetting,
        settings=made,
        moving=Moving.read(signal, head, decide),
        tokenizer=tokenizer,
        quantize=quantize,
        base_dropout=base_dropout,
        resume=resume,
    )
    return _run(with_start(job), hear, temporary)


class _Temporary:
    """A folder that goes with this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="loratlas-run-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def _run(job: Job, listener: Held, temporary: Any) -> Run:
    """Do the run and write its folder."""
    from loratlas.anatomy.config_sizes import sizes
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.models.config import load_config
    from loratlas.sources import base_config, is_live, open_base, open_rows, open_task
    from loratlas.training.checkpoint import has_checkpoint

    check_job(job)
    if job.resume and not has_checkpoint(job.out):
        listener.note(f"{job.out}: no run to resume; it begins at the beginning.")
    source = base_config(job.model)
    tokenizer = job.tokenizer or load_tokenizer(tokenizer_source(job.model))
    rows = open_rows(job.data, split=job.split, mapping=job.columns, limit=job.limit)
    known = adapter_task(job.adapter, source, listener)
    task, config = open_task(source, rows, tokenizer, asked=job.task, known=known)
    if config is not None and is_live(job.model):
        raise SettingsError(
            given=f"a live model for {task.name}",
            found="a task that changes the class of the base",
            instead="the folder or the name that the model was loaded from",
        )

    def prepare(rows: Rows) -> Encoded:
        encoded = encode_for(
            task, rows, tokenizer, config=config or source, max_length=job.max_length, loss=job.loss
        )
        listener.remark(rows)
        listener.note(f"{rows.source}: {encoded.report.sentence()}")
        return encoded

    train = prepare(rows)
    judged = rows_to_evaluate(job)
    check_samples(task, samples=job.samples, rouge=job.rouge)
    test = None if judged is None else prepare(judged)
    other = rows_to_judge(job.forgetting, split=None, columns={}, limit=None) if job.forgetting else None
    kept = None if other is None else prepare(other)
    described = config or load_config(source)
    note_rate(job, width=sizes(described).hidden, examples=len(train), listener=listener)
    anatomy = read_named(job.model, config) if job.adapter is None else None
    plan: Plan | None = None
    hook = None
    if job.adapter is None:
        assert anatomy is not None
        memory = PeakMemory.of_run(described, anatomy, train, job.settings)
        if places_itself(job):
            begun = start_of(job, anatomy, memory)
            plan, steps = begun.plan, job.settings.steps_for(len(train))
            hook = controller(
                job.moving,
                begun,
                config or source,
                steps=steps,
                init=job.settings.init,
                listener=listener,
            )
        else:
            plan = plan_of(job, anatomy, memory, listener)
    listener.release()
    base = open_base(
        job.model,
        dtype=job.settings.dtype,
        quantize=job.quantize,
        base_dropout=job.base_dropout,
        config=config,
    )
    # Attached first: the seed then gives the same initialisation on every device.
    model = to_device(adapted_base(job, base, plan))
    packed = False if job.base_dropout else None
    before = None if test is None else loss_before(model, test)
    try:
        with listener.progress("training", total=job.settings.steps or 1, unit="steps") as bar:
            result = fit_job(job, model, train, test, packed, bar, hook, listener)
        if hook is not None and plan is not None and anatomy is not None:
            plan = moved_plan(plan, anatomy, hook, model)
        numbers = finish(
            job, task, model, tokenizer, plan, result, test, judged, before, kept, hook, train.digest
        )
    except KeyboardInterrupt:
        if not has_checkpoint(job.out):
            raise
        raise Interrupted(
            given=asked_by(),
            found=f"the run was stopped; its last state is kept in {job.out}",
            instead="the same command with --resume",
        ) from None
    return Run(numbers=numbers, plan=plan, model=model, curve=tuple(result.curve), temporary=temporary)
