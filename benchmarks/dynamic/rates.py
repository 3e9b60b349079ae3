"""What `--lr auto` is worth: against the whole grid of rates, each trained in full, and against what peers ship.

    LORATLAS_SHARED=../shared python -m benchmarks.dynamic.rates --work WORK --out benchmarks/results/moving/rates.json

A case is a base, a task, a placement and a length. Its grid are the rates that `auto` may choose, 1.6 apart, each
trained in full on every seed until the best mean has a worse neighbour on both sides. The **tuned** rate is that best
one. `auto` is run for real as far as its head; from there on it is bit for bit the run of the chosen rate (a law of the
test suite), whose loss is taken, after the losses of its head were compared with that run's.

    gap of a rate = held-out loss at it − held-out loss at the tuned rate, same seed      nats per token

The tuned rate is best over all seeds and not for each, so that gaps below 0 occur. The price is the steps that went to
other rates over the steps of the run. Every run is one line of WORK/runs.jsonl: the same command goes on where it was
stopped, ``--minutes`` stops it. The JSON is renewed after every case and holds what there is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import machine
from benchmarks.common.kept_runs import KeptRuns
from loratlas.files import write_json
from loratlas.training.learning_rate import FACTOR, default_rate

ROOT = Path(__file__).resolve().parents[2]
BASES = {"llama-mini": "demo:llama-mini", "gpt2-mini": str(ROOT / "bases/gpt2-mini")}
WIDTH, BATCH, HELD_OUT, TRAIN = 256, 16, 300, 6000
PEERS = {
    "5e-5, default of transformers' Trainer": 5e-5,
    "1e-4": 1e-4,
    "2e-4, examples of PEFT and TRL": 2e-4,
    "2e-3": 2e-3,
}
CLOSE = 0.01
"""Nats per token within which a rate is as good as the tuned one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is trained."""

    base: str
    task: str
    placement: str
    steps: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.base} {self.task} {self.placement} {self.steps} steps"


CASES = [
    Case(base=base, task=task, placement=placement, steps=steps)
    for steps, placement in ((100, "all:8"), (100, "all:1"), (200, "all:8"))
    for task in ("nl2bash", "e2e")
    for base in BASES
]


def rate_at(index: int) -> float:
    """The rate so many factors from the formula's, as `loratlas.training.learning_rate.neighbours` rounds it."""
    return float(f"{default_rate(width=WIDTH, batch_size=BATCH).rate * FACTOR**index:.3g}")


@cache
def rows_of(base: str, task: str) -> tuple[Any, Any]:
    """Encoded rows to train on and to judge on."""
    from loratlas.data.encode import encode, load_tokenizer
    from loratlas.sources import model_source, open_rows

    tokenizer = load_tokenizer(model_source(BASES[base]))
    path = "${LORATLAS_SHARED}/data/" + task
    files = ((f"{path}_train.jsonl.gz", TRAIN), (f"{path}_eval.jsonl.gz", HELD_OUT))
    train, judged = (encode(open_rows(name, limit=limit), tokenizer, max_length=128) for name, limit in files)
    return train, judged


class HeadDone(Exception):
    """The rate is decided; nothing more is to be trained."""


def train(case: Case, seed: int, lr: float | str) -> dict[str, Any]:
    """One run in full; or with ``lr="auto"`` its head."""
    from loratlas.evaluation.score import score
    from loratlas.placement.plan import place
    from loratlas.sources import open_model
    from loratlas.training.loop import fit
    from loratlas.training.settings import Settings

    rows, judged = rows_of(case.base, case.task)
    model = open_model(BASES[case.base], dtype="bfloat16")
    model = place(model.config, case.placement).attach(model, seed=seed)
    settings = Settings(steps=case.steps, lr=lr, seed=seed, batch_size=BATCH, dtype="bfloat16", compile="off")
    begun, losses, tried = time.process_time(), [], []

    def on_step(event: Any) -> None:
        losses.append(event.nll)
        if lr == "auto" and event.step == own_steps():
            raise HeadDone

    def on_trial(rate: float, event: Any) -> None:
        tried.append((rate, event.step, event.nll))

    def own_steps() -> int:
        return max(step for _, step, _ in tried)

    chosen, diverged = lr, False
    try:
        diverged = fit(model, rows, settings, on_step=on_step, on_trial=on_trial, packed=True).diverged
    except HeadDone:
        chosen = next(rate for rate in {rate for rate, _, _ in tried} if losses == _of(tried, rate))
    nll = None
    if lr != "auto" and not diverged:
        scores = score(model, judged, packed=True)
        nll = float(scores.nll.sum() / scores.n.sum())
    return {
        "case": case.name,
        "seed": seed,
        "lr": lr,
        "nll": nll,
        "losses": losses,
        "chosen": chosen,
        "tried": {f"{rate:g}": _of(tried, rate) for rate in sorted({rate for rate, _, _ in tried})},
        "set_aside": len(tried) - len(losses) if lr == "auto" else 0,
        "cpu_seconds": time.process_time() - begun,
    }


