"""The run: steps, held-out loss, checkpoints, and the folder that is left."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import objective
import torch
from bases import VOCABULARY, Base
from neighbours import find_itself, look_around
from optimizer import Optimizer
from text import ids, special, tokenizer

TOKENS = 24 * 256
"""Tokens of text a step, whatever the length of its rows."""

MICRO = 8 * 256
"""Tokens at a time, what the caches of a processor like."""

WARMUP = 150
DECAY = 0.4
"""Share of the steps over which the rate falls to 0 in a straight line."""

WHOLE = 64
"""Tokens of a row whose answer is the whole text; in short rows a token soon finds itself."""

HELD_OUT = 100 * 256
"""Tokens of held-out text that a loss is measured on."""


def schedule(step: int, steps: int) -> float:
    """Factor of the peak rates: up over `warm_up` steps, level, then down to 0 over the last `DECAY`."""
    return min(1.0, (step + 1) / warm_up(steps), (steps - step) / (DECAY * steps))


def warm_up(steps: int) -> int:
    """Steps until the peak: `WARMUP`, or a tenth of a run that is shorter."""
    return min(WARMUP, max(1, steps // 10))


class Run:
    """One pre-training, gone on with where its folder says.

    Args:
        base: which.
        corpus: folder of ``train-*.txt.gz`` and ``heldout.txt.gz``.
        out: folder of the base; ``work/`` inside it holds ids and the checkpoint.
        steps: of the whole run.
        small: overrides of ``hidden`` and ``layers``, for a trial.
        seed: of the initial weights and of what is hidden.
    """

    def __init__(
        self, base: Base, *, corpus: Path, out: Path, steps: int, small: dict[str, int], seed: int
    ) -> None:
        self.base, self.corpus, self.out, self.steps, self.seed = base, corpus, out, steps, seed
        self.work = out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        train = sorted(corpus.glob("train-*.txt.gz"))
        self.tokens = tokenizer(base.tokenizer, train, out)
        self.special = special(self.tokens)
        self.sentinels = self.tokens.convert_tokens_to_ids("<extra_id_0>")
        self.stream = ids(self.tokens, train, self.work / "train.npy", limit=steps * TOKENS)
        held = [corpus / "heldout.txt.gz"]
        self.held = ids(self.tokens, held, self.work / "held.npy", limit=HELD_OUT)
        if len(self.stream) < steps * TOKENS:
            raise SystemExit(
                f"{corpus} holds {len(self.stream):,} tokens; {steps} steps read {steps * TOKENS:,}. "
                f"At most --steps {len(self.stream) // TOKENS}"
            )
        torch.manual_seed(seed)
        self.model = _build(base, self.special, small)
        self.optimizer = Optimizer(self.model, muon=base.muon, adamw=base.adamw)
        if base.objective == "spans":
            find_itself(self.optimizer.masters, self.model.config)
            self.optimizer.write()
        self.log: dict[str, Any] = {"step": 0, "seconds": 0.0, "train": [], "held": []}
        self.checkpoint = self.work / "state.safetensors"
        if self.checkpoint.exists():
            from safetensors import safe_open

            with safe_open(self.checkpoint, "pt") as held:
                self.optimizer.load({name: held.get_tensor(name) for name in held.keys()})  # noqa: SIM118
                self.log = json.loads(held.metadata()["log"])
        self.stopped = False

    def batch(
        self, stream: Any, step: int, tokens: int, *, length: int, whole: bool = False
    ) -> dict[str, Any]:
        """Inputs and labels of a step."""
        frame = (self.special["cls"], self.special["eos"]) if self.base.objective == "masked" else ()
        text = objective.rows(stream, step, tokens=tokens, length=length, frame=frame)
        generator = np.random.default_rng([self.seed, step, length])
        if self.base.objective == "causal":
            return objective.causal(text)
        if self.base.objective == "masked":
            return objective.masked(text, self.special, VOCABULARY, generator)
        return objective.spans(text, self.special, self.sentinels, generator, whole=whole)

    def pieces(self, batch: dict[str, Any], length: int) -> list[dict[str, torch.Tensor]]:
        """A batch in micro-batches."""
        rows = max(1, MICRO // length)
        count = math.ceil(len(batch["input_ids"]) / rows)
        return [
            {name: torch.from_numpy(value[i * rows : (i + 1) * rows]) for name, value in batch.items()}
            for i in range(count)
        ]

    def train(self, *, every: int = 100, held_every: int = 250, until: int | None = None) -> None:
        """All steps that are left; a signal to end writes a checkpoint first."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self.model.train()
        while self.log["step"] < self.steps and not self.stopped:
            begun, step = time.process_time(), self.log["step"]
            whole = step < self.base.whole * self.steps
            length = WHOLE if whole else self.base.lengths[step % len(self.base.lengths)]
            total, count = 0.0, 0
            batch = self.batch(self.stream, step, TOKENS, length=length, whole=whole)
            for piece in self.pieces(batch, length):
                loss, labelled = objective.loss(self.model, piece)
                loss.backward()
                self.optimizer.collect()
                total, count = total + float(loss.detach()), count + labelled
            norm = self.optimizer.step(step, schedule(step, self.steps), count)
            self.log["step"] = step + 1
            self.stopped = self.stopped or step + 1 == until
            self.log["seconds"] += time.process_time() - begun
            self.log["train"].append(round(total / count, 4))
            if (step + 1) % 25 == 0:
                recent = sum(self.log["train"][-25:]) / 25
                print(
                    f"{self.base.name} step {step + 1}/{self.steps} loss {recent:.4f} norm {norm:.2f} "
                    f"{self.log['seconds'] / (step + 1):.2f} s/step",
                    flush=True,
                )
            if (step + 1) % held_every == 0 or step + 1 == self.steps:
                self.log["held"].append([step + 1, round(self.held_out(), 4)])
                print(f"{self.base.name} step {step + 1} held-out {self.log['held'][-1][1]}", flush=True)
            if (step + 1) % every == 0 or self.stopped or step + 1 == self.steps:
                self.keep()

    @torch.no_grad()
    def held_out(self) -> float:
        """Mean −log p per labelled token of the held-out text, in rows of the longest length."""
        self.model.eval()
        length = max(self.base.lengths)
        total, count = 0.0, 0
        tokens = len(self.held) // length * length
        for piece in self.pieces(self.batch(self.held, 0, tokens, length=length), length):
            loss, labelled = objective.loss(self.model, piece)
            total, count = total + float(loss), count + labelled
        self.model.train()
        return total / count

    def keep(self) -> None:
        """Write the checkpoint, log and state in one file; a kill meanwhile leaves the last one whole."""
        from safetensors.torch import save_file

        new = self.checkpoint.with_suffix(".new")
        save_file(self.optimizer.state(), new, metadata={"log": json.dumps(self.log)})
        new.replace(self.checkpoint)

    def _stop(self, *_: object) -> None:
        self.stopped = True


def _build(base: Base, special_ids: dict[str, int], small: dict[str, int]) -> Any:
    """The untrained model, in bfloat16."""
    from transformers import BertForMaskedLM, GPT2LMHeadModel, T5ForConditionalGeneration

    kind = {"causal": GPT2LMHeadModel, "masked": BertForMaskedLM, "spans": T5ForConditionalGeneration}
    model = kind[base.objective](base.config(special_ids, small))
    if base.objective == "masked":
        look_around(model)
    return model.to(torch.bfloat16)
