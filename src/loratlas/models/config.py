"""From a name, a directory or a file to a config; no weights are read, and no code of a repository ever runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loratlas.errors import ModelError
from loratlas.models.gguf_base import readable
from loratlas.models.gguf_header import is_gguf
from loratlas.models.limits import MOST_BYTES, check_sizes
from loratlas.models.quiet import first_line, quiet, transformers_version

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: importing a model's code and building it makes much that stays.

    Reading a config takes a fifth less time so.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def load_config(source: str | Path | PretrainedConfig) -> PretrainedConfig:
    """Find a model's config; no weights are read.

    Args:
        source: a Hub id, a directory with a ``config.json``, such a file itself, a GGUF file, or a config.

    Returns:
        The config, of the class that transformers has for its ``model_type``.

    Raises:
        ModelError: nothing there, no network, broken JSON, or an architecture unknown to
            transformers.
    """
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(source, PretrainedConfig):
        return source
    if not str(source).strip():
        raise ModelError(given="an empty name", found="no model", instead="a Hub id, or a directory")
    if is_gguf(source):
        config = _read_config(Path(readable(source)) / "config.json", Path(readable(source)))
        config.name_or_path = str(source)
        return config
    path = Path(source)
    if path.is_file():
        return _read_config(path, path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                given=str(source),
                found="a directory without a config.json",
                instead="a directory that save_pretrained wrote, or a Hub id",
            )
        return _read_config(path / "config.json", path)
    if _looks_like_a_path(str(source)):
        raise ModelError(
            given=str(source), found="no such file or directory", instead="an existing path, or a Hub id"
        )
    try:
        with quiet():
            return own_layers(AutoConfig.from_pretrained(str(source), trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        raise hub_error(str(source), error) from error


def _read_config(path: Path, source: Path) -> PretrainedConfig:
    """A config read by transformers' own reader, which knows what its own writer makes of infinite numbers."""
    from transformers import AutoConfig, PretrainedConfig

    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        data, _ = PretrainedConfig.get_config_dict(str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            given=str(path),
            found=f"not readable as JSON ({first_line(error)})",
            instead="a model's config.json",
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise ModelError(
            given=str(path),
            found="JSON without a model_type",
            instead="the config.json of a transformers model",
        )
    check_sizes(data, str(path))
    try:
        with quiet():
            return own_layers(AutoConfig.from_pretrained(str(source), trust_remote_code=False))
    except Exception as error:
        # Config classes validate their fields with exceptions of several libraries.
        if wants_own_code(error):
            raise own_code(str(path)) from error
        raise ModelError(
            given=str(path),
            found=f"a config of type {data['model_type']!r} that transformers {transformers_version()} refuses: "
            f"{first_line(error)}",
            instead="a config that this version of transformers can build",
        ) from error


def own_layers(config: PretrainedConfig) -> PretrainedConfig:
    """The config without its wishes for attention or experts, in it and its parts.

    A config may name a repository of kernels there, whose code transformers would fetch and run.
    """
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def wants_own_code(error: BaseException) -> bool:
    """Whether transformers refused because a folder or repository has code of its own."""
    return "trust_remote_code" in str(error) or "custom code" in str(error)


def own_code(source: str) -> ModelError:
    """The refusal of a model or tokenizer whose code lies beside it: nothing of a folder is ever run."""
    return ModelError(
        given=source,
        found="code of its own (auto_map), which is never run",
        instead="a model whose code is part of transformers, and its tokenizer as tokenizer.json",
    )


def _looks_like_a_path(text: str) -> bool:
    # A Hub id is "name" or "owner/name": anything deeper, or written like a path, can only be a path.
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith((".json", "/"))


def hub_error(source: str, error: Exception) -> ModelError:
    """What a failure to reach a model by its name means, in a sentence."""
    if wants_own_code(error):
        return own_code(source)
    if isinstance(error, (ValueError, KeyError)) and "model type" in str(error).lower():
        return ModelError(
            given=source,
            found=f"an architecture that transformers {transformers_version()} does not know (or with its own code)",
            instead="a model whose code is part of transformers",
        )
    text = str(error).lower()
    if "not a valid model identifier" in text or "404" in text or "repository not found" in text:
        reason = "neither a local directory nor a model on the Hub that can be read without logging in"
    else:
        reason = "no local directory of that name, no copy in the cache, and the Hub could not be reached"
    return ModelError(
        given=source, found=reason, instead="a local directory with a config.json, or a Hub id while online"
    )
