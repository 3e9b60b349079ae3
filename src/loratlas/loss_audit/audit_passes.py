"""Passes of a model over rows that explain a number: the reference, and what other tools do differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loratlas.data.batches.packing_proof import prove_packing
from loratlas.data.encode import encode, opening_ids
from loratlas.data.examples import Encoded, Example
from loratlas.errors import DataError
from loratlas.evaluation.forward_condition import Condition
from loratlas.evaluation.token_scorer import measure
from loratlas.loss_audit.regularisers import orthogonality, router_balance
from loratlas.loss_audit.token_table import COUNTED, LossTable, read_table
from loratlas.modeling import device_of, unwrap

if TYPE_CHECKING:
    from loratlas.data.rows import Rows


def unwatched(examples: int) -> AbstractContextManager[None]:
    """No progress is reported."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with rows to judge it on.

    Args:
        model: bare or with its adapter, on its device.
        rows: as text.
        encoded: as tokens.
        tokenizer: that made them.
        packed: whether rows may lie end to end in a pass.
        watch: gives the number of examples of a pass, and gets back a context whose value is called with how many are
            done.
    """

    model: Any
    rows: Rows
    encoded: Encoded
    tokenizer: Any
    packed: bool
    watch: Callable[[int], AbstractContextManager[Callable[[int], None] | None]] = unwatched

    def table(
        self, out: Path, *, everything: bool = True, uniform: bool = False, bounds: bool = False
    ) -> LossTable:
        """The reference: each example alone and whole.

        Args:
            out: folder for ``tokens.parquet``.
            everything: score every token, not the counted ones only.
            uniform: measure what label smoothing mixes in.
            bounds: measure how far the rounding of logits may have moved each loss.

        Raises:
            DataError: the loss of a counted token is infinite or NaN.
        """
        table = self._measure(
            out, self.encoded.examples, None, everything=everything, uniform=uniform, bounds=bounds
        )
        self._require_finite(table)
        return table

    def _require_finite(self, table: LossTable) -> None:
        """Refuse a loss that no mean survives, by the row and the token as they stand in the data."""
        bad = np.flatnonzero(table.covered(COUNTED) & ~np.isfinite(table.nll))
        if not len(bad):
            return
        first, examples = bad[0], self.encoded.examples
        example, position = examples[int(table.example[first])], int(table.position[first])
        row = self.rows.rows[example.row].source_row + 1
        token = int(example.input_ids[position])
        what = "−inf" if table.nll[first] == np.inf else "that is no number"
        raise DataError(
            given=f"{self.rows.source}, row {row}",
            found=f"token {position} of it, {self.tokenizer.decode([token])!r} (id {token}), has a log-probability "
            f"{what}; {len(bad):,} tokens of {len(np.unique(table.example[bad])):,} rows do",
            instead="a model whose logits are finite there (--dtype float32 instead of float16), or rows without it",
        )

    def regularisers(self, sizes: Sequence[int]) -> dict[str, float]:
        """What this model adds to the loss that it returns to a trainer, name → nats; {} for most models.

        Args:
            sizes: of batches, on which the balance of experts depends; the first is taken.
        """
        import torch

        penalties = {}
        size = orthogonality(self.model)
        if size:
            penalties["AdaLoRA's orthogonality"] = size
        inner = unwrap(self.model)
        config = inner.config.get_text_config()
        if not (
            getattr(config, "router_aux_loss_coef", None) and getattr(config, "num_experts_per_tok", None)
        ):
            return penalties
        device = device_of(inner)
        many, batches = usual(sizes), []
        for start in range(0, len(self.encoded.examples), many):
            group = [torch.as_tensor(e.input_ids).long() for e in self.encoded.examples[start : start + many]]
            ids = torch.nn.utils.rnn.pad_sequence(group, batch_first=True, padding_value=self.encoded.pad_id)
            lengths = torch.tensor([len(each) for each in group])
            mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
            batches.append((ids.to(device), mask.long().to(device)))
        penalties["balance of the experts"] = router_balance(self.model, batches)
        return penalties

    def under(
        self, condition: Condition, out: Path, *, examples: Sequence[Example] | None = None
    ) -> LossTable:
        """The same rows under another condition."""
        return self._measure(out, examples or self.encoded.examples, condition)

    def _measure(
        self,
        out: Path,
        examples: Sequence[Example],
        condition: Condition | None,
        *,
        everything: bool = True,
        uniform: bool = False,
        bounds: bool = False,
    ) -> LossTable:
        windows = condition is not None and condition.window is not None
        with self.watch(len(examples)) as report:
            measure(
                self.model,
                examples,
                packed=self.packed,
                out=out,
                condition=condition,
                everything=everything,
                special=self.tokenizer.all_special_ids,
                uniform=uniform,
                bounds=bounds,
                pad_id=self.encoded.pad_id,
                # Windows outnumber the examples.
                on_rows=None if windows else report,
            )
        return read_table(out, condition=condition.words if condition else "")


def usual(sizes: Sequence[int]) -> int:
    """The batch size that is most likely among those that a log allows: a power of two, else the first.

    >>> usual([13, 14, 15, 16]), usual([5, 6]), usual([])
    (16, 5, 8)
    """
    return next((b for b in sizes if b & (b - 1) == 0), sizes[0] if sizes else 8)


def subject(
    model: Any,
    rows: Rows,
    encoded: Encoded,
    tokenizer: Any,
    *,
    watch: Callable[[int], AbstractContextManager[Callable[[int], None] | None]] = unwatched,
) -> tuple[Subject, str]:
    """A subject, and why its rows are padded where they cannot be packed ("" where they are)."""
    proof = prove_packing(model)
    made = Subject(
        model=model,
        rows=rows,
        encoded=encoded,
        tokenizer=tokenizer,
        packed=proof.exact,
        watch=watch,
    )
    return made, "" if proof.exact else proof.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A further pass that may explain a number.

    Args:
        name: of its table. words: why, for the progress line.
        condition: how the model is run.
        rough: logits are rounded to 16 bits.
        prefixed: every text is put after the end token, so that its first token is scored as well.
        whole: rows as they were before any was cut.
    """

    name: str
    words: str
    condition: Condition
    rough: bool = False
    prefixed: bool = False
    whole: bool = False

    def take(self, of: Subject, out: Path, *, max_length: int) -> LossTable:
        """Run it.

        Args:
            of: the model and the rows.
            out: folder for the table.
            max_length: of examples, for those that begin with rows as they were.
        """
        if self.whole:
            examples = encode(of.rows, of.tokenizer, max_length=2**30).examples
            condition = replace(self.condition, max_length=max_length, side="right")
            return of.under(condition, out, examples=examples)
        if not self.prefixed:
            return of.under(self.condition, out)
        table = of.under(self.condition, out, examples=[_after(of.tokenizer, e) for e in of.encoded.examples])
        # Token 0 of the text is at place 1 of what was fed: tables are joined on the places of the text.
        return replace(table, position=table.position - 1, condition="each text after the end token")


