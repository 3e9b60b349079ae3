"""Files and folders are whole or not there, wherever a process is killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loratlas.errors import OutputError, StorageError
from loratlas.files import draft, is_leftover, read_json, remove_leftovers, storing, whole_folder, write_json

KILL = """
import os, sys
count, fatal = 0, int(sys.argv[1])
WATCHED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
def hook(event, args):
    global count
    if event in WATCHED or (event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        count += 1
        if count == fatal:
            os._exit(9)
from pathlib import Path
from loratlas.files import whole_folder, write_json
sys.addaudithook(hook)
"""


def killed(body: str, at: int, cwd: Path) -> int:
    """Run Python that dies just before its ``at``-th file operation; its exit code."""
    return subprocess.run([sys.executable, "-c", KILL + body, str(at)], cwd=cwd, timeout=60).returncode


def test_a_folder_is_the_old_one_or_the_new_one_wherever_its_writer_dies(tmp_path: Path):
    body = (
        "with whole_folder(Path('out'), marker='a') as f:\n for name in 'ab': (f / name).write_text('new')\n"
    )
    for at in range(1, 40):
        out = tmp_path / str(at) / "out"
        out.mkdir(parents=True)
        (out / "a").write_text("old")
        (out / "b").write_text("old")
        code = killed(body, at, out.parent)
        remove_leftovers(out.parent)
        assert {p.name for p in out.parent.iterdir()} == {"out"}
        assert {(out / "a").read_text(), (out / "b").read_text()} in ({"old"}, {"new"})
        with whole_folder(out, marker="a") as again:
            (again / "a").write_text("next")
        if code == 0:
            return
    raise AssertionError("the writer never came to its end")


def test_a_file_is_the_old_one_or_the_new_one_wherever_its_writer_dies(tmp_path: Path):
    for at in range(1, 20):
        (tmp_path / "a").write_text('"old"')
        code = killed("write_json(Path('a'), 'new')\n", at, tmp_path)
        assert (tmp_path / "a").read_text().strip() in {'"old"', '"new"'}
        write_json(tmp_path / "a", "next")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        if code == 0:
            return
    raise AssertionError("the writer never came to its end")


def test_drafts_of_running_processes_stay(tmp_path: Path):
    mine = tmp_path / f".a.{os.getppid()}.part"
    mine.write_text("unfinished")
    remove_leftovers(tmp_path)
    assert mine.exists()
    assert is_leftover(mine)
    assert not is_leftover(tmp_path / ".gitignore")


def test_a_block_that_fails_leaves_nothing(tmp_path: Path):
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with draft(tmp_path / "a") as unfinished:
            unfinished.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_and_a_forbidden_place_are_two_errors(tmp_path: Path):
    for code, kind in ((errno.ENOSPC, StorageError), (errno.EACCES, OutputError)):
        with pytest.raises(kind), whole_folder(tmp_path / "out", marker="a"):
            raise OSError(code, "no")
        with pytest.raises(StorageError), storing(tmp_path):
            raise OSError(code, "no")


def test_a_folder_with_something_else_stays(tmp_path: Path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OutputError), whole_folder(tmp_path, marker="a"):
        pass
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "raw",
    [b"[" * 100_000, b'{"a": ' * 100_000, b"\xff\xfe", b"", b"nul"],
    ids=["[", "{", "bytes", "empty", "word"],
)
def test_json_that_is_none_is_a_value_error(tmp_path: Path, raw: bytes):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"without end|codec|Expecting"):
        read_json(tmp_path / "a.json")


def test_json_of_more_bytes_than_allowed_is_not_read(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"[1, 2]")
    assert read_json(tmp_path / "a.json", most=6) == [1, 2]
    with pytest.raises(ValueError, match="more than 5 bytes"):
        read_json(tmp_path / "a.json", most=5)
