"""`loratlas.evaluate`: the loss of a model on rows; every definition of it and why they differ, on request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.checks import (
    adapter_task,
    announced_base,
    check_head,
    check_samples,
    choose_dtype,
    rows_to_judge,
    to_device,
    tokenizer_source,
    trained_dtype,
)
from loratlas.api.folders import adapter_folder, check_out, check_tokenizer
from loratlas.api.listener import Held, Listener, Silent
from loratlas.api.results import Evaluation
from loratlas.errors import Interrupted, SettingsError
from loratlas.interruption import asked_by

if TYPE_CHECKING:
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.loss_audit.audit_passes import Pass, Subject
    from loratlas.loss_audit.definitions import Definition


class Also(StrEnum):
    """Conditions of a forward pass that tools run a model under, besides the one that loratlas evaluates with."""

    dropout = "dropout"
    bfloat16 = "bfloat16"
    float32 = "float32"
    adapter_off = "adapter-off"
    padded_right = "padded-right"
    padded_left = "padded-left"
    shifted = "shifted-twice"


def evaluate(
    model: Any,
    data: Any,
    *,
    adapter: str | Path | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    task: str | None = None,
    loss: str = "answer",
    max_length: int = 512,
    dtype: str | None = None,
    quantize: str | None = None,
    definitions: bool = False,
    batch_sizes: Sequence[int] = (),
    smoothing: Sequence[float] = (),
    also: Sequence[Also] = (),
    window: int | None = None,
    stride: int | None = None,
    samples: int = 0,
    rouge: bool = False,
    forgetting: str | None = None,
    out: str | Path | None = None,
    tokenizer: Any = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Measure the loss of a model on rows, with or without an adapter.

    The loss is Σ nll over all counted tokens divided by their number, in nats; it depends neither on batches nor on
    packing.

    Args:
        model, data, split, columns, limit, task, loss, max_length, tokenizer, quantize, listener: see
            :func:`loratlas.train`. A live model may carry an adapter; the folder of an adapter is evaluated on the base
            that it names.
        adapter: a PEFT adapter's folder, or the folder of a run.
        dtype: of the base; that of the adapter's training unless given.
        definitions: also compute every definition of the loss that tools use, and what lies between them.
        batch_sizes, smoothing, also, window, stride: further definitions: means of batches, smoothed labels, other ways
            to run the model, windows of so many tokens.
        samples, rouge: answers to write, and to score by ROUGE-L.
        forgetting: rows that nothing was trained on; their loss is compared with the base's.
        out: folder for every example's and every token's loss, as Parquet.

    Returns:
        The numbers; see `Evaluation`.

    Raises:
        RequestError: something cannot be done as asked. Interrupted: Ctrl-C or SIGTERM.

    >>> import loratlas
    >>> found = loratlas.evaluate("demo:llama-mini", [{"prompt": "2+2=", "completion": "4"}])
    >>> found.rows, found.nll > 0
    (1, True)
    """
    from loratlas.data.encode import load_tokenizer
    from loratlas.data.task_examples import encode_for
    from loratlas.sources import base_config, model_name, open_base, open_task

    hear = Held(listener or Silent())

    if stride is not None and window is None:
        raise SettingsError(given="--stride without --window", found="nothing to advance", instead="--window")
    named = announced_base(model, hear)
    model = named.model
    if adapter is None and named.adapter is not None:
        adapter = named.adapter
        hear.note("No --adapter: the adapter is evaluated on that base.")
    folder = adapter_folder(Path(adapter)) if adapter is not None else None
    if forgetting is not None and folder is None:
        raise SettingsError(
            given="--forgetting without --adapter",
            found="nothing that could have forgotten",
            instead="--adapter DIR, or the command on those rows alone",
        )
    check_result_folder(None if out is None else Path(out))
    source = base_config(model)
    tokenizer = tokenizer or load_tokenizer(tokenizer_source(model))
    remark = check_tokenizer(folder, tokenizer) if folder is not None else None
    rows = rows_to_judge(data, split=split, columns=columns or {}, limit=limit)
    hear.remark(rows)
    chosen_task, config = open_task(
        source, rows, tokenizer, asked=task, known=adapter_task(folder, source, hear)
    )
    check_samples(chosen_task, samples=samples, rouge=rouge)
    if config is not None:
        _only_causal(chosen_task.name, also=also, smoothing=smoothing, window=window)

    def encode(text: Rows) -> Encoded:
        return encode_for(
            chosen_task, text, tokenizer, config=config or source, max_length=max_length, loss=loss
        )

    encoded = encode(rows)
    other = encode(rows_to_judge(forgetting, split=None, columns={}, limit=limit)) if forgetting else None
    hear.note(encoded.report.sentence())
    number, words = choose_dtype(dtype, trained_dtype(folder))
    hear.release()
    base = open_base(model, dtype=number, quantize=quantize, config=config)
    if folder is not None:
        from loratlas.adapters.stored.load_adapter import load_adapter

        base = load_adapter(base, folder)
    base = to_device(check_head(base, folder))
    about = {
        "schema": "loratlas.eval",
        "version": 1,
        "model": model_name(model),
        "adapter": None if adapter is None else str(adapter),
        "dtype": number,
        "trained_dtype": trained_dtype(folder),
        "task": chosen_task.to_json(),
        "data": {"source": rows.source, "digest": rows.digest, **asdict(encoded.report)},
        "remark": remark,
        "out": None if out is None else str(out),
    }
    if config is not None:
        judgement = _judge_task(base, encoded, None if out is None else Path(out))
    else:
        judgement = _judge_causal(
            base, rows, encoded, tokenizer,
            _Asked(
                out=None if out is None else Path(out), max_length=max_length, dtype=number,
                adapted=folder is not None, also=also,
                sizes=batch_sizes, smoothing=smoothing, window=window, stride=stride,
                everything=bool(definitions or out or also or window or smoothing or batch_sizes),
            ),
            hear,
        )  # fmt: skip
    answers = _answers(base, tokenizer, rows, samples, rouge)
    lost = _forgetting(base, other, forgetting, judgement.numbers["packed"]) if other is not None else None
    numbers = {**about, **judgement.numbers, "forgetting": lost, "samples": answers}
    return Evaluation(
        numbers=numbers,
        definitions=tuple(judgement.definitions),
        notes=tuple(note for note in (judgement.note, remark) if note),
        computed=words,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """Numbers for JSON, the definitions among them, and a remark on how they were computed."""

    numbers: dict[str, Any]
    definitions: Sequence[Definition] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the options say about a causal evaluation."""

    out: Path | None
    max_length: int
    dtype: str
    adapted: bool
    also: Sequence[Also]
    sizes: Sequence[int]
    smoothing: Sequence[float]
    window: int | None
    stride: int | None
    everything: bool


def _judge_task(model: Any, encoded: Encoded, out: Path | None) -> _Judged:
    """A classifier, or an encoder-decoder."""
    from loratlas.loss_audit.judge import judge_once

    numbers, chosen = judge_once(model, encoded, out)
    return _Judged(numbers={"packed": False, **numbers}, definitions=chosen)


def _judge_causal(
    model: Any, rows: Rows, encoded: Encoded, tokenizer: Any, asked: _Asked, hear: Listener
) -> _Judged:
    from loratlas.loss_audit.audit_passes import subject
    from loratlas.loss_audit.catalogue import BATCH_SIZES, catalogue
    from loratlas.loss_audit.definitions import REFERENCE, LossEvidence
    from loratlas.loss_audit.judge import scores_of, summary
    from loratlas.loss_audit.text_units import texts_of

    of, reason = subject(model, rows, encoded, tokenizer, watch=watching(hear))
    sizes = asked.sizes or BATCH_SIZES
    plan = wanted_passes(of, asked, sizes)
    with workspace(asked.out) as folder:
        try:
            table = of.table(
                folder,
                everything=asked.everything,
                uniform=bool(asked.smoothing),
                bounds=asked.out is not None,
            )
        except KeyboardInterrupt:
            raise _stopped(asked.out) from None
    tables = {REFERENCE: table}
    with workspace(None) as folder:
        for one in plan:
            hear.note(f"Once more {one.words}")
            tables[one.name] = one.take(of, folder / one.name, max_length=asked.max_length)
    evidence = LossEvidence(
        tables=tables, texts=texts_of(encoded, rows, tokenizer) if asked.everything else None
    )
    chosen = catalogue(
        evidence,
        batch_sizes=sizes,
        smoothing=asked.smoothing,
        regularisers={name.replace(" ", "_"): size for name, size in of.regularisers(sizes).items()},
    )
    numbers = {
        "packed": of.packed,
        **summary(scores_of(table), evidence, chosen),
        "about": {d.name: {"formula": d.formula, "used_by": d.used_by} for d in chosen},
    }
    return _Judged(
        numbers=numbers, definitions=chosen, note=f"Padded instead of packed: {reason}" if reason else ""
    )


def _only_causal(task: str, **given: Any) -> None:
    """Refuse what only a causal language model can be asked."""
    for name, value in given.items():
        if value:
            raise SettingsError(
                given=f"--{name} in a {task} task",
                found="conditions and definitions for texts that are read token by token",
                instead=f"no --{name}",
            )


def _answers(model: Any, tokenizer: Any, rows: Rows, limit: int, rouge: bool) -> dict[str, Any] | None:
    from loratlas.evaluation.generate import samples

    return samples(model, tokenizer, rows, limit=limit, rouge=rouge, compare=True) if limit else None


def _forgetting(model: Any, encoded: Encoded, source: str | None, packed: bool) -> dict[str, Any]:
    from loratlas.evaluation.forgetting import measure_forgetting

    return {"source": source, **measure_forgetting(model, encoded, packed=packed)}


def check_result_folder(out: Path | None) -> None:
    """Refuse an output folder that holds something else than an evaluation, before anything is loaded.

    Raises:
        OutputError: it is a file, holds other things, or cannot be written to.
    """
    from loratlas.evaluation.result_folder import OWN

    check_out(out, mine=tuple(OWN))


@contextmanager
def workspace(out: Path | None) -> Iterator[Path]:
    """The folder to write tables to: the one that was asked for, or one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="loratlas-") as folder:
        yield Path(folder)


