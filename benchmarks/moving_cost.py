"""What it costs that adapters move inside a run, and what a move does, on the embedded base and nl2bash.

    LORATLAS_SHARED=../shared python -m benchmarks.moving_cost --out benchmarks/results/moving/moving_cost.json

- Time and peak memory of a run that decides at a tenth of its steps, over the same run with adapters that stay: pairs
  in the order A B B A, CPU time of the process, one thread. The peak is the allocator's own count.
- Bytes of adapters and optimizer before and after half of the budget was dropped.
- Change of the logits when every site grows by a rank, over the largest logit.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.dynamic.cases import Case, Opened
from loratlas.adapters.resize import ranks_of, resize
from loratlas.dynamic.controller import PlacementController
from loratlas.dynamic.decision_schedule import DecisionSchedule
from loratlas.dynamic.policies.known_policies import policy_named
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import detach_adapters
from loratlas.training.loop import fit
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

CASE = Case(base="demo:llama-mini", task="nl2bash")
RATE = 0.012


def controller(opened: Opened, name: str) -> PlacementController:
    """A controller that decides once, at the end of the first tenth."""
    plan = place(opened.anatomy, "all:1")
    sites = [row.site for row in plan.rows]
    return PlacementController(
        sites, policy_named(name), budget=plan.trainable, schedule=DecisionSchedule(head=0.1)
    )


class Once(RunHook):
    """Does something after a step, and keeps what came out."""

    name = "once"

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what, self.found = step, what, None

    def after_step(self, run: Any, event: Any) -> None:
        if event.step == self.step:
            self.found = self.what(run)


def train(opened: Opened, *, steps: int, seed: int, hooks: Any = (), placement: str = "all:1") -> Any:
    """(result, model, CPU seconds) of a run."""
    settings = Settings(
        steps=steps, lr=RATE, batch_size=16, seed=seed, dtype="bfloat16", compile="off", save_every=10**6
    )
    model = place(opened.anatomy, placement).attach(opened.model, seed=seed)
    begun = time.process_time()
    result = fit(model, opened.train, settings, hooks=hooks, packed=opened.packed)
    return result, model, time.process_time() - begun


def cost(opened: Opened, *, pairs: int, steps: int) -> dict[str, Any]:
    """CPU time and peak memory of runs that decide over those that do not."""
    ratios, peaks, seconds = [], [], []
    for pair in range(pairs):
        by_name = {}
        for arm in ("still", "moving") if pair % 2 == 0 else ("moving", "still"):
            hooks = [controller(opened, "weighted")] if arm == "moving" else []
            result, model, spent = train(opened, steps=steps, seed=pair, hooks=hooks)
            opened.model = detach_adapters(model)
            by_name[arm] = (spent, result.peak_bytes)
        ratios.append(by_name["moving"][0] / by_name["still"][0])
        peaks.append(by_name["moving"][1] / by_name["still"][1])
        seconds.append({arm: spent for arm, (spent, _) in by_name.items()})
    return {
        "steps": steps,
        "time_ratio": median(ratios),
        "time_ratios": ratios,
        "peak_ratio": median(peaks),
        "peak_ratios": peaks,
        "cpu_seconds": seconds,
    }


def memory(opened: Opened) -> dict[str, Any]:
    """Bytes of adapters (weights, masters, gradients) and moments before and after half of the ranks went."""

    def held(run: Any) -> int:
        tensors = [*run.masters.lasting(), *run.optimizer.state().values()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def halve(run: Any) -> tuple[int, int]:
        before, moments = held(run), run.optimizer.moments()
        half = {path: rank // 2 for path, rank in ranks_of(run.model).items()}
        run.change_parameters(lambda: resize(run.model, half, moments=moments, steps=2).moments)
        return before, held(run)

    hook = Once(2, halve)
    _, model, _ = train(opened, steps=4, seed=0, hooks=[hook], placement="all:4")
    opened.model = detach_adapters(model)
    before, after = hook.found or (0, 0)
    return {"before": before, "after": after, "ratio": after / before}


def growth(opened: Opened) -> dict[str, Any]:
    """Largest change of a logit over the largest logit, in float32, when every site grows by a rank."""
    from loratlas.sources import open_model

    base = open_model(CASE.base, dtype="float32")
    model = place(opened.anatomy, "all:2").attach(base, seed=0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=drawn))
        tokens = torch.tensor(opened.train.examples[0].input_ids[None], dtype=torch.int64)
        model.eval()
        before = model(input_ids=tokens).logits
        resize(model, {path: rank + 1 for path, rank in ranks_of(model).items()})
        after = model(input_ids=tokens).logits
    return {"relative": float((after - before).abs().max() / before.abs().max())}


def main() -> None:
    """Measure everything, write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    opened = Opened(CASE)
    load = machine.load()
    by_name = {
        "schema": "loratlas.bench.moving_cost",
        "version": 1,
        "growth": growth(opened),
        "memory": memory(opened),
        "cost": cost(opened, pairs=asked.pairs, steps=asked.steps),
        "case": CASE.name,
        "lr": RATE,
        "load_before": load,
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "command": f"python -m benchmarks.moving_cost --pairs {asked.pairs} --steps {asked.steps}",
    }
    asked.out.write_text(json.dumps(by_name, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: by_name[key] for key in ("growth", "memory", "cost")}, indent=1))


if __name__ == "__main__":
    main()
