"""The rows of a study whose arms TRL trains on preferences, and what such a study cannot ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loratlas.data.preferences import both_answers, encode_pairs, preference_rows
from loratlas.errors import SpecError
from loratlas.models.task import CAUSAL, PREFERENCE, recognise
from loratlas.sources import expand, judged_split, locate
from loratlas.study.spec.study_spec import StudySpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy
    from loratlas.cost.peak_memory import PeakMemory
    from loratlas.data.examples import Encoded
    from loratlas.data.rows import Rows
    from loratlas.training.settings import Settings


def check_preferences(spec: StudySpec) -> None:
    """Refuse what TRL's trainer does not do, or does otherwise than every other run here.

    Raises:
        SpecError: so. SettingsError: TRL is not installed.
    """
    from loratlas.training.trl_preferences import check_trl

    for given, found, instead in _faults(spec):
        raise SpecError(given=f"{given} with trainer: dpo", found=found, instead=instead)
    check_trl()


def _faults(spec: StudySpec) -> Iterator[tuple[str, str, str]]:
    from loratlas.scan.plan_from_scores import is_auto, is_scan

    if spec.task is not None:
        yield f"task: {spec.task}", "rows that are pairs of answers already", "no task"
    if spec.data.loss != "answer":
        yield f"data.loss: {spec.data.loss}", "a loss of answers alone", "data.loss: answer"
    if spec.metric is not None:
        yield (
            f"metric: {spec.metric.name}",
            "preference accuracy and margin, which are measured unasked",
            "no metric",
        )
    if spec.forgetting is not None:
        yield "forgetting", "pairs, of which a language model's loss says little", "no forgetting"
    if spec.packing == "on":
        yield "packing: on", "pairs that lie side by side in TRL's batches", "packing: auto"
    if spec.compile == "on":
        yield "compile: on", "TRL's own steps, which are not compiled", "compile: off"
    if spec.micro_batch is not None and spec.batch_size % spec.micro_batch:
        yield (
            f"micro_batch: {spec.micro_batch}",
            f"a batch of {spec.batch_size} that it does not divide: TRL would weigh pairs unequally",
            f"micro_batch: {_largest_divisor(spec.batch_size, spec.micro_batch)}",
        )
    for name, arm in spec.arms.items():
        if is_auto(arm.placement) or is_scan(arm.placement):
            yield (
                f"arms.{name}: {arm.placement.strip()}",
                "signals that are measured on a language model's own loss",
                "a placement in words, such as all:8",
            )
        elif arm.init not in (True, "gaussian"):
            yield (
                f"arms.{name}.init: {arm.init}",
                "an adapter that is not zero at the beginning, where the model has to be its own reference, or that "
                "reads rows of a language model first",
                f"arms.{name}.init: gaussian",
            )
        if arm.site_rates != "equal":
            yield (
                f"arms.{name}.site_rates: {arm.site_rates}",
                "rates that this project's own steps measure",
                f"arms.{name}.site_rates: equal",
            )


def _largest_divisor(of: int, most: int) -> int:
    return next(n for n in range(most, 0, -1) if of % n == 0)


def read_pairs(spec: StudySpec, source: str, tokenizer: Any) -> tuple[Encoded, Encoded, Rows]:
    """Pairs to train on, pairs to judge on, and the rows with the preferred answers of the latter.

    Args:
        spec: the study. source: its base. tokenizer: of it.

    Raises:
        SpecError, SettingsError: see `check_preferences`. DataError: rows that cannot be read.
    """
    check_preferences(spec)
    whole, _ = pairs_of(spec, tokenizer, judged=False)
    judged, rows = pairs_of(spec, tokenizer, judged=True)
    recognise(source, rows.form, asked=CAUSAL)
    return whole, judged, rows


def memory_of(config: PretrainedConfig, anatomy: Anatomy, whole: Encoded, settings: Settings) -> PeakMemory:
    """Tells the peak bytes of a typical step; both answers of a pair pass through the base together.

    Args:
        config, anatomy: of the base. whole: rows or pairs to train on. settings: of a run.
    """
    from loratlas.cost.peak_memory import PeakMemory

    if whole.task.name != PREFERENCE:
        return PeakMemory.of_run(config, anatomy, whole, settings)
    micro = settings.micro_batch or settings.batch_size
    both = replace(settings, batch_size=2 * settings.batch_size, micro_batch=2 * micro)
    return PeakMemory.of_run(config, anatomy, both_answers(whole), both)


def pairs_of(spec: StudySpec, tokenizer: Any, *, judged: bool) -> tuple[Encoded, Rows]:
    """Encoded pairs of the training or the evaluation rows, and the rows with the preferred answers.

    Args:
        spec: the study. tokenizer: of its base. judged: whether those to judge on are meant.

    Raises:
        DataError: rows that cannot be read, or of another form.
    """
    data = spec.data
    source = (data.eval or data.train) if judged else data.train
    chosen, rejected = preference_rows(
        locate(expand(source), folder=spec.folder),
        split=judged_split(source, data.eval_split) if judged else data.split,
        mapping=data.map,
        limit=None if judged else data.limit,
    )
    return encode_pairs(chosen, rejected, tokenizer, max_length=spec.max_length), chosen