def _after(tokenizer: Any, example: Example) -> Example:
    ids = np.concatenate([[tokenizer.eos_token_id], example.input_ids]).astype(example.input_ids.dtype)
    labelled = np.concatenate([[False, True], example.labelled[1:]])
    return replace(example, input_ids=ids, labelled=labelled)


def further(
    of: Subject, *, dtype: str, adapted: bool, sizes: Sequence[int], window: int | None, stride: int | None
) -> Iterator[Pass]:
    """Passes in the order in which they are worth trying.

    Args:
        of: the model and the rows.
        dtype: of the reference pass.
        adapted: the model carries an adapter.
        sizes: batch sizes of the log, where they are known.
        window: length of windows, where they were asked for.
        stride: of windows.
    """
    text = of.rows.form == "text"
    if adapted:
        yield Pass(name="adapter_off", words="without the adapter", condition=Condition(adapter=False))
    if window is not None:
        yield Pass(
            name="windows",
            words=f"in windows of {window} tokens",
            condition=Condition(window=window, stride=stride, stream=text),
        )
    if text and of.tokenizer.eos_token_id is not None and not _begins(of):
        yield Pass(
            name="prefixed", words="each text after the end token", condition=Condition(), prefixed=True
        )
    if of.encoded.report.cut:
        yield Pass(name="cut_right", words="rows cut at their end", condition=Condition(), whole=True)
    size = usual(sizes)
    yield Pass(
        name="padded_right",
        words=f"padded at the right in batches of {size}",
        condition=Condition(padding="right", batch_size=size),
    )
    other = "bfloat16" if dtype == "float32" else "float32"
    yield Pass(name=other, words=f"in {other}", condition=Condition(dtype=other), rough=other == "bfloat16")
    yield Pass(name="ahead", words="with labels shifted twice", condition=Condition(ahead=2))
    yield Pass(
        name="padded_left",
        words=f"padded at the left in batches of {size}, positions from the left edge",
        condition=Condition(padding="left", batch_size=size),
    )
    if _drops(of.model):
        yield Pass(name="dropout", words="with dropout on", condition=Condition(dropout=0))


def _begins(of: Subject) -> bool:
    return bool(opening_ids(of.tokenizer))


def _drops(model: Any) -> bool:
    import torch

    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
