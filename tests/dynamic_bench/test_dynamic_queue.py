"""Which run comes next, from records alone."""

from __future__ import annotations

import numpy as np
from benchmarks.dynamic.queue import FIRST_FRESH, Job, Protocol, hopeless, next_job, tuned, wanted_rate
from benchmarks.dynamic.records import Record

TOKENS = np.full(40, 5.0)
NOISE = np.random.default_rng(0).normal(size=40)


def record(arm: str, rate: float, loss: float, *, seed: int = 1, length: int = 100) -> Record:
    return Record(
        arm=arm,
        rate=rate,
        seed=seed,
        placement=f"{arm}:1",
        trainable=10,
        lengths={length: TOKENS * (loss + 0.01 * NOISE)} if np.isfinite(loss) else {},
    )


def protocol(**more: object) -> Protocol:
    return Protocol(
        **{
            "arms": ["all", "half"],
            "rates": [0.005, 0.008],
            "lengths": [100],
            "reference_lengths": [100, 200],
            "tuning_lengths": [100],
            "fresh_seeds": 2,
            **more,
        }  # pyright: ignore[reportArgumentType]
    )


TUNED = [record("all", rate, loss) for rate, loss in ((0.005, 2.0), (0.008, 1.9), (0.0128, 1.95))]
HALF = [record("half", rate, loss) for rate, loss in ((0.005, 2.0), (0.008, 1.91), (0.0128, 1.95))]


def test_the_grid_grows_until_the_best_rate_has_worse_neighbours():
    assert wanted_rate({}, [0.005, 0.008]) == 0.005
    assert wanted_rate({0.005: 1.9, 0.008: 2.0}, [0.005, 0.008]) == 0.00313
    assert wanted_rate({0.005: 2.0, 0.008: 1.9}, [0.005, 0.008]) == 0.0128
    assert wanted_rate({0.005: 2.0, 0.008: 1.9, 0.0128: 1.95}, [0.005, 0.008]) is None


def test_a_rate_beside_one_that_diverged_is_no_optimum_yet():
    curve = {0.005: 2.0, 0.008: 1.9, 0.0128: np.inf}
    assert wanted_rate(curve, [0.005, 0.008]) == 0.0101
    assert wanted_rate({**curve, 0.0101: 1.95}, [0.005, 0.008]) is None


def test_rates_that_differ_by_rounding_alone_are_one():
    assert wanted_rate({0.00312: 2.0, 0.00499: 1.9, 0.008: 2.0}, [0.00313, 0.005, 0.008]) is None


def test_tuning_comes_first_then_fresh_seeds_with_all_arms():
    job = next_job(protocol(), TUNED[:2], TOKENS)
    assert job == Job(arm="all", rate=0.0128, seed=1, lengths=(100,))
    # The other arm begins where the reference was best.
    job = next_job(protocol(), TUNED, TOKENS)
    assert job == Job(arm="half", rate=0.008, seed=1, lengths=(100,))
    job = next_job(protocol(), TUNED + HALF, TOKENS)
    assert job == Job(arm="all", rate=0.008, seed=FIRST_FRESH, lengths=(100, 200))
    job = next_job(protocol(), [*TUNED, *HALF, record("all", 0.008, 1.9, seed=FIRST_FRESH)], TOKENS)
    assert job == Job(arm="half", rate=0.008, seed=FIRST_FRESH, lengths=(100,))


def test_nothing_is_left_when_every_arm_has_its_seeds():
    fresh = [record(arm, 0.008, 1.9, seed=FIRST_FRESH + seed) for arm in ("all", "half") for seed in range(2)]
    assert next_job(protocol(), TUNED + HALF + fresh, TOKENS) is None


def test_a_case_has_seeds_of_its_own():
    job = next_job(protocol(first_fresh=900), TUNED + HALF, TOKENS)
    assert job is not None
    assert job.seed == 900


def test_an_arm_that_loses_clearly_is_spared_the_fresh_seeds_unless_all_are_judged():
    far = [record("half", rate, 2.5) for rate in (0.005, 0.008, 0.0128)]
    far[1] = record("half", 0.008, 2.4)
    assert hopeless(TUNED + far, "half", 100, TOKENS, 1)
    assert not hopeless(TUNED + HALF, "half", 100, TOKENS, 1)
    done = [record("all", 0.008, 1.9, seed=FIRST_FRESH + seed) for seed in range(2)]
    assert next_job(protocol(), TUNED + far + done, TOKENS) is None
    job = next_job(protocol(drop_hopeless=False), TUNED + far + done, TOKENS)
    assert job is not None
    assert job.arm == "half"


def test_a_diverged_tuning_run_counts_as_infinite_and_fresh_ones_not_at_all():
    records = [*TUNED, record("all", 0.02, np.inf), record("all", 0.02, 1.0, seed=FIRST_FRESH)]
    assert tuned(records, "all", 100, TOKENS, 1)[0.02] == np.inf
