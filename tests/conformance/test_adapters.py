"""Every option of PEFT's LoRA × {eval, train --from, export, merge} equals PEFT in a fresh process, or is refused.

The reference is PEFT alone, on bases that a process of its own loads anew; what loratlas reads, trains further, exports
and merges is held against it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conformance.adapter_cases import CASES, Case, save_bases, save_case

from loratlas.adapters.export.check_export import Request, fixed_logits
from loratlas.adapters.export.export_adapter import write_export
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.adapter_task import open_base_config
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.stored.read_adapter import read_adapter
from loratlas.adapters.trained_heads import refuse_untrained
from loratlas.errors import LoratlasError
from loratlas.models.load import load_model

WAYS = ("eval", "train --from", "export", "merge")

ALONE = """
import json, sys, warnings
import torch
from safetensors.torch import save_file
from transformers.utils import logging
from loratlas.adapters.export.check_export import Request, fixed_logits, load_export, load_with_peft
warnings.simplefilter("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()
made, failed = {}, {}
for key, fields, whole in json.load(sys.stdin):
    request = Request(**{**fields, "tokens": tuple(fields["tokens"])})
    try:
        model = load_with_peft(request, request.adapter) if whole == "adapter" else load_export(request)
        made[key] = fixed_logits(model, request).contiguous()
    except Exception as error:
        failed[key] = repr(error)
save_file(made, sys.argv[1])
print(json.dumps(failed))
"""


class Outcome:
    """What became of one case in one way: logits, or the sentence of a refusal."""

    def __init__(self) -> None:
        self.logits: dict[str, torch.Tensor] = {}
        self.refused: dict[str, str] = {}
        self.left: dict[str, bool] = {}


def _try(outcome: Outcome, way: str, call: Any, out: Path | None = None) -> Any:
    try:
        return call()
    except LoratlasError as error:
        outcome.refused[way] = str(error)
        if out is not None:
            outcome.left[way] = out.exists()
        return None


def _open(folder: Path, *, trainable: bool) -> tuple[Any, Any]:
    contents = read_adapter(folder)
    _, config = open_base_config(contents, contents.base)
    live = load_model(str(contents.base), dtype="float32", config=config)
    return refuse_untrained(load_adapter(live, folder, trainable=trainable), folder), config


def _logits(model: Any, request: Request) -> torch.Tensor:
    return fixed_logits(model.get_base_model().eval(), request)


def collect(root: Path) -> dict[str, Outcome]:
    """Every case in every way, and PEFT alone in one process of its own."""
    bases = save_bases(root / "bases")
    by_name: dict[str, Outcome] = {}
    asked: list[tuple[str, Any, str]] = []
    for case in CASES:
        name = case.name.replace(" ", "_").replace(",", "").replace(":", "")
        folder = save_case(case, bases[case.base], root / name)
        outcome = by_name[case.name] = Outcome()
        for way, target in (("export", "peft"), ("merge", "merged")):
            out = root / f"{name}.{target}"
            written = _try(outcome, way, lambda: write_export(folder, out, target=target), out)  # noqa: B023
            if written is not None:
                if way == "export":
                    asked.append((f"{case.name}|PEFT", written[1], "adapter"))
                asked.append((f"{case.name}|{way}", written[1], "export"))
        request = next((r for key, r, _ in reversed(asked) if key == f"{case.name}|export"), None)
        judged = _try(outcome, "eval", lambda: _open(folder, trainable=False)[0])  # noqa: B023
        trained = _try(outcome, "train --from", lambda: _open(folder, trainable=True)[0])  # noqa: B023
        if judged is None or trained is None or request is None:
            continue
        outcome.logits["eval"] = _logits(judged, request)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        outcome.logits["trained"] = _logits(trained, request)
        again = save_adapter(trained, root / f"{name}.again")
        asked.append(
            (f"{case.name}|trained", Request(**{**asdict(request), "exported": str(again)}), "export")
        )
    lines = json.dumps([(key, asdict(request), whole) for key, request, whole in asked])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(root / "logits.safetensors")],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failed = json.loads(done.stdout)
    assert not failed, failed
    for key, tensor in load_file(root / "logits.safetensors").items():
        name, _, what = key.partition("|")
        by_name[name].logits[f"alone {what}"] = tensor
    return by_name


def _problem(case: Case, way: str, outcome: Outcome) -> str | None:
    """What is wrong about one cell; None where it is right, or refused as it should be."""
    expected = case.refused or (case.refused_merged if way == "merge" else None)
    said = outcome.refused.get(way)
    if expected is not None or said is not None:
        if expected is None or said is None:
            return f"refused: {said}" if said else "not refused"
        if expected not in said:
            return f"refused by another sentence: {said}"
        return "a folder is left" if outcome.left.get(way) else None
    ours, alone = {
        "eval": ("eval", "alone PEFT"),
        "train --from": ("trained", "alone trained"),
        "export": ("alone export", "alone PEFT"),
        "merge": ("alone merge", "alone PEFT"),
    }[way]
    difference = float((outcome.logits[ours] - outcome.logits[alone]).abs().max())
    if not difference < 1e-4:
        return f"differs by {difference}"
    if way == "train --from" and torch.allclose(outcome.logits[ours], outcome.logits["eval"], atol=1e-3):
        return "nothing was trained"
    return None


def test_right_or_refused_by_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, so that the bases and PEFT's own process are made once."""
    outcomes = collect(tmp_path)
    wrong, refused = {}, 0
    for case in CASES:
        for way in WAYS:
            refused += way in outcomes[case.name].refused
            problem = _problem(case, way, outcomes[case.name])
            if problem is not None:
                wrong[f"{case.name}, {way}"] = problem
    cells = len(CASES) * len(WAYS)
    right = cells - refused - len(wrong)
    with capsys.disabled():
        print(
            f"\nadapters: {cells} cells, {right} right, {refused} refused by a sentence, {len(wrong)} wrong"
        )
    assert not wrong
