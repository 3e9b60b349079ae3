"""`loratlas.export`: hand an adapter on in the form that an engine reads, and prove that it computes the same."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratlas.api.folders import adapter_folder, check_out
from loratlas.errors import ModelError, OutputError, RequestError, SettingsError, printable
from loratlas.files import built_folder, was_left
from loratlas.sealed_json import ChangedError, read_sealed

if TYPE_CHECKING:
    from loratlas.adapters.export.export_adapter import Export
    from loratlas.api.results import Run
    from loratlas.serving.engine_export import EngineExport

WHOLE = ("merged", "gguf")
"""Targets that are whole models, which no engine has to read as an adapter."""


def export(
    adapter: str | Path | Run,
    out: str | Path,
    *,
    target: str = "peft",
    base: str | None = None,
    rank_tolerance: float | None = None,
    data: Any = None,
    study: str | Path | None = None,
    push_to: str | None = None,
) -> Export:
    """Write an adapter for other tools with a model card, and compare what was written with what was trained.

    Args:
        adapter: a run, its folder, or any PEFT adapter's folder.
        out: a new folder.
        target: ``"peft"``; an engine (``vllm``, ``sglang``, ``tgi``, ``lorax``, ``tensorrt-llm``, ``llama.cpp``,
            ``ollama``, ``mlx``), for which ranks, scales and names are brought into the form that it reads right; or
            a whole model: ``"merged"`` (a folder of transformers), ``"gguf"`` (one file).
        base: where the base lies, if elsewhere than the adapter says.
        rank_tolerance: for an engine: largest share (of the Frobenius norm) of a matrix' change that cutting its rank
            may lose, from 0 to 1. None cuts nothing, and pads to the largest rank where the engine has one rank.
        data: rows on which the loss before and after such a cut is measured.
        study: folder of a study, whose findings go into the card.
        push_to: OWNER/NAME on the Hub, to which the folder is uploaded; nothing is uploaded without it.

    Returns:
        The folder, the difference that was found, and how to load or serve it.

    Raises:
        ModelError: no adapter there, or one that the engine does not serve. OutputError: something lies in ``out``, or
            the Hub refuses. RequestError: an engine that is not known.

    >>> import loratlas
    >>> loratlas.export("nowhere", "out")
    Traceback (most recent call last):
    loratlas.errors.ModelError: ...
    """
    from loratlas.api.results import Run
    from loratlas.sources import model_source

    folder = adapter_folder(adapter.adapter if isinstance(adapter, Run) else Path(adapter))
    if not was_left(Path(out)):  # an export that was killed between its last rename and its end is done again
        check_out(Path(out), what="export")
    _check_options(target, rank_tolerance, data, push_to)
    source = model_source(base) if base else None
    findings = _findings(study)
    out = Path(out)
    # The card belongs to the export: an export that is killed before its card is written is not there at all.
    with built_folder(out) as new:
        done = _written(folder, new, out, target, source, rank_tolerance, data)
        _write_card(done, new, folder, target, source, findings)
    if push_to is not None:
        done = replace(done, remarks=(*done.remarks, _pushed(out, push_to)))
    return done


def _written(
    adapter: Path,
    out: Path,
    final: Path,
    target: str,
    source: str | None,
    tolerance: float | None,
    data: Any,
) -> Export:
    """Write into ``out``, which will be moved to ``final``, and compare."""
    if target in ("peft", "merged"):
        from loratlas.adapters.export.export_adapter import export as write

        return write(adapter, out, target=target, base=source, final=final)
    if target == "gguf":
        from loratlas.serving.gguf_files.gguf_export import export_gguf

        return export_gguf(adapter, out, base=source, final=final)
    from loratlas.serving.engine_export import write_for_engine

    written = write_for_engine(adapter, out, engine=target, base=source, tolerance=tolerance, final=final)
    done = replace(_compared(written, adapter), path=str(final))
    return done if data is None else replace(done, loss=losses_of_cut(written, adapter, data))


def _check_options(target: str, tolerance: float | None, data: Any, push_to: str | None) -> None:
    from loratlas.serving.engine_registry import ENGINES

    if target not in (*ENGINES, *WHOLE):
        from difflib import get_close_matches

        near = get_close_matches(target.lower(), (*ENGINES, *WHOLE), n=1, cutoff=0.0)[0]
        raise RequestError(
            given=f"--for {printable(target)}",
            found="adapters are written for " + ", ".join((*ENGINES, *WHOLE)),
            instead=f"--for {near}",
        )
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise SettingsError(
            given=f"--rank-tolerance {tolerance:g}",
            found="a share, from 0 to 1",
            instead="--rank-tolerance 0.05",
        )
    if tolerance is not None and target in ("peft", *WHOLE):
        raise SettingsError(
            given=f"--rank-tolerance with --for {target}",
            found="ranks that nothing limits there",
            instead="the command without it, or an engine such as --for sglang",
        )
    if data is not None and tolerance is None:
        raise SettingsError(
            given="--data without --rank-tolerance",
            found="nothing that changes the loss",
            instead="--rank-tolerance 0.05, or the command without --data",
        )
    if push_to is not None:
        _token(push_to)


def _token(push_to: str) -> str:
    from huggingface_hub import get_token

    owner, _, name = push_to.partition("/")
    if not owner or not name or "/" in name:
        raise OutputError(
            given=f"--push-to {printable(push_to)}", found="no OWNER/NAME", instead="--push-to me/my-adapter"
        )
    token = get_token()
    if not token:
        raise OutputError(
            given=f"--push-to {push_to}",
            found="no token of the Hub on this machine",
            instead="hf auth login, once",
        )
    return token


def _pushed(folder: Path, push_to: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=_token(push_to))
    try:
        api.create_repo(push_to, private=True, exist_ok=True)
        api.upload_folder(repo_id=push_to, folder_path=folder)
    except (HfHubHTTPError, OSError) as error:
        raise OutputError(
            given=f"--push-to {push_to}",
            found=f"the Hub refused it ({str(error).splitlines()[0][:200]}); the folder {folder} is whole",
            instead=f"hf upload {push_to} {folder}, once that is solved",
        ) from error
    return f"Uploaded to {push_to}, a private repository unless it was there before."


def _compared(written: EngineExport, adapter: Path) -> Export:
    """Logits where PEFT can load what was written; else the numbers in the file were judged by the engine's rule."""
    from loratlas.adapters.export.check_export import Request, in_fresh_process
    from loratlas.adapters.export.export_adapter import Export
    from loratlas.adapters.export.loading_recipe import base_options, class_name
    from loratlas.adapters.stored.adapter_task import open_base_config
    from loratlas.adapters.stored.read_adapter import read_adapter
    from loratlas.models.config import load_config
    from loratlas.models.gguf_base import readable
    from loratlas.models.labels import own_labels

    done = written.shaped
    remarks = list(written.remarks)
    if done.padding_bytes:
        remarks.append(
            f"{done.padding_bytes:,} of {done.bytes:,} bytes are zeros that {written.engine.title} wants."
        )
    if done.cheaper:
        remarks.append(done.cheaper)
    result = Export(
        path=str(written.folder),
        check=0.0,
        dtype="float32",
        recipe=written.recipe,
        remarks=tuple(remarks),
        compared="nothing but the engine's rule",
        bytes=done.bytes,
        padding_bytes=done.padding_bytes,
        lost=done.lost,
    )
    if not written.peft_reads:
        return result
    contents = read_adapter(adapter)
    base_source, config = open_base_config(contents, written.source)
    own = own_labels(load_config(written.source))
    request = Request(
        base=str(readable(written.source, weights=True)),
        kind=class_name(base_source.task).removeprefix("AutoModelFor"),
        options=base_options(
            base_source.task,
            getattr(config, "pad_token_id", None),
            new_head=bool(own) and len(own) != len(base_source.task.labels),
        ),
        dtype="float32",
        adapter=str(contents.folder),
        exported=str(written.folder),
        merged=False,
    )
    return replace(result, check=in_fresh_process([request])[0], compared="logits")


