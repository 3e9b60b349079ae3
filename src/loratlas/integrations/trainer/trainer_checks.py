"""What keeps adapters from moving in a trainer, each as a sentence before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loratlas.adapters.resizable import check_resizable
from loratlas.errors import AttachError, LoratlasError, SettingsError, python_spelling

MOVABLE = ("adamw_torch", "adamw_torch_fused")
"""Names of `TrainingArguments.optim` whose optimizer can follow."""

GIVEN = "DynamicPlacement(…).install(trainer)"

NAMES = {"--signal": "--policy", "--steps": "--max-steps"}
"""Option of the command line → what a trainer or `DynamicPlacement` calls the same."""


@contextmanager
def trainer_names() -> Iterator[None]:
    """Errors within name arguments of `DynamicPlacement` and of the trainer, where others name options.

    >>> from loratlas.errors import SettingsError
    >>> try:
    ...     with trainer_names():
    ...         raise SettingsError(given="--head 2", found="too few", instead="--steps 40 or more")
    ... except SettingsError as error:
    ...     error.given, error.instead
    ('head=2', 'max_steps=40 or more')
    """
    try:
        yield
    except LoratlasError as error:
        error.given, error.found, error.instead = map(_renamed, (error.given, error.found, error.instead))
        error.args = (error.given, error.found, error.instead)
        raise


def _renamed(text: str) -> str:
    for option, name in NAMES.items():
        text = text.replace(option, name)
    return python_spelling(text)


def _refused(found: str, instead: str) -> SettingsError:
    return SettingsError(given=GIVEN, found=found, instead=instead)


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer in which parameters cannot be replaced.

    Raises:
        SettingsError: it is none of transformers', or trains in a way that holds on to parameters.
        AttachError: its model has no LoRA adapter whose ranks can change.
    """
    from transformers import Trainer

    if not isinstance(trainer, Trainer):
        raise _refused(f"a {type(trainer).__name__}", "transformers.Trainer, or a trainer of TRL made of it")
    args, accelerator = trainer.args, trainer.accelerator
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or kind in ("FSDP", "DEEPSPEED"):
        raise _refused(
            f"{'DeepSpeed' if trainer.is_deepspeed_enabled else 'FSDP'}, which shards parameters and their moments",
            "DDP (torchrun or accelerate launch, without FSDP or DeepSpeed)",
        )
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise _refused(f"accelerate's {kind}", "one process, or DDP on CPUs or GPUs")
    if args.n_gpu > 1:
        raise _refused(
            f"{args.n_gpu} GPUs in one process, which copies the model in every step",
            "torchrun --nproc-per-node, or CUDA_VISIBLE_DEVICES=0",
        )
    if args.torch_compile:
        raise _refused("torch_compile, which holds on to parameters", "torch_compile=False")
    if args.auto_find_batch_size:
        raise _refused(
            "auto_find_batch_size, which begins a run over in the middle", "a per_device_train_batch_size"
        )
    if trainer.model_init is not None:
        raise _refused("model_init, which makes another model when training begins", "model=…")
    name = str(getattr(args.optim, "value", args.optim))
    if trainer.optimizer is None and trainer.optimizer_cls_and_kwargs is None and name not in MOVABLE:
        raise _refused(
            f'optim="{name}", whose state of a parameter cannot be carried over to one of another rank',
            'optim="adamw_torch"',
        )
    model: Any = trainer.model
    if len(getattr(model, "peft_config", {})) > 1 and "ref" in model.peft_config:
        raise _refused(
            "a second adapter named ref, which TRL adds to a PeftModel as the reference",
            "the bare model and peft_config=LoraConfig(…) in the trainer: its reference is the base then",
        )
    try:
        check_resizable(model)
    except AttachError as error:
        error.given, error.args = GIVEN, (GIVEN, *error.args[1:])
        raise
    if not any(p.requires_grad for p in model.parameters()):
        raise _refused("a model in which nothing is trained", "an adapter with is_trainable=True")