def watching(hear: Listener) -> Callable[[int], AbstractContextManager[Any]]:
    """A progress bar over the examples of a pass, for each pass."""

    @contextmanager
    def watch(examples: int) -> Iterator[Any]:
        with hear.progress("scoring", total=examples, unit="rows") as bar:
            yield lambda rows: bar.to(rows, "")

    return watch


def _stopped(out: Path | None) -> Interrupted:
    if out is None:
        return Interrupted(
            given=asked_by(),
            found="the pass was stopped before its end",
            instead="--out DIR, so that the same command can continue it later",
        )
    return Interrupted(
        given=asked_by(),
        found=f"the pass was stopped; the rows that were finished are kept in {out}",
        instead="the same command, which continues it",
    )


def wanted_passes(of: Subject, asked: _Asked, sizes: Sequence[int]) -> list[Pass]:
    """The passes that were asked for.

    Raises:
        SettingsError: one that this model has no use for.
    """
    from loratlas.loss_audit.audit_passes import further

    names = {Also.shifted: "ahead"}
    plan = {
        one.name: one
        for one in further(
            of,
            dtype=asked.dtype,
            adapted=asked.adapted,
            sizes=sizes,
            window=asked.window,
            stride=asked.stride,
        )
    }
    chosen = [plan["windows"]] if asked.window is not None else []
    for each in dict.fromkeys(asked.also):
        name = names.get(each, each.name)
        if name not in plan:
            why = {
                Also.dropout: "a model without dropout",
                Also.adapter_off: "no adapter to switch off",
            }.get(each, f"a model that computes in {asked.dtype} already")
            raise SettingsError(given=f"--also {each.value}", found=why, instead="the command without it")
        chosen.append(plan[name])
    return chosen
