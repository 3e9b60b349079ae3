"""What a config alone decides is computed once: the second answer is the first, and takes neither torch nor peft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import tiny_config

from loratlas import result_cache
from loratlas.anatomy import anatomy_cache
from loratlas.anatomy.read import read
from loratlas.files import cache_folder
from loratlas.result_cache import ResultCache, config_text, versions

HEAVY = "{'torch', 'transformers', 'peft', 'plotly', 'optuna', 'scipy'}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's directory without weights, and a cache of its own."""
    monkeypatch.setenv("LORATLAS_CACHE", str(tmp_path / "cache"))
    tiny_config("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def command(*words: str) -> tuple[str, str]:
    """What a command prints in a process of its own, and which heavy libraries it imported."""
    code = (
        "import sys; from loratlas.cli import run; code = run(sys.argv[1:]); "
        f"print(sorted({HEAVY} & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ("map",),
        ("plan", "--placement", "all - router"),
        ("plan", "--placement", "attention", "--budget", "memory=18MB", "--dtype", "float32"),
    ],
)
def test_the_second_answer_is_the_first_and_imports_nothing_heavy(folder, words):
    words = (words[0], str(folder), *words[1:], "--json")
    first, imported = command(*words)
    assert "torch" in imported
    assert command(*words) == (first, "[]")
    other = (*words[:-1], "--batch-size", "3", "--json")
    if words[0] == "plan":
        assert json.loads(command(*other)[0])["cost"]["batch_size"] == 3


def test_an_entry_is_for_one_content(folder):
    first = anatomy_cache.cached_anatomy(folder)
    assert first == read(folder)
    assert anatomy_cache.cached_anatomy(folder) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert anatomy_cache.cached_anatomy(folder).layers == 5


def _entries() -> list[Path]:
    return sorted((cache_folder() / "results").iterdir())


def _flip(content: bytes) -> bytes:
    position = content.index(b"self_attn") + 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        _flip,
        lambda _: b"",
        lambda _: b"\xff\xfe not text",
        lambda _: b"[" * 100_000,
        lambda _: b'{"schema": "another", "key": 1}',
        lambda content: content.replace(b'"key"', b'"other"'),
    ],
)
def test_a_broken_or_foreign_entry_is_written_anew(folder, spoil):
    first = anatomy_cache.cached_anatomy(folder)
    (entry,) = _entries()
    whole = entry.read_bytes()
    entry.write_bytes(spoil(whole))
    assert ResultCache("anatomy").get({"config": anatomy_cache.config_key(folder)}) is None
    assert anatomy_cache.cached_anatomy(folder) == first
    assert _entries() == [entry]
    assert entry.read_bytes() == whole


def test_an_entry_of_other_versions_is_none(folder, monkeypatch):
    anatomy_cache.cached_anatomy(folder)
    key = {"config": anatomy_cache.config_key(folder)}
    assert ResultCache("anatomy").get(key) is not None
    for library in versions():
        monkeypatch.setattr(result_cache, "versions", lambda one=library: versions() | {one: "0"})
        assert ResultCache("anatomy").get(key) is None


def test_a_cache_that_cannot_be_written_costs_time_only(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORATLAS_CACHE", str(tmp_path / "file"))
    assert anatomy_cache.cached_anatomy(folder) == read(folder)


def test_old_entries_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(result_cache, "_MOST_ENTRIES", 3)
    known = ResultCache("number", tmp_path)
    for number in range(5):
        known.put({"number": number}, number)
        for file in tmp_path.iterdir():
            if json.loads(file.read_text())["value"] == number:
                os.utime(file, (number, number))
    assert [known.get({"number": number}) for number in range(5)] == [None, None, 2, 3, 4]


def test_a_name_of_the_hub_is_read_where_the_hub_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert config_text("owner/name") is None
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "snapshots" / "abc" / "config.json").write_bytes(b"{}")
    assert config_text("owner/name") == b"{}"
