"""The house stands as drawn: imports go down, nothing goes in circles, the public list is true.

The code is read, never run, except for the public list at the end.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import loratlas

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "loratlas"

FLOORS: dict[str, int] = {
    "errors": 0,
    "files": 1,
    "formats": 1,
    "interruption": 1,
    "child_process": 1,
    "bounded_yaml": 1,
    "time_left": 1,
    "modeling": 1,
    "display": 1,
    "result_cache": 2,
    "sealed_json": 2,
    "models": 2,
    "anatomy": 3,
    "adapters": 4,
    "data": 4,
    "placement": 5,
    "demo": 5,
    "evaluation": 5,
    "signals": 5,
    "serving": 5,
    "sources": 6,
    "lint": 6,
    "spectra": 6,
    "training": 6,
    "loss_audit": 6,
    "cost": 7,
    "dynamic": 7,
    "scan": 8,
    "study": 9,
    "report": 10,
    "claims": 10,
    "integrations": 10,
    "api": 11,
    "cli": 12,
}
"""Room → floor. A room may import from floors below its own, and from itself."""

MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a dotted name; None for the front doors, ``loratlas`` and ``python -m loratlas``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every loratlas module this file names in an import, wherever in the file, with its line."""
    known = {name_of(module) for module in MODULES}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide where they go"
            base = node.module or ""
            # `from loratlas.study import run` imports a module; `from loratlas.errors import X` a name in one.
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module"
        ):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "loratlas")


def test_every_room_has_a_floor():
    rooms = {p.stem for p in SOURCE.iterdir() if (p.is_dir() or p.suffix == ".py") and "__" not in p.name}
    assert rooms == set(FLOORS)


def floors_drawn(text: str) -> dict[str, int]:
    """Room → floor, as a picture has them: a line begins with its floor, or stands on that of the line above."""
    floor, drawn = -1, dict[str, int]()
    for line in text.partition("```\n")[2].partition("```")[0].splitlines():
        floor = int(number) if (number := line[:4].strip()) else floor
        drawn |= dict.fromkeys(re.findall(r"(?<=  )[a-z_]+(?=  |$)", line), floor)
    return drawn


