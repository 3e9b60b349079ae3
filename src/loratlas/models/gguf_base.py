"""A base in a GGUF file: written out once as an ordinary folder in the user's cache, and read from there.

transformers reads such files, but takes its time: of a model of 135 million parameters 3 s for the config, 3 s for the
tokenizer and 14 s for the weights, where the folder takes 0.3 s in all. So the first command that needs the config, or
the weights, writes what it needs as a folder; every later one reads that. Weights in blocks of a few bits become
bfloat16; plain numbers stay as they are.

The name of a base stays the path of its file, in plans, runs and adapters alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from loratlas.errors import ModelError
from loratlas.files import cache_folder, digest, read_json, sha256, whole_folder, write_json
from loratlas.models.gguf_header import GgufHeader, is_gguf, read_gguf_header
from loratlas.models.limits import check_sizes
from loratlas.models.quiet import first_line, quiet, transformers_version

_BF16 = 30
_DESCRIBED, _WHOLE = "described", "model"
_NOTES = "gguf.json"
"""What a folder of the cache was made of, the SHA-256 of its files, and a digest of all this."""


def readable(source: Any, *, weights: bool = False) -> Any:
    """What transformers reads of a base: of a GGUF file its folder in the cache, anything else as it is.

    Args:
        source: a Hub id, a folder, a ``config.json``, a GGUF file, or a config.
        weights: whether the folder has to hold the weights too; otherwise config and tokenizer are enough.

    Returns:
        A folder as `save_pretrained` writes it, or ``source``.

    Raises:
        ModelError: the file is not there, broken, or of an architecture that transformers does not read.
        StorageError: there is no room in the cache.

    >>> readable("owner/name")
    'owner/name'
    """
    if not is_gguf(source):
        return source
    path = Path(source)
    if not path.is_file():
        raise ModelError(
            given=str(source),
            found="no such file or directory" if not path.exists() else "a folder with the name of a file",
            instead="the path of a .gguf file, a folder, or a Hub id",
        )
    kept = _entry(path)
    for name in (_WHOLE,) if weights else (_WHOLE, _DESCRIBED):
        if _is_as_written(kept / name, weights=weights):
            return str(kept / name)
    header = read_gguf_header(path)
    _remove_older(kept)
    out = kept / (_WHOLE if weights else _DESCRIBED)
    with whole_folder(out, marker=None) as draft:
        write_folder(path, header, draft, weights=weights)
    if weights:
        shutil.rmtree(kept / _DESCRIBED, ignore_errors=True)
    return str(out)


def gguf_note(source: Any) -> str | None:
    """What a person should know of a base in a GGUF file, in a sentence; None of any other.

    >>> gguf_note("owner/name") is None
    True
    """
    if not is_gguf(source):
        return None
    header = read_gguf_header(Path(source))
    if not header.quantised:
        return (
            f"{source}: a GGUF file, read as a folder with its own numbers (kept in {_entry(Path(source))})."
        )
    return (
        f"{source}: a GGUF file whose weights are dequantised to bfloat16 (kept in {_entry(Path(source))}); training "
        "and losses are those of these numbers."
    )


def _is_as_written(folder: Path, *, weights: bool) -> bool:
    """Whether a folder of the cache is there and every file of it is what was written; a changed one is written anew.

    Args:
        folder: of :func:`write_folder`.
        weights: whether its weights are compared too; otherwise only what is small.
    """
    try:
        notes = read_json(folder / _NOTES)
        own = notes.pop("own", None)
        return own == digest(notes) and all(
            _digest_of(folder / name, (folder / name).stat().st_mtime_ns) == known
            for name, known in notes["sha256"].items()
            if weights or not name.endswith(".safetensors")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@lru_cache(maxsize=256)
def _digest_of(path: Path, _state: int) -> str:
    return sha256(path)


def _entry(path: Path) -> Path:
    """Where a file's folders lie: named by the file, its state, and the version of what reads it."""
    whole = path.resolve()
    state = whole.stat()
    key = [state.st_size, state.st_mtime_ns, metadata.version("transformers"), metadata.version("gguf")]
    return cache_folder() / "gguf" / f"{_key(str(whole))}-{_key(repr(key))}"


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _remove_older(kept: Path) -> None:
    """Drop what was written of an earlier state of the same file."""
    for folder in kept.parent.glob(f"{kept.name.partition('-')[0]}-*"):
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)


def write_folder(path: Path, header: GgufHeader, out: Path, *, weights: bool) -> None:
    """Write a GGUF file as a folder: config and tokenizer, and its weights if asked for.

    Args:
        path: of the file.
        header: its own, of :func:`loratlas.models.gguf_header.read_gguf_header`.
        out: the folder, which is there and empty.
        weights: whether to write them too.

    Raises:
        ModelError: transformers does not read this architecture, or the weights are not all there.
    """
    name = path.resolve().name
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()), _alone(path) as folder:
            from transformers import AutoConfig, AutoTokenizer

            config = AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
            if config.model_type == "gpt2":
                # transformers passes over these two, and takes its own defaults.
                config.n_inner = header.fields.get("gpt2.feed_forward_length")
                config.n_positions = header.fields.get("gpt2.context_length", config.n_positions)
            check_sizes(config.to_dict(), str(path))
            if header.has_tokenizer:
                tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
                tokenizer.save_pretrained(out)
            if weights:
                _write_weights(path, folder, header, out, config)
            else:
                config.save_pretrained(out)
    except ModelError:
        raise
    except Exception as error:
        # transformers and gguf raise whatever their arithmetic on the file's numbers runs into.
        raise ModelError(
            given=str(path),
            found=f"a GGUF file of architecture {header.architecture[:60]!r} that transformers "
            f"{transformers_version()} does not read: {first_line(error)}",
            instead="the model as a folder of safetensors, from which the file was made",
        ) from error
    notes = {
        "file": str(path.resolve()),
        "architecture": header.architecture,
        "sha256": {file.name: sha256(file) for file in sorted(out.iterdir())},
    }
    write_json(out / _NOTES, {**notes, "own": digest(notes)})


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A folder with this file and nothing else: transformers would also read an adapter's or a tokenizer's files that
    lie beside it."""
    with tempfile.TemporaryDirectory(prefix="loratlas-gguf-") as folder:
        own = Path(folder) / path.resolve().name
        try:
            own.symlink_to(path.resolve())
        except OSError:  # Windows lets few accounts make one
            own.hardlink_to(path.resolve())
        yield folder


def _write_weights(path: Path, folder: str, header: GgufHeader, out: Path, config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # Sixteen bits of the other kind are no numbers to train in.
    dtype = torch.bfloat16 if header.quantised or _BF16 in header.types else torch.float32
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=path.resolve().name,
        config=config,
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, report = loaded
    missing = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if missing:
        raise ModelError(
            given=str(path),
            found=f"weights without {missing[0]} ({len(missing)} missing in all)",
            instead="a GGUF file with all weights of the model",
        )
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config  # the weights are plain from here on
    model.hf_quantizer = None
    model.save_pretrained(out)
