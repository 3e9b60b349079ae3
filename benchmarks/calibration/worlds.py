"""Worlds in which nothing differs: every arm's true loss at its own best rate is the same.

A world draws what a study would see: tuning losses at any rate, and per-example differences of evaluation runs. Curves,
noise of runs and rows are recorded ones (`recorded.py`); bad runs, clusters and effects of length are put on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.recorded import Curve, Rows, curve, rows

BAD = 0.2
"""Chance that a run comes apart, in worlds where some do."""

BAD_SIZE = 15.0
"""How far a run that came apart is off, in standard deviations of the runs of its study."""

CLIFF_SPREAD = 0.05
"""Standard deviation between runs of the logarithm of the rate at which they diverge, in the world where they do."""

ARMS = 3
"""The reference and two others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One world.

    Args:
        name: for the table. curve, rows: what was recorded. examples: N.
        bad: "" none; "alike": one run in five of every arm is worse by ``bad_size``; "one arm": of both arms but the
            reference, whose other runs are better by a fifth of it, so that means agree; "seed": the same, and a
            seed that is bad is so at every rate.
        bad_size: nats per token.
        prompts: how many different prompts the examples have; their rows share an effect. 0: as many as examples.
        cliff: runs at rates about this much above the best one diverge, as logarithm; infinite: none does.
        length: effect per token of an example, times its length over the mean, centred so that the token mean is 0.
    """

    name: str
    curve: Curve
    rows: Rows
    examples: int
    bad: str = ""
    bad_size: float = 0.15
    prompts: int = 0
    cliff: float = np.inf
    length: float = 0.0

    def optima(self, random: np.random.Generator, studies: int) -> np.ndarray:
        """[studies, arms] logarithm of each arm's best rate, about the middle of the grid."""
        common = random.uniform(-np.log(1.6), np.log(1.6), (studies, 1))
        return common + random.normal(0, self.curve.optima, (studies, ARMS))

    def seeds(self, random: np.random.Generator, studies: int, count: int) -> np.ndarray:
        """[studies, arms, 1, seeds] what seeds add: to all arms, and half of a run's variance to each arm."""
        shared = random.normal(0, self.curve.seed, (studies, 1, 1, count))
        own = random.normal(0, self.curve.run / np.sqrt(2), (studies, ARMS, 1, count))
        own = own + (self._bad(random, own.shape) if self.bad == "seed" else 0.0)
        return shared + own

    def tuning(self, random: np.random.Generator, distance: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Tuning losses [studies, arms, rates, seeds] at distances [studies, arms, rates] from the best rates; infinite
        where a run diverged."""
        above = self.curve.excess(distance)[..., None]
        shape = (*distance.shape, seeds.shape[-1])
        noise = random.normal(0, self.curve.run / np.sqrt(2), shape) * (1 + 10 * np.minimum(above, 2))
        losses = above + seeds + noise + (0.0 if self.bad == "seed" else self._bad(random, shape))
        return np.where(self.diverged(random, distance, shape[-1]), np.inf, losses)

    def diverged(self, random: np.random.Generator, distance: np.ndarray, count: int) -> np.ndarray:
        """[..., count] which of so many runs at each distance diverge."""
        if np.isinf(self.cliff):  # draws nothing, so that worlds without a cliff stay what they were
            return np.zeros((*distance.shape, count), dtype=bool)
        return distance[..., None] + random.normal(0, CLIFF_SPREAD, (*distance.shape, count)) > self.cliff

    def _bad(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if not self.bad:
            return np.zeros(shape)
        hit = (random.random(shape) < BAD) * self.bad_size
        if self.bad != "alike":
            hit = hit - BAD * self.bad_size
            hit[:, 0] = 0.0
        return hit

    def evaluation(
        self, random: np.random.Generator, distance: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Summed differences [studies, arms − 1, seeds, N], tokens [studies, N], prompts [studies, N] or None."""
        studies, N = len(distance), self.examples
        own = random.normal(0, self.curve.run, (studies, ARMS, count))
        own = own + self.curve.excess(distance)[..., None] + self._bad(random, (studies, ARMS, count))
        run = own[:, 1:] - own[:, :1]
        drawn = random.integers(0, len(self.rows.tokens), (studies, N))
        groups = None
        if self.prompts:
            groups = np.sort(random.integers(0, self.prompts, (studies, N)), axis=1)
            of_prompt = random.integers(0, len(self.rows.tokens), (studies, self.prompts))
            drawn = np.take_along_axis(of_prompt, groups, axis=1)
        n = self.rows.tokens[drawn]
        x = np.empty((studies, ARMS - 1, count, N))
        for arm in range(ARMS - 1):
            kept = random.integers(0, len(self.rows.rest[arm]), (studies, count))
            sign = random.choice([-1.0, 1.0], (studies, count, 1))
            others = random.integers(0, len(self.rows.tokens), (studies, N)) if self.prompts else drawn
            # Rows of one prompt share their effect; what is left over is that of any row of like length.
            scale = n / self.rows.tokens[others]
            rest = self.rows.rest[arm][kept[:, :, None], others[:, None, :]] * scale[:, None, :]
            x[:, arm] = self.rows.effect[arm][drawn][:, None, :] + sign * rest
        x += run[..., None] * n[:, None, None, :]
        if self.length:
            all_n = self.rows.tokens
            centre = (all_n**2).sum() / all_n.sum()
            x += (self.length * n * (n - centre) / all_n.mean())[:, None, None, :]
        return x, n, groups


def worlds() -> list[World]:
    """All worlds that the protocol is held against."""
    nl2bash, e2e = rows("llama-mini-nl2bash-all1"), rows("llama-mini-e2e-all1")
    steep, steepest = curve("gpt2-mini-nl2bash"), curve("t5-mini-e2e")
    middle, flat = curve("gsm8k-all8"), curve("alpaca-all1")
    listed = [
        *(World(name=f"steep curve, N {n}", curve=steep, rows=nl2bash, examples=n) for n in (50, 500, 2000)),
        World(name="steepest curve, N 500", curve=steepest, rows=e2e, examples=500),
        World(name="middling curve, N 500", curve=middle, rows=nl2bash, examples=500),
        *(World(name=f"flat curve, N {n}", curve=flat, rows=nl2bash, examples=n) for n in (50, 500, 2000)),
    ]
    for name, shape in (("steep", steep), ("flat", flat)):
        bad = {"curve": shape, "rows": nl2bash, "examples": 500, "bad_size": BAD_SIZE * shape.run}
        listed += [
            World(name=f"{name}, one bad run in five, all arms alike", bad="alike", **bad),
            World(name=f"{name}, one bad run in five, of two arms, same mean", bad="one arm", **bad),
            World(name=f"{name}, 400 rows of 273 prompts", curve=shape, rows=e2e, examples=400, prompts=273),
            World(name=f"{name}, 400 rows of 60 prompts", curve=shape, rows=e2e, examples=400, prompts=60),
            *(
                World(
                    name=f"{name}, effects that grow with length, N {n}",
                    curve=shape,
                    rows=nl2bash,
                    examples=n,
                    length=0.2,
                )
                for n in (50, 500)
            ),
        ]
    return [
        *listed,
        World(
            name="steep, bad runs, 400 rows of 150 prompts, effects that grow with length",
            curve=steep,
            rows=nl2bash,
            examples=400,
            prompts=150,
            bad="one arm",
            bad_size=BAD_SIZE * steep.run,
            length=0.1,
        ),
        World(
            name="steep, runs diverge from 1.28 times the best rate on, N 500",
            curve=steep,
            rows=nl2bash,
            examples=500,
            cliff=0.25,
        ),
    ]


def limits() -> list[World]:
    """What a study of this size cannot guard against: see docs/method/statistics.md."""
    steep = curve("gpt2-mini-nl2bash")
    return [
        World(
            name="one bad seed in five, bad at every rate, of two arms, same mean",
            curve=steep,
            rows=rows("llama-mini-nl2bash-all1"),
            examples=500,
            bad="seed",
            bad_size=BAD_SIZE * steep.run,
        )
    ]