def _of(tried: Sequence[tuple[float, int, float]], rate: float) -> list[float]:
    return [nll for other, _, nll in tried if other == rate]


RUN = ("case", "seed", "lr")
"""What says which run it is."""


class Runs(KeptRuns):
    """Runs of cases."""

    def of(self, case: Case, seed: int, lr: float | str) -> dict[str, Any]:
        """A run, trained if it is not there; see `KeptRuns.get`."""

        def trained() -> dict[str, Any]:
            record = train(case, seed, lr)
            said = f"chose {record['chosen']:g}" if lr == "auto" else f"{_loss(record):.4f}"
            print(f"{case.name}, seed {seed}, {lr}: {said}, {record['cpu_seconds']:.0f} s", flush=True)
            return record

        return self.get({"case": case.name, "seed": seed, "lr": lr}, trained)


def _loss(record: Mapping[str, Any]) -> float:
    return float("inf") if record["nll"] is None else record["nll"]


def tuned(runs: Runs, case: Case, seeds: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The best rate of a case and the mean loss at every rate that was trained, by index of `rate_at`."""
    means: dict[int, float] = {}
    wanted = [0, 1, -1]
    while wanted:
        index = wanted.pop(0)
        means[index] = mean(_loss(runs.of(case, seed, rate_at(index))) for seed in seeds)
        if not wanted:
            best = min(means, key=means.__getitem__)
            wanted = [index for index in (best - 1, best + 1) if index not in means]
    return min(means, key=means.__getitem__), means


def judge(runs: Runs, case: Case, seeds: Sequence[int], *, peers: bool) -> dict[str, Any]:
    """All figures of a case."""
    best, means = tuned(runs, case, seeds)
    at_best = {seed: _loss(runs.of(case, seed, rate_at(best))) for seed in seeds}
    figures: dict[str, Any] = {
        "case": case.name,
        "seeds": list(seeds),
        "grid": {f"{rate_at(index):g}": round(means[index], 4) for index in sorted(means)},
        "tuned": rate_at(best),
        "nll": {str(seed): round(loss, 4) for seed, loss in at_best.items()},
        "auto": [],
    }
    for seed in seeds:
        head = runs.of(case, seed, "auto")
        whole = runs.of(case, seed, head["chosen"])
        assert whole["losses"][: len(head["losses"])] == head["losses"], "auto's head is not that of its rate"
        figures["auto"].append(
            {
                "seed": seed,
                "chosen": head["chosen"],
                "tried": sorted(float(rate) for rate in head["tried"]),
                "gap": round(_loss(whole) - at_best[seed], 4),
                "price": round(head["set_aside"] / case.steps, 4),
            }
        )
    # What peers ship is so far off that one seed says it.
    fixed = {"formula": (rate_at(0), seeds)}
    fixed |= {name: (rate, seeds[:1]) for name, rate in PEERS.items() if peers}
    figures["fixed"] = {
        name: [round(_loss(runs.of(case, seed, rate)) - at_best[seed], 4) for seed in chosen]
        for name, (rate, chosen) in fixed.items()
    }
    return figures


def summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares and means over all cases and seeds."""
    rules = {"auto": [entry["gap"] for case in cases for entry in case["auto"]]}
    for case in cases:
        for name, gaps in case["fixed"].items():
            rules.setdefault(name, []).extend(gaps)
    prices = [entry["price"] for case in cases for entry in case["auto"]]
    return {
        "price": {"mean": round(mean(prices), 4), "most": max(prices)},
        "rules": {
            name: {
                "runs": len(gaps),
                "close": round(sum(gap <= CLOSE for gap in gaps) / len(gaps), 3),
                "mean_gap": round(mean(gaps), 4),
                "worst_gap": max(gaps),
            }
            for name, gaps in rules.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs that are done")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, nargs="+", help="only cases of these lengths")
    parser.add_argument("--placements", nargs="+", help="only cases of these placements")
    parser.add_argument("--no-peers", action="store_true", help="leave out the rates that peers ship")
    arguments = parser.parse_args()
    runs = Runs(arguments.work / "runs.jsonl", RUN, until=time.monotonic() + 60 * arguments.minutes)
    chosen = [
        case
        for case in CASES
        if case.steps in (arguments.steps or [case.steps])
        and case.placement in (arguments.placements or [case.placement])
    ]
    done: list[dict[str, Any]] = []
    for case in chosen:
        try:
            done.append(judge(runs, case, arguments.seeds, peers=not arguments.no_peers))
        except TimeoutError:
            continue  # what is there of later cases is judged
        if arguments.out is not None:
            measured = {
                "command": f"python -m benchmarks.dynamic.rates {' '.join(sys.argv[1:])}",
                "machine": machine.machine(),
                "versions": machine.versions(),
                "revision": machine.revision(),
            }
            write_json(arguments.out, {**measured, "summary": summary(done), "cases": done})
    print(json.dumps(summary(done), indent=1) if done else "no case is whole yet")
    return 0 if len(done) == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