def losses_of_cut(
    written: EngineExport, adapter: Path, data: Any, *, tokenizer: Any = None
) -> tuple[float, float]:
    """Nats per token of an adapter as it was trained, and with the ranks that were cut.

    Args:
        written: with the rank that was cut to.
        adapter: its folder.
        data: rows, as :func:`loratlas.evaluate` takes them.
        tokenizer: of the base, where it has none.
    """
    from loratlas.adapters.stored.read_adapter import read_adapter
    from loratlas.api.evaluate_model import evaluate
    from loratlas.serving.cut_ranks import cut_to
    from loratlas.serving.updates import read_updates
    from loratlas.serving.write_peft_folder import write_peft_folder

    updates = read_updates(read_adapter(adapter), written.source)
    rank = written.shaped.updates.rank
    cut = replace(updates, sites=tuple(cut_to(site, rank)[0] for site in updates.sites))
    with tempfile.TemporaryDirectory(prefix="loratlas-") as scratch:
        write_peft_folder(cut, Path(scratch))
        before = evaluate(written.source, data, adapter=adapter, dtype="float32", tokenizer=tokenizer).nll
        after = evaluate(written.source, data, adapter=scratch, dtype="float32", tokenizer=tokenizer).nll
    return float(before), float(after)


def _write_card(
    done: Export,
    out: Path,
    adapter: Path,
    target: str,
    source: str | None,
    findings: list[dict[str, Any]],
) -> None:
    from loratlas.adapters.stored.adapter_digests import read_notes
    from loratlas.serving.adapter_header import read_adapter_header
    from loratlas.serving.engine_registry import ENGINES
    from loratlas.serving.model_card import CardInput, run_beside, write_card

    header = read_adapter_header(adapter, base=source)
    verdicts = []
    if target not in (*WHOLE, "llama.cpp", "ollama", "mlx"):
        written = read_adapter_header(out, base=source)
        verdicts = [engine.verdict(written) for engine in ENGINES.values()]
    checked = (
        f"Logits of base and adapter differ from the trained adapter's by at most {done.check:.2g}."
        if done.compared == "logits" and math.isfinite(done.check)
        else ""
    )
    write_card(
        out,
        CardInput(
            target=target,
            base=str(source or header.config.get("base_model_name_or_path") or ""),
            recipe=done.recipe,
            header=header,
            notes=read_notes(adapter),
            run=run_beside(adapter),
            findings=findings,
            verdicts=verdicts,
            checked=checked,
            remarks=done.remarks,
        ),
    )


def _findings(study: str | Path | None) -> list[dict[str, Any]]:
    if study is None:
        return []
    path = Path(study) / "findings.json"
    try:
        return list(read_sealed(path)["findings"])
    except ChangedError as error:
        raise ModelError(
            given=str(path), found=str(error), instead="the study's folder as it was written"
        ) from error
    except (OSError, KeyError, TypeError) as error:
        raise ModelError(
            given=f"--study {study}",
            found="no findings.json of a finished study in it",
            instead="the study's --out folder",
        ) from error
