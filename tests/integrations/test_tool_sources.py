"""What `plan --emit` writes, read by axolotl's own schema and held against ms-swift's own arguments."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from loratlas.integrations.emit_plan import emit
from loratlas.models.config import load_config
from loratlas.placement.plan import place
from loratlas.sources import model_source, read

ROOT = Path(os.environ.get("LORATLAS_ENGINE_SOURCES", Path(__file__).parents[2] / ".venv" / "engine-sources"))
BASE = "demo:llama-mini"


def file(relative: str) -> Path:
    path = ROOT / relative
    if not path.is_file():
        pytest.skip(f"needs {relative} of its wheel, which `make engine-sources` fetches")
    return path


def written(tool: str, placement: str = "q,v@top/2:4", **options) -> str:
    anatomy = read(BASE)
    plan = place(anatomy, placement, **options)
    return emit(plan, anatomy, load_config(model_source(BASE)), tool, model=BASE).text


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
def test_axolotl_s_schema_takes_every_field(options):
    spec = importlib.util.spec_from_file_location("axolotl_peft", file("axolotl/utils/schemas/peft.py"))
    assert spec is not None
    assert spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    fields = yaml.safe_load(written("axolotl", **options))
    assert fields.pop("base_model") == BASE
    assert fields.keys() <= schema.LoraConfig.model_fields.keys()
    read_back = schema.LoraConfig.model_validate(fields)
    for name, value in fields.items():
        assert getattr(read_back, name) == value, name
    assert read_back.peft_use_rslora is bool(options.get("rslora"))
    assert bool(read_back.peft_use_dora) is bool(options.get("dora"))


def test_ms_swift_s_arguments_have_every_option():
    tree = ast.parse(file("swift/arguments/tuner_args.py").read_text(encoding="utf-8"))
    arguments = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TunerArguments")
    kinds = {
        node.target.id: ast.unparse(node.annotation)
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    words = shlex.split(written("swift", dora=True).replace("\\\n", " "))
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given.pop("--model") == BASE
    for option, value in given.items():
        kind = kinds[option.removeprefix("--")]
        if kind in ("int", "float"):
            assert float(value) >= 0
        elif kind == "bool":
            assert value in ("true", "false")
        else:
            assert kind == "Optional[str]"
            re.compile(value)
    assert "rank_pattern" not in kinds
