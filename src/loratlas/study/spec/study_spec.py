"""The schema of a study's file: every key with its type, its bounds and its default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from loratlas.files import digest
from loratlas.scan.plan_from_scores import is_auto
from loratlas.training.settings import AUTO

FEWEST_TUNING_ROWS = 500
FEWEST_TUNING_SEEDS = 2
SIDE_METRICS = ("metric", "forgetting")
"""Keys of what is measured beside the loss; none of them changes a run's training."""

WRITTEN = ("exact_match", "rouge_l")
"""Metrics of answers that a model writes."""

LEFT_OUT_UNLESS_GIVEN = (*SIDE_METRICS, "task", "trainer")
"""Keys that a study without them does not have, so that it is the study that it was before they existed."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataSpec(_Section):
    """Where rows come from and which of their tokens count."""

    train: str = Field(min_length=1)
    eval: str | None = None
    split: str | None = None
    eval_split: str | None = None
    map: dict[str, str] = Field(default_factory=dict)
    limit: Count | None = None
    loss: Literal["answer", "all"] = "answer"


class ArmSpec(_Section):
    """One contestant: a placement and what is special about its training."""

    placement: str = Field(min_length=1)
    alpha: Positive | None = None
    rslora: bool = False
    dora: bool = False
    dropout: Share = 0.0
    init: bool | str
    """True unless given, and ``auto`` where the adapters move."""
    loraplus: Positive | None = None
    site_rates: Literal["equal", "curvature"] = "equal"
    budget: str | None = None
    signal: str | None = None
    head: str | float | None = None
    decide: str | int | None = None
    """These three of ``auto`` alone: what decides inside the run, and when."""

    @model_validator(mode="before")
    @classmethod
    def _begun(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("init") is not None:
            return given
        placement = given.get("placement")
        return given | {"init": AUTO if isinstance(placement, str) and is_auto(placement) else True}

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # An arm without what was not asked for is the arm that it was before that existed, digests included.
        absent = [
            ("dora", False),
            ("site_rates", "equal"),
            ("signal", None),
            ("head", None),
            ("decide", None),
        ]
        return {key: value for key, value in written(self).items() if (key, value) not in absent}


class TuningSpec(_Section):
    """How the learning rate of every arm is chosen."""

    seeds: Count = 3
    """Around each arm's optimum; never fewer than three, but in a demonstration. The first round has one."""
    rows: Count = FEWEST_TUNING_ROWS
    extensions: Annotated[int, Field(ge=0, le=10)] = 2
    """How often everyone's grid may grow on each side when an optimum lies at its edge."""


class EvaluationSpec(_Section):
    """What the findings stand on."""

    seeds: Annotated[int, Field(ge=2)] = 5
    rows: Annotated[int, Field(ge=2)] = 1000


class ForgettingSpec(_Section):
    """Rows that no arm is trained for: their loss before and after says what an adapter costs elsewhere."""

    data: str = Field(min_length=1)
    split: str | None = None
    map: dict[str, str] = Field(default_factory=dict)
    rows: Annotated[int, Field(ge=2)] = 200
    loss: Literal["answer", "all"] = "all"


class MetricSpec(_Section):
    """A measure of the task itself, taken on the first evaluation rows after every evaluation run."""

    name: Literal["exact_match", "rouge_l", "accuracy", "macro_f1"]
    """The first two are of written answers (ROUGE-L counts exact matches as well). A classification tells the other
    two of all evaluation rows whatever is written here, the one that is named first."""
    rows: Annotated[int, Field(ge=2)] = 100
    max_new_tokens: Count = 64


class TrainerSpec(_Section):
    """A trainer of another library that trains every arm, on a loss of its own."""

    name: Literal["dpo"]
    """TRL's `DPOTrainer`: rows are pairs of answers, and the loss is that of preferences."""
    beta: Positive = 0.1
    """How much a nat counts by which the model prefers an answer more than the base does."""


def _trainer(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _forgetting(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


def _metric(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _arm(value: Any) -> Any:
    return {"placement": value} if isinstance(value, str) else value


def _switch(value: Any) -> Any:
    # YAML reads a bare `on` as true and `off` as false.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class StudySpec(_Section):
    """Everything that decides a study's numbers; what is not in here (workers, folders) does not."""

    name: str = "study"
    model: str = Field(min_length=1)
    task: Literal["causal", "seq2seq", "classification"] | None = None
    """What the rows are for; told from their fields and the architecture unless given."""
    trainer: Annotated[TrainerSpec | None, BeforeValidator(_trainer)] = None
    data: DataSpec
    arms: dict[str, Annotated[ArmSpec, BeforeValidator(_arm)]] = Field(min_length=2)
    reference: str = ""
    match: Annotated[Literal["params", "time", "memory", "none"], BeforeValidator(lambda v: v or "none")] = (
        "none"
    )
    budget: str | None = None
    learning_rates: tuple[Positive, ...] = Field(
        default=(3e-4, 4.8e-4, 7.7e-4, 1.2e-3, 2e-3, 3.1e-3, 5e-3), min_length=1
    )
    tuning: TuningSpec = TuningSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    metric: Annotated[MetricSpec | None, BeforeValidator(_metric)] = None
    forgetting: Annotated[ForgettingSpec | None, BeforeValidator(_forgetting)] = None
    steps: Count = 200
    batch_size: Count = 16
    micro_batch: Count | None = None
    subset: Count | None = None
    max_length: Annotated[int, Field(ge=2)] = 512
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.03
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    clip: Positive | None = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    packing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    compile: Annotated[Literal["on", "off"], BeforeValidator(_switch)] = "off"
    """Never by a run's own judgement: that goes by its pace, and a study's numbers must not depend on the machine's."""
    checkpointing: bool = False
    base_dropout: bool = False
    allow_unresolved: bool = False
    delta: Positive = 0.01
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    demonstration: bool = False
    protocol: Literal[1, 2] = 2
    """The edition of docs/method/statistics.md that the study follows; 1 is read and never run."""

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        # "Default: all linear layers": the one arm whose placement is the set `all`, whatever its rank.
        if isinstance(values, dict) and not values.get("reference") and isinstance(values.get("arms"), dict):
            texts = {name: _arm(arm) for name, arm in values["arms"].items()}
            whole = [
                name
                for name, arm in texts.items()
                if isinstance(arm, Mapping)
                and str(arm.get("placement", "")).partition(":")[0].strip() == "all"
            ]
            if len(whole) == 1:
                return {**values, "reference": whole[0]}
        return values

    @property
    def folder(self) -> Path | None:
        """Folder of the file this was read from; relative data paths start there."""
        return self._folder

    @property
    def digest(self) -> str:
        """16 hex digits over the normalised spec, δ included: another digest is another study."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The spec with all defaults written out; ``${NAME}`` stays as written: no machine is in it.

        What was not asked for (compiling, measures beside the loss, unknown matrices) is left out: a study without it
        is the study that it was before this could be asked, digest included.
        """
        whole = self.model_dump(mode="json")
        if whole["compile"] == "off":
            del whole["compile"]
        if self.protocol == 1:  # read from a ledger that was written before there was a second
            del whole["protocol"]
        if not self.allow_unresolved:
            del whole["allow_unresolved"]
        return {
            key: value
            for key, value in whole.items()
            if key not in LEFT_OUT_UNLESS_GIVEN or value is not None
        }
