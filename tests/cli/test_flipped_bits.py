"""One flipped bit in any file that a run or a study has left is found, said in a sentence, and nothing goes on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.serving.tiny_base import save_few_rows, save_tiny_base, tiny_study

from loratlas.adapters.stored.run_files import RUN
from loratlas.api.folders import adapter_folder
from loratlas.cli import run as command
from loratlas.errors import ModelError, OutputError
from loratlas.study.execution.run_records import RECORD, is_whole, read_record, write_run
from loratlas.study.results.study_result import FINDINGS, load_study
from loratlas.study.run_study import run_study
from loratlas.study.spec.spec_file import parse_spec

RUN_FILES = {
    "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/loratlas.json", "curve.json",
    "eval/digests.json", "eval/examples.parquet", "eval/tokens.parquet", "run.json", "samples.json",
}  # fmt: skip


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """A file with one bit flipped, and as it was afterwards."""
    before = path.read_bytes()
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(after))
    try:
        yield
    finally:
        path.write_bytes(before)


def some_bits(path: Path, count: int) -> list[int]:
    """Bits of a file: the first, the last, and others anywhere."""
    bits = 8 * path.stat().st_size
    return [0, bits - 1, *random.Random(0).sample(range(bits), min(count, bits))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flips")
    save_few_rows(folder / "rows.jsonl", 24)
    return save_tiny_base(folder / "base")


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    out = base.parent / "run"
    words = [
        "train",
        base,
        base.parent / "rows.jsonl",
        "--limit",
        "4",
        "--placement",
        "q@0:1",
        "--batch-size",
        "2",
    ]
    words += ["--max-length", "48", "--steps", "2", "--lr", "1e-3", "--eval", base.parent / "rows.jsonl"]
    assert command([*map(str, words), "--samples", "1", "--out", str(out), "--json"]) == 0
    return out


def test_every_file_of_a_run(trained):
    files = {
        path.relative_to(trained).as_posix()
        for path in trained.rglob("*")
        if path.is_file() and not path.is_relative_to(trained / "checkpoint")  # test_checkpoint.py has these
    }
    assert files == RUN_FILES
    assert adapter_folder(trained) == trained / "adapter"
    for name in sorted(files):
        bits = 8 * (trained / name).stat().st_size
        ends = [*range(400), *range(bits - 1200, bits)] if name == RUN else []
        for bit in [*some_bits(trained / name, 60), *ends]:
            with flipped(trained / name, bit), pytest.raises(ModelError) as caught:
                adapter_folder(trained)
            assert caught.value.exit_code == 2
            assert name in str(caught.value) or "run.json" in str(caught.value)
    adapter_folder(trained)


@pytest.mark.parametrize(
    "words", ["show {run}", "eval {base} {rows} --adapter {run}", "export {run} --for peft --out {out}"]
)
def test_commands_refuse_a_run_with_a_flipped_bit(cli, trained, base, tmp_path, words):
    filled = words.format(
        run=trained, base=base, rows=base.parent / "rows.jsonl", out=tmp_path / "out"
    ).split()
    with flipped(trained / "curve.json", 77):
        said = cli(*filled)
    assert said.code == 2
    assert "curve.json" in said.words
    assert "SHA-256 differs" in said.words
    assert not (tmp_path / "out").exists()


def test_a_run_of_an_earlier_version_is_read(trained, tmp_path):
    """Its run.json has no digests, and there is nothing to compare."""
    old = Path(shutil.copytree(trained, tmp_path / "old"))
    numbers = json.loads((old / RUN).read_text())
    del numbers["sha256"], numbers["seal"]
    (old / RUN).write_text(json.dumps(numbers))
    assert adapter_folder(old) == old / "adapter"


@pytest.fixture(scope="module")
def studied(base: Path) -> Path:
    spec = tiny_study(base, base.parent / "rows.jsonl")
    out = base.parent / "study"
    run_study(parse_spec(spec), out, workers=1)
    return out


def test_every_file_of_a_study(studied, cli, capsys):
    whole = load_study(studied).to_json()
    one = next(path for path in sorted((studied / "runs").iterdir()) if (path / "examples.parquet").exists())
    paths = [studied / FINDINGS, studied / "ledger.db", *sorted(one.iterdir())]
    assert {path.suffix for path in paths} == {".json", ".db", ".parquet"}
    for path in paths:
        for bit in some_bits(path, 20):
            with flipped(path, bit), pytest.raises(OutputError) as caught:
                load_study(studied)
            assert caught.value.exit_code == 2
    with flipped(one / "examples.parquet", 900):
        said = cli("report", studied)
    assert said.code == 2
    assert one.name in said.words.replace(" ", "")  # a long name is cut at the line's end
    assert load_study(studied).to_json() == whole


def test_bits_that_leave_a_number_as_it_is_count_too(tmp_path):
    """1E-05 reads as 1e-05 does, and the last of seventeen digits often changes nothing."""
    folder = tmp_path / "run"
    write_run(folder, {"lr": 1e-05, "nll": 0.30000000000000004}, examples=None, curve=[])
    path, record = folder / RECORD, read_record(folder)
    whole, same = json.loads(path.read_text()), 0
    assert is_whole(folder)
    assert is_whole(folder, record)
    for bit in range(8 * path.stat().st_size):
        with flipped(path, bit):
            assert not is_whole(folder)
            assert not is_whole(folder, record)
            with suppress(ValueError):
                same += json.loads(path.read_text(encoding="utf-8")) == whole
    assert same > 1


def test_a_ledger_whose_entry_was_changed_is_refused_without_findings(studied, tmp_path):
    """Also while a study is not finished, when nothing holds the digest of the whole file."""
    out = Path(shutil.copytree(studied, tmp_path / "study"))
    (out / FINDINGS).unlink()
    ledger = out / "ledger.db"
    raw = ledger.read_bytes()
    changed = 0
    for text in (b'"nll": ', b'"delta": '):
        at = raw.find(text)
        while at != -1:
            with flipped(ledger, 8 * (at + len(text))), pytest.raises(OutputError):
                load_study(out)
            changed += 1
            at = raw.find(text, at + 1)
    assert changed > 5
    load_study(out)