def test_the_picture_of_the_house_is_the_house():
    assert floors_drawn((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")) == FLOORS


def test_the_glossary_is_short():
    words = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Words")[2]
    assert 20 <= len(re.findall(r"^\| (?!word)", words, flags=re.MULTILINE)) <= 40


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path):
    room = room_of(name_of(path))
    if room is None:
        return  # The front door names all rooms, lazily.
    for target, line in imports_of(path):
        other = room_of(target)
        if other is None or other == room:
            continue  # `from loratlas import __version__`, or the same room
        assert FLOORS[other] < FLOORS[room], (
            f"{path.relative_to(ROOT)}:{line}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]}); "
            "imports go down only"
        )


def test_nothing_goes_in_circles():
    graph = {name_of(p): {t for t, _ in imports_of(p)} - {"loratlas"} for p in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle: " + " → ".join((*way[way.index(module) :], module))
        if module in done:
            return
        for target in graph.get(module, ()):
            if target != module:
                visit(target, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_stay_small(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines; split it where its ideas part"


def crowded_folders(top: Path, allowed: int = 20) -> dict[str, int]:
    """The folders under ``top`` that hold more files than one looks through at a glance."""
    counts: dict[str, int] = {}
    for path in top.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            folder = path.parent.relative_to(top.parent).as_posix()
            counts[folder] = counts.get(folder, 0) + 1
    return {folder: count for folder, count in counts.items() if count > allowed}


@pytest.mark.parametrize("top", ["src/loratlas", "tests", "benchmarks", "tools", "docs"])
def test_no_folder_holds_over_twenty_files(top: str):
    assert not crowded_folders(ROOT / top)


def test_a_crowded_folder_is_seen(tmp_path: Path):
    for number in range(21):
        (tmp_path / f"{number}.py").touch()
    assert crowded_folders(tmp_path) == {f"{tmp_path.name}": 21}
    (tmp_path / "0.py").unlink()
    assert not crowded_folders(tmp_path)


def test_no_two_files_have_one_name():
    names = [path.name for path in MODULES if path.name not in {"__init__.py", "__main__.py", "base.py"}]
    assert sorted(names) == sorted(set(names))


def shadowing(tests: Path, tops: set[str]) -> list[str]:
    """Modules below ``tests`` named like a folder at the top: pytest puts their folder first on the path."""
    return sorted(path.name for path in tests.rglob("*.py") if path.parent != tests and path.stem in tops)


def test_no_helper_of_tests_hides_a_folder_at_the_top():
    tops = {
        name for name in ("src", "tests", "tools", "benchmarks", "docs", "recipes") if (ROOT / name).is_dir()
    }
    assert not shadowing(ROOT / "tests", tops)


def test_a_helper_that_hides_a_folder_is_seen(tmp_path: Path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "tools.py").touch()
    assert shadowing(tmp_path, {"tools"}) == ["tools.py"]


def classes_by_name(paths: list[Path]) -> dict[str, list[str]]:
    """Public classes of modules: name → where each is defined."""
    homes: dict[str, list[str]] = {}
    for path in paths:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(f"{path.name}:{node.lineno}")
    return homes


def test_no_two_public_classes_have_one_name():
    assert not {name: homes for name, homes in classes_by_name(MODULES).items() if len(homes) > 1}


def test_two_classes_of_one_name_are_seen(tmp_path: Path):
    for name in ("one.py", "other.py"):
        (tmp_path / name).write_text("class Thing:\n    class Inner: ...\n\nclass _Own: ...\n")
    homes = classes_by_name(sorted(tmp_path.iterdir()))
    assert homes["Thing"] == ["one.py:1", "other.py:1"]
    assert set(homes) == {"Thing", "Inner"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_runs_foreign_code(path: Path):
    """No pickles, no code from a model's repository, no shell."""
    for node in ast.walk(tree_of(path)):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {
                "pickle",
                "dill",
                "cloudpickle",
            }, where
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in {"pickle", "dill", "cloudpickle"}, where
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if re.search(r"\bAuto\w+\.from_pretrained$", called):
            # Left out, transformers asks at the terminal, and runs a Python file of the folder on a "y".
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("trust_remote_code") == "False", where
        assert called not in {"torch.load", "torch.save", "eval", "exec", "os.system"}, where
        for keyword in node.keywords:
            if keyword.arg in {"trust_remote_code", "shell"}:
                assert isinstance(keyword.value, ast.Constant), where
                assert keyword.value.value is False, where
    if name_of(path) != "loratlas.child_process":
        # `python -m` would import from the folder that a person works in.
        assert "sys.executable" not in path.read_text(encoding="utf-8"), path.relative_to(ROOT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_machine_in_the_code(path: Path):
    """No path of a single machine, no address of a package registry."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(
        r"/(?:home|root|Users|work|mnt)/\w+|(?:pypi|npmjs|pythonhosted|download\.pytorch)\.\w+", text
    )
    assert not found, f"{path.relative_to(ROOT)}: {found}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_file_says_what_it_is_for(path: Path):
    assert ast.get_docstring(tree_of(path)), f"{path.relative_to(ROOT)} begins without a docstring"


def test_public_list_is_true():
    assert loratlas.__all__ == sorted(loratlas.__all__)
    assert set(dir(loratlas)) >= set(loratlas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_that_name'"):
        _ = loratlas.nothing_of_that_name  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [name for name in loratlas.__all__ if name != "__version__"])
def test_public_names_are_explained(name: str):
    thing = getattr(loratlas, name)
    assert thing.__doc__, f"loratlas.{name} has no docstring"
    home = importlib.import_module(thing.__module__)
    assert ">>>" in thing.__doc__ or ">>>" in (home.__doc__ or ""), f"loratlas.{name} has no example"


def test_version_is_the_package_version():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{loratlas.__version__}"' in project


def test_test_files_have_names_of_their_own():
    """Tests lie in folders without packages: two files of one name would be taken for one another."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def test_house_test_can_fail(tmp_path: Path):
    """The reader of imports sees what it must see: nested, lazy and by name."""
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from importlib import import_module\nimport loratlas.cli\n"
        "def f():\n    from loratlas.anatomy.sites import Site\n    import_module('loratlas.study')\n"
    )
    assert {name for name, _ in imports_of(sample)} == {
        "loratlas.cli",
        "loratlas.anatomy.sites",
        "loratlas.study",
    }


@pytest.mark.parametrize("folder", ["guide", "decisions"])
def test_every_page_is_in_its_index(folder: str):
    index = (ROOT / "docs" / folder / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs" / folder).glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", index))


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto:")):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
