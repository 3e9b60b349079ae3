"""An adapter written for one engine: converted exactly, judged by the engine's own rule, or refused with a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.adapters.stored.adapter_task import open_base_config
from loratlas.adapters.stored.read_adapter import MARKER, PREFIX, AdapterFolder, read_adapter
from loratlas.errors import ModelError
from loratlas.files import whole_folder
from loratlas.models.config import load_config
from loratlas.serving.adapter_header import AdapterHeader, read_adapter_header
from loratlas.serving.base_outline import BaseOutline
from loratlas.serving.engine import RIGHT, Engine
from loratlas.serving.engine_registry import engine_of
from loratlas.serving.fill_zeros import matrix_shapes
from loratlas.serving.gguf_files.write_gguf_adapter import write_gguf_adapter
from loratlas.serving.shape_for_engine import EngineShape, shaped
from loratlas.serving.updates import Updates, read_updates
from loratlas.serving.write_mlx import write_mlx
from loratlas.serving.write_peft_folder import write_peft_folder

if TYPE_CHECKING:
    pass

GGUF_FILE, MODELFILE = "adapter.gguf", "Modelfile"
_MARKERS = {"peft": MARKER, "mlx": "adapters.safetensors", "gguf": GGUF_FILE}


@dataclass(frozen=True, kw_only=True)
class EngineExport:
    """What was written for an engine.

    Args:
        folder: where.
        engine: whose form it has.
        source: the base.
        shaped: the changes as they were written, and what the form costs.
        peft_reads: whether PEFT can load the folder as well.
        recipe: how to serve it, as a command.
        remarks: sentences about what was converted.
    """

    folder: Path
    engine: Engine
    source: str
    shaped: EngineShape
    peft_reads: bool
    recipe: str
    remarks: tuple[str, ...]


def write_for_engine(
    adapter_dir: str | Path,
    out: str | Path,
    *,
    engine: str,
    base: str | Path | None = None,
    tolerance: float | None = None,
    final: Path | None = None,
) -> EngineExport:
    """Write an adapter so that an engine serves it with PEFT's effect.

    Args:
        adapter_dir: any adapter of PEFT's LoRA.
        out: a new folder, or an earlier export.
        engine: its name.
        base: the base; None for the one that the adapter names.
        tolerance: see :func:`loratlas.serving.shape_for_engine.shaped`.
        final: where ``out`` will be moved to, which the recipe names; None where it stays.

    Returns:
        What was written. The folder appears whole, and only if the engine's rule says that it is read right.

    Raises:
        ModelError: no adapter or base, or something that the engine does not serve; nothing is written then.
        RequestError: an engine that is not known.
    """
    target = engine_of(engine)
    contents = read_adapter(adapter_dir)
    source = str(base or contents.base or "")
    if not source:
        raise ModelError(given=str(adapter_dir), found="it does not name its base", instead="--base MODEL")
    config = load_config(source)
    outline = BaseOutline.of(config.to_dict())
    updates = without_published(read_updates(contents, source), contents, source)
    shapes = _shapes(contents, source, config)
    _check_fit(updates, shapes, contents, source)
    form = target.form(outline.model_type)
    done = shaped(updates, target, outline.model_type, shapes, tolerance=tolerance)
    folder = Path(out)
    with whole_folder(folder, marker=_MARKERS[form.container]) as new:
        if form.container == "peft":
            write_peft_folder(done.updates, new)
            refuse_unless_right(target, replace(_header(new, source), base=outline))
        else:
            _refuse_whole(done.updates, target)
            if form.container == "mlx":
                write_mlx(done.updates, outline.model_type, new, tied=outline.tied)
            else:
                for reason in _own_reasons(target, done.updates, outline):
                    raise _unserved(target, reason)
                write_gguf_adapter(done.updates, outline, new / GGUF_FILE)
                if target.name == "ollama":
                    (new / MODELFILE).write_text(f"FROM {source}\nADAPTER ./{GGUF_FILE}\n", encoding="utf-8")
    return EngineExport(
        folder=folder,
        engine=target,
        source=source,
        shaped=done,
        peft_reads=form.container == "peft" and not (form.experts == "each" and _experts(updates)),
        recipe=serving_command(target, folder if final is None else final, source, done),
        remarks=updates.remarks,
    )


def refuse_unless_right(engine: Engine, header: AdapterHeader) -> None:
    """Refuse what an engine would not serve as PEFT does.

    Raises:
        ModelError: with the first reason.
    """
    verdict = engine.verdict(header)
    if verdict.verdict != RIGHT:
        reason = verdict.reasons[0]
        more = f" ({len(verdict.reasons) - 1} more)" if len(verdict.reasons) > 1 else ""
        raise _unserved(engine, f"{reason.tensor.removeprefix(PREFIX)[:200]}: {reason.why}{more}")


def without_published(updates: Updates, contents: AdapterFolder, source: str) -> Updates:
    """Leave out tensors that are the base's own, which PEFT saves along with an adapted embedding."""
    import torch

    if not updates.whole:
        return updates
    from loratlas.models.load import load_model

    _, config = open_base_config(contents, source)
    own = load_model(source, config=config, dtype="float32", base_dropout=True).state_dict()
    kept = {}
    for name, tensor in updates.whole.items():
        published = own.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        same = published is not None and published.shape == tensor.shape
        if not same or not torch.equal(published.to(tensor.dtype), tensor):  # pyright: ignore[reportOptionalMemberAccess]
            kept[name] = tensor
    return replace(updates, whole=kept)


