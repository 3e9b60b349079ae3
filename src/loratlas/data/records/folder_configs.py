"""The configurations that a folder's README declares, as data sets of the Hub do.

    ---
    configs:
    - config_name: default
      data_files:
      - split: train
        path: data/train-*.parquet
    ---

A folder without them is read by the names of its files (`loratlas.data.records.folder_splits`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from loratlas.bounded_yaml import load_yaml
from loratlas.data.records.folder_splits import folder_splits, kind_of
from loratlas.errors import DataError, printable

README = "README.md"
LARGEST = 200_000
"""Characters of a README's metadata."""

MOST_PATTERNS = 10_000
"""Names and patterns of files in it."""

DEFAULT = "default"


def declared_splits(
    folder: Path, source: str, config: str | None = None
) -> dict[str, tuple[Path, ...]] | None:
    """Split → files, as the folder's README declares them; None where it declares none.

    Args:
        folder: that holds the README.
        source: what the user wrote, for errors.
        config: which configuration; None for the default one, or the only one.

    Raises:
        DataError: metadata that cannot be read, no such configuration, or a pattern that no file matches.
    """
    configs = _configs(folder, source)
    if not configs:
        if config is not None:
            raise DataError(
                given=f"{source}:{printable(config)}",
                found=f"a folder whose {README} declares no configuration",
                instead=source,
            )
        return None
    chosen = _chosen(configs, source, config)
    inside = str(chosen.get("data_dir") or ".")
    _check_inside(inside, source)
    if not chosen.get("data_files"):
        return dict(folder_splits(folder / inside, source).splits)
    files = {
        split: tuple(path for pattern in patterns for path in _matches(folder / inside, pattern, source))
        for split, patterns in _patterns(chosen, source).items()
    }
    return {split: tuple(dict.fromkeys(paths)) for split, paths in files.items()}


def _configs(folder: Path, source: str) -> dict[str, Mapping[str, Any]]:
    """Configurations by name, in their order; those that name no files are left out."""
    import yaml

    text = _metadata(folder / README)
    if "configs" not in text:
        return {}
    try:
        loaded = load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(source, " ".join(str(error).split())) from error
    listed = loaded.get("configs") if isinstance(loaded, dict) else None
    if listed is None:
        return {}
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise _unreadable(source, "configs that are no list of mappings")
    named = {str(one.get("config_name", DEFAULT)): one for one in listed}
    return {name: one for name, one in named.items() if one.get("data_files") or one.get("data_dir")}


def _metadata(readme: Path) -> str:
    """What stands between the first two lines of three dashes."""
    try:
        with readme.open(encoding="utf-8-sig") as file:
            text = file.read(LARGEST)
    except (OSError, UnicodeDecodeError):
        return ""
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---":
        return ""
    end = next((n for n, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    return "" if end is None else "\n".join(lines[1:end])


def _chosen(configs: Mapping[str, Mapping[str, Any]], source: str, config: str | None) -> Mapping[str, Any]:
    if config is None:
        preferred = [name for name, one in configs.items() if one.get("default") is True]
        config = next(iter(preferred), DEFAULT if DEFAULT in configs else None)
        if config is None and len(configs) == 1:
            (config,) = configs
    if config is not None and config in configs:
        return configs[config]
    names = ", ".join(printable(name, 40) for name in list(configs)[:10])
    raise DataError(
        given=source if config is None else f"{source}:{printable(config)}",
        found=f"a folder with the configurations {names}",
        instead=f"{source}:{printable(next(iter(configs)), 40)}",
    )


def _patterns(config: Mapping[str, Any], source: str) -> dict[str, list[str]]:
    """Split → patterns: one for all is a train split, as `datasets` has it."""
    given = config["data_files"]
    pairs: list[tuple[str, Any]]
    if isinstance(given, dict):
        pairs = [(str(split), paths) for split, paths in given.items()]
    elif isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
        pairs = [(str(one.get("split", "train")), one.get("path")) for one in given]
    else:
        pairs = [("train", given)]
    patterns: dict[str, list[str]] = {}
    count = 0
    for split, paths in pairs:
        for path in paths if isinstance(paths, list) else [paths]:
            count += 1
            if not isinstance(path, str) or not path:
                raise _unreadable(source, f"a path of split {printable(split, 40)} that is no text")
            if count > MOST_PATTERNS:
                raise _unreadable(source, f"more than {MOST_PATTERNS:,} paths")
            patterns.setdefault(split, []).append(path)
    return patterns


def _matches(root: Path, pattern: str, source: str) -> Iterator[Path]:
    _check_inside(pattern, source)
    plain = pattern.removeprefix("./")
    plain += "/*" if plain.endswith("**") else ""
    try:
        found = sorted(path for path in root.glob(plain) if path.is_file())
    except (ValueError, NotImplementedError, OSError) as error:
        raise _unreadable(source, f"the path {printable(pattern, 80)} ({error})") from error
    if any(mark in pattern for mark in "*?["):
        found = [path for path in found if kind_of(path)]
    if not found:
        raise DataError(
            given=source,
            found=f"a {README} that names {printable(pattern, 80)}, and no such file",
            instead="the folder with all of its files",
        )
    yield from found


def _check_inside(path: str, source: str) -> None:
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts or "://" in path:
        raise DataError(
            given=source,
            found=f"a {README} that names files outside of the folder ({printable(path, 80)})",
            instead="the files themselves",
        )


def _unreadable(source: str, why: str) -> DataError:
    return DataError(
        given=source,
        found=f"configurations in its {README} that cannot be read ({printable(why, 200)})",
        instead="metadata as the Hub reads it, or the files themselves",
    )
