"""How often `audit-log` calls a random number reproduced: 300 numbers within ±10 % of a loss, all passes made.

OMP_NUM_THREADS=1 python benchmarks/audit_chance.py --out benchmarks/results/audit_chance.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROWS, NUMBERS = 64, 300


def audited(scratch: Path) -> Any:
    """Every pass of an audit of the embedded base with an adapter, whatever it explains."""
    import torch
    from peft import LoraConfig, get_peft_model

    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.demo import base_path, generate
    from loratlas.loss_audit.audit_passes import subject
    from loratlas.loss_audit.log_audit import LogAudit
    from loratlas.loss_audit.log_numbers import Log
    from loratlas.loss_audit.text_units import texts_of
    from loratlas.models.load import load_model

    rows, tokenizer = generate("demo:facts-300", split="eval", rows=ROWS), load_tokenizer(base_path())
    encoded = encode(rows, tokenizer, max_length=64)
    torch.manual_seed(0)
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(base_path(), dtype="float32"), config)
    of, _ = subject(model, rows, encoded, tokenizer)
    # One number that nothing reproduces keeps the audit going to its last pass.
    log = log_of([1e6], 0.0)
    assert isinstance(log, Log)
    audit = LogAudit(
        logs=[log], scratch=scratch, max_length=64, dtype="float32", texts=texts_of(encoded, rows, tokenizer)
    )
    audit.reference(of)
    audit.more(of, adapted=True)
    return audit


def log_of(values: list[float], rounding: float) -> Any:
    """A Trainer's log with these evaluation losses."""
    from loratlas.loss_audit.log_numbers import Log, Number

    numbers = [
        Number(name="eval_loss", value=value, kind="loss", where="/eval_loss", rounding=rounding)
        for value in values
    ]
    return Log(tool="transformers Trainer", path=Path("eval_results.json"), numbers=tuple(numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import numpy as np

    from loratlas.loss_audit.definitions import Definition, value
    from loratlas.loss_audit.match_logs import explain

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        audit = audited(Path(scratch))
        loss = value(Definition(name="token_mean"), audit.evidence)
        for digits, rounding in (
            ("all", 0.0),
            ("4 decimals", 5e-5),
            ("3 decimals", 5e-4),
            ("2 decimals", 5e-3),
        ):
            random = np.random.default_rng(0)
            values = (loss * random.uniform(0.9, 1.1, NUMBERS)).tolist()
            outcome = explain(log_of(values, rounding), audit.evidence, rough=audit.rough)
            verdicts = [one.verdict for one in outcome]
            true = value(Definition(name="b", aggregate="batch", batch_size=8), audit.evidence)
            (right,) = explain(log_of([true], rounding), audit.evidence, rough=audit.rough, batch_sizes=[8])
            results.append(
                {
                    "digits": digits,
                    "definitions": outcome[0].tried,
                    "reproduced": verdicts.count("reproduced"),
                    "consistent": verdicts.count("consistent"),
                    "of": NUMBERS,
                    "batch_mean_at_a_known_size": right.verdict,
                }
            )
            print(json.dumps(results[-1]), flush=True)
    record = {
        "schema": "loratlas.benchmark.audit-chance",
        "version": 1,
        "limit": 0.01,
        "passed": all(result["reproduced"] <= 0.01 * result["of"] for result in results),
        "passes": audit.passes,
        "loss": loss,
        "results": results,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