def serving_command(engine: Engine, folder: Path, source: str, done: EngineShape) -> str:
    """How to start the engine with what was written."""
    rank = done.updates.rank
    sizes = [size for size in engine.ranks if size >= rank]
    return {
        "peft": f"PeftModel.from_pretrained(base, {str(folder)!r})",
        "vllm": f"vllm serve {source} --enable-lora --max-lora-rank {sizes[0] if sizes else rank} "
        f"--lora-modules adapter={folder}",
        "sglang": f"python -m sglang.launch_server --model-path {source} --lora-paths adapter={folder}",
        "tgi": f"text-generation-launcher --model-id {source} --lora-adapters adapter={folder}",
        "lorax": f"lorax-launcher --model-id {source} --adapter-id {folder} --adapter-source local",
        "tensorrt-llm": f"LoRARequest('adapter', 1, {str(folder)!r})  # max_lora_rank={rank}",
        "llama.cpp": f"llama-server -m BASE.gguf --lora {folder / GGUF_FILE}",
        "ollama": f"ollama create NAME -f {folder / MODELFILE}",
        "mlx": f"mlx_lm.generate --model {source} --adapter-path {folder}",
    }[engine.name]


def _shapes(contents: AdapterFolder, source: str, config: Any) -> dict[str, tuple[int, int]]:
    from loratlas.models.meta import meta_model

    _, task_config = open_base_config(contents, source)
    return matrix_shapes(meta_model(task_config if task_config is not None else config))


def _check_fit(
    updates: Updates, shapes: Mapping[str, tuple[int, int]], contents: AdapterFolder, source: str
) -> None:
    """Refuse an adapter of another base."""
    for site in updates.sites:
        if site.kind != "linear":
            continue
        have = (int(site.B.shape[0]), int(site.A.shape[1]))
        there = shapes.get(site.module)
        if there != have:
            misfit = (
                "the base has no such matrix" if there is None else f"the base's is {there[0]} × {there[1]}"
            )
            raise ModelError(
                given=f"{contents.folder} on {source}",
                found=f"a change of {have[0]} × {have[1]} at {site.module[:200]}; {misfit}",
                instead="the base that it was trained on (--base MODEL)",
            )


def _header(folder: Path, source: str) -> AdapterHeader:
    return read_adapter_header(folder, base=source)


def _refuse_whole(updates: Updates, engine: Engine) -> None:
    for name in updates.whole:
        raise _unserved(engine, f"{name.removeprefix(PREFIX)[:200]}: {engine.title} loads factors alone")
    for option, what in (("lora_bias", "biases of factors"),):
        if updates.config.get(option):
            raise _unserved(engine, f"{option}: {engine.title} has no {what}")


def _own_reasons(engine: Engine, updates: Updates, outline: BaseOutline) -> list[str]:
    """What the engine refuses of a base, whatever the adapter."""
    header = AdapterHeader(
        folder=Path(), config={"r": updates.rank, "lora_alpha": updates.rank}, tensors={}, base=outline
    )
    return [reason.why for reason in engine.whole_reasons(header)]


def _unserved(engine: Engine, found: str) -> ModelError:
    return ModelError(
        given=f"--for {engine.name}",
        found=found,
        instead="--for merged, which every engine serves as a model",
    )


def _experts(updates: Updates) -> bool:
    return any(site.kind == "experts" for site in updates.sites)
