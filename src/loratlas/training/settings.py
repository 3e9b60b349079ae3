"""Settings of a run, checked before anything is loaded."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loratlas.errors import SettingsError

AUTO: Literal["auto"] = "auto"
"""A learning rate, or a start of the adapters, that a run decides itself."""

SCHEDULES = ("cosine", "constant")
DTYPES = ("bfloat16", "float32")
PACKINGS = ("auto", "on", "off")
COMPILES = ("auto", "on", "off")
SITE_RATES = ("equal", "curvature")
REPORTERS = ("tensorboard", "wandb")


EVA = "eva"
"""PEFT's name of the start that `loratlas.training.input_start` makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides a run besides model, plan and rows.

    Args:
        steps: optimiser steps; or ``epochs``, passes over the examples. Neither: one epoch.
        lr: highest learning rate of AdamW; ``"auto"``, or several rates in rising order: they are tried in the first
            steps of the run, and the best one goes on (`loratlas.training.rate_search`).
        schedule: after the warm-up, ``"cosine"`` down to 0 or ``"constant"``.
        warmup: share of the steps in which the rate rises linearly, in [0, 1).
        batch_size: examples per step.
        micro_batch: examples computed at a time; the step's loss and gradient are those of the whole batch
            (law 0). None: as many as packing or padding makes sensible.
        clip: largest Euclidean norm of the run's gradient; None for no limit.
        weight_decay: of AdamW, decoupled, on all adapter matrices.
        betas: of AdamW.
        eps: of AdamW.
        seed: draws the order, the subset and the dropout masks, each from a stream of its own.
        dropout: probability in front of the adapters; it is a property of the attached model and kept here for
            the record.
        dtype: numbers of the frozen base and of all activations. The adapters' master copies are float32 always.
        checkpointing: keep only the inputs of layers and compute the rest again in the backward pass.
        loraplus: the B factors, and DoRA's lengths, learn so many times faster (LoRA+, Hayou et al. 2024,
            arXiv:2402.12354).
        site_rates: ``"equal"``, or ``"curvature"``: after the first tenth of the steps each site's rate is scaled by
            the curvature that it has met (`loratlas.training.site_rates`).
        init: PEFT's initialisation, kept for the record like ``dropout``, True for its default. The run's own to do are
            ``"eva"``, along what its first rows put in, and ``"auto"``: ``"eva"`` where that helps, else PEFT's default
            (`loratlas.training.input_start`). None: PEFT's default, and in `loratlas.train` ``"auto"`` where the run
            places its adapters itself.
        subset: train on so many examples only, drawn by the seed.
        packing: ``"auto"`` packs where the model proves that it is exact, ``"on"`` insists, ``"off"`` pads.
        compile: ``"on"`` and ``"off"`` say whether layers go through torch.compile; ``"auto"`` lets the run judge by
            its own pace (`loratlas.training.step.compilation`). Compiled layers round differently: runs repeat bit for
            bit only where it is decided beforehand.
        early_stop: stop after so many evaluations in a row without a lower loss.
        evaluate_every: steps between evaluations within the run; None: 10 of them where ``early_stop`` is set,
            and none where it is not.
        log_every: steps per point of the training curve.
        save_every: steps between checkpoints where there is a folder to write to.
        save_seconds: a checkpoint is due after so many seconds as well.
        report_to: any of ``"tensorboard"``, ``"wandb"``.

    Raises:
        SettingsError: a value that makes no sense.

    Example:
        >>> Settings(steps=100, lr=1e-3).steps_for(50)
        100
        >>> Settings(epochs=2, lr=1e-3, batch_size=16).steps_for(50)
        7
    """

    steps: int | None = None
    epochs: float | None = None
    lr: float | Literal["auto"] | tuple[float, ...] = AUTO
    schedule: str = "cosine"
    warmup: float = 0.03
    batch_size: int = 16
    micro_batch: int | None = None
    clip: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seed: int = 0
    dropout: float = 0.0
    dtype: str = "bfloat16"
    checkpointing: bool = False
    loraplus: float | None = None
    site_rates: str = "equal"
    init: bool | str | None = None
    subset: int | None = None
    packing: str = "auto"
    compile: str = "auto"
    early_stop: int | None = None
    evaluate_every: int | None = None
    log_every: int = 1
    save_every: int = 100
    save_seconds: float = 60.0
    report_to: tuple[str, ...] = ()

    @property
    def drawn(self) -> bool | str:
        """The initialisation that adapters are attached with, before any row is read."""
        return True if self.init in (None, EVA, AUTO) else self.init

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise SettingsError(
                given=f"steps = {self.steps} and epochs = {self.epochs}",
                found="two lengths for one run",
                instead="one of them",
            )
        for name in ("steps", "batch_size", "micro_batch", "subset", "early_stop", "evaluate_every"):
            self._count(name, optional=name != "batch_size")
        for name in ("log_every", "save_every"):
            self._count(name, optional=False)
        self._number("epochs", above=0, optional=True)
        self._rates()
        self._number("clip", above=0, optional=True)
        self._number("loraplus", above=0, optional=True)
        self._number("eps", above=0)
        self._number("weight_decay", least=0)
        self._number("save_seconds", above=0)
        self._number("warmup", least=0, below=1)
        self._number("dropout", least=0, below=1)
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise SettingsError(
                    given=f"betas = {self.betas}",
                    found="a decay outside of [0, 1)",
                    instead="such as (0.9, 0.999)",
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SettingsError(given=f"seed = {self.seed}", found="not a count", instead="0, 1, 2, …")
        for name, known in (
            ("schedule", SCHEDULES),
            ("dtype", DTYPES),
            ("packing", PACKINGS),
            ("compile", COMPILES),
            ("site_rates", SITE_RATES),
        ):
            if getattr(self, name) not in known:
                raise SettingsError(
                    given=f"{name} = {getattr(self, name)!r}",
                    found="an unknown choice",
                    instead=" or ".join(known),
                )
        for name in self.report_to:
            if name not in REPORTERS:
                raise SettingsError(
                    given=f"report_to = {name!r}", found="an unknown reporter", instead=" or ".join(REPORTERS)
                )
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise SettingsError(
                given=f"micro_batch = {self.micro_batch}",
                found=f"more than the {self.batch_size} examples of a step",
                instead=f"at most {self.batch_size}",
            )

    def _rates(self) -> None:
        """Check ``lr``; a list becomes a tuple."""
        if isinstance(self.lr, str):
            if self.lr != AUTO:
                raise SettingsError(
                    given=f"lr = {self.lr!r}",
                    found="neither a rate nor auto",
                    instead="--lr 0.005, or --lr auto",
                )
            return
        if not isinstance(self.lr, (tuple, list)):
            self._number("lr", above=0)
            return
        rates = tuple(self.lr)
        object.__setattr__(self, "lr", rates)
        for rate in rates:
            _check_number("lr", rate, above=0)
        if len(rates) < 2 or any(low >= high for low, high in itertools.pairwise(rates)):
            rising = ",".join(f"{rate:g}" for rate in sorted(set(rates)))
            raise SettingsError(
                given=f"lr = {', '.join(f'{rate:g}' for rate in rates)}",
                found="rates that do not rise from first to last"
                if len(rates) > 1
                else "a list of fewer than two rates",
                instead=f"--lr {rising or '0.005'}, or --lr auto",
            )

    @property
    def peak_lr(self) -> float:
        """``lr`` where it is one rate.

        Raises:
            SettingsError: the rate is decided in the run itself.
        """
        if isinstance(self.lr, (str, tuple)):
            given = self.lr if isinstance(self.lr, str) else ", ".join(f"{rate:g}" for rate in self.lr)
            raise SettingsError(
                given=f"lr = {given}",
                found="a rate that a run decides in its own first steps",
                instead="--lr 0.005",
            )
        return self.lr

    def _count(self, name: str, *, optional: bool) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingsError(
                given=f"{name} = {value}", found="not a whole number above 0", instead=f"{name} ≥ 1"
            )

    def _number(self, name: str, *, optional: bool = False, **bounds: float | None) -> None:
        value = getattr(self, name)
        if not (optional and value is None):
            _check_number(name, value, **bounds)

    def steps_for(self, examples: int) -> int:
        """Optimiser steps over so many examples (of the subset, where there is one)."""
        if self.steps is not None:
            return self.steps
        passes = 1.0 if self.epochs is None else self.epochs
        return max(1, math.ceil(passes * min(examples, self.subset or examples) / self.batch_size))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"betas": list(self.betas), "report_to": list(self.report_to)}


def _check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number:
        raise SettingsError(
            given=f"{name} = {value}", found="not a finite number", instead=f"{name} as a number"
        )
    low = (above is not None and value <= above) or (least is not None and value < least)
    if low or (below is not None and value >= below):
        bounds = [f"above {above:g}"] if above is not None else []
        bounds += [f"at least {least:g}"] if least is not None else []
        bounds += [f"below {below:g}"] if below is not None else []
        raise SettingsError(given=f"{name} = {value}", found="out of range", instead=" and ".join(bounds))
