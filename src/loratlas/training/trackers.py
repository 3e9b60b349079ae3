"""TensorBoard and W&B, written by transformers' own integration callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratlas.errors import SettingsError
from loratlas.training.run_events import StepEvent
from loratlas.training.settings import Settings

CALLBACKS = {"tensorboard": "TensorBoardCallback", "wandb": "WandbCallback"}


@contextmanager
def reporters(
    settings: Settings, model: Any, out: Path | None, *, steps: int
) -> Iterator[Callable[[StepEvent], None]]:
    """Start the reporters that the settings name.

    Args:
        settings: ``report_to`` and ``log_every``.
        model: whose config the reporters note.
        out: logs go to ``logs/`` in it, or to ``runs/`` in the current folder.
        steps: of the whole run.

    Yields:
        A function to tell every step to.

    Raises:
        SettingsError: a package that is not installed.
    """
    if not settings.report_to:
        yield lambda event: None
        return
    from transformers import TrainerControl, TrainerState, TrainingArguments, integrations

    folder = str(out / "logs" if out is not None else Path("runs"))
    arguments = TrainingArguments(
        output_dir=folder, report_to=[], use_cpu=True, learning_rate=settings.peak_lr
    )
    state, control = TrainerState(max_steps=steps), TrainerControl()
    callbacks = []
    for name in settings.report_to:
        try:
            callbacks.append(getattr(integrations, CALLBACKS[name])())
        except (RuntimeError, ImportError) as error:
            raise SettingsError(
                given=f"report_to = {name!r}",
                found="its package is not installed",
                instead=f'pip install "loratlas[{name}]"',
            ) from error
    for callback in callbacks:
        # TensorBoard's: where TENSORBOARD_LOGGING_DIR does not say otherwise.
        if getattr(callback, "logging_dir", folder) is None:
            callback.logging_dir = folder
        callback.on_train_begin(arguments, state, control, model=model)

    def tell(event: StepEvent) -> None:
        last = event.step == event.steps
        if event.step % settings.log_every and not last and event.evaluation is None:
            return
        state.global_step = event.step
        logs = {
            "loss": event.nll,
            "learning_rate": event.lr,
            "grad_norm": event.norm,
            "tokens_per_second": event.tokens_per_second,
        }
        if event.evaluation is not None:
            logs["eval_loss"] = event.evaluation
        for callback in callbacks:
            callback.on_log(arguments, state, control, logs=logs, model=model)

    try:
        yield tell
    finally:
        for callback in callbacks:
            callback.on_train_end(arguments, state, control, model=model)
