"""The chosen rate: the vertex of a parabola, robust against runs that came apart, with what its error is worth."""

from __future__ import annotations

import numpy as np
import pytest

from loratlas.study.execution.rate_choice import choose, run_variance

H = np.log(1.6) / 2


def losses(random, optimum, *, curvature=0.9, noise=0.007, seeds=3, bad=0.0):
    """[arms, 3, seeds] around optima (of the logarithm, from the middle rate)."""
    x = H * np.array([-1.0, 0.0, 1.0])
    clean = 2 + 0.5 * curvature * (x[None, :] - np.asarray(optimum)[:, None]) ** 2
    runs = clean[..., None] + random.normal(0, noise, (*clean.shape, seeds))
    seed = random.normal(0, 0.02, seeds)
    return runs + seed + bad * (random.random(runs.shape) < 0.2)


def test_the_vertex_of_exact_parabolas():
    y = losses(np.random.default_rng(0), [-0.2, 0.0, 0.11], noise=0.0)
    chosen = choose(y, H)
    assert chosen.shift == pytest.approx([-0.2, 0.0, 0.11])
    assert float(chosen.curvature) == pytest.approx(0.9)
    assert chosen.share == pytest.approx(np.zeros(3), abs=1e-15)


def test_what_all_rates_of_a_seed_share_changes_nothing():
    y = losses(np.random.default_rng(1), [0.1, -0.1])
    shifted = y + np.array([0.3, -0.2, 1.0])
    assert choose(shifted, H).shift == pytest.approx(choose(y, H).shift)


def test_never_beyond_the_neighbours():
    assert choose(losses(np.random.default_rng(2), [2.0, -2.0]), H).shift == pytest.approx([H, -H])


def test_the_excess_is_small_where_the_best_tried_rate_is_not():
    random = np.random.default_rng(3)
    optima = random.uniform(-H / 2, H / 2, (400, 3))
    y = np.stack([losses(random, row) for row in optima])
    chosen = choose(y, H)
    excess = 0.5 * 0.9 * (chosen.shift - optima) ** 2
    grid = 0.5 * 0.9 * optima**2
    assert float(excess.mean()) < 0.25 * float(grid.mean())
    # The share is what it says: the mean square of the excess, to a factor of its own noise.
    assert 0.3 < float(chosen.share.mean()) / float((excess**2).mean()) < 3


def test_one_run_that_came_apart_hardly_moves_the_rate():
    y = losses(np.random.default_rng(4), [0.05, 0.0, -0.05], noise=0.002)
    spoiled = y.copy()
    spoiled[0, 2, 1] += 1.0
    assert abs(choose(spoiled, H).shift[0] - choose(y, H).shift[0]) < 0.05  # a mean would move by all of H
    assert choose(spoiled, H).share[0] > choose(y, H).share[0]  # but it is not sure any more


def test_a_curve_without_a_curvature_is_not_followed_far():
    random = np.random.default_rng(5)
    y = losses(random, [0.0, 0.0], curvature=0.0, noise=0.002)
    chosen = choose(y, H)
    assert float(chosen.curvature) > 0
    assert float(np.sqrt(chosen.share.max())) < 0.002


def test_a_diverged_neighbour_leaves_its_arm_where_it_is():
    y = losses(np.random.default_rng(6), [0.1, 0.1])
    y[0, 2, 0] = np.inf
    chosen = choose(y, H)
    assert chosen.shift[0] == 0.0
    assert chosen.shift[1] == pytest.approx(choose(y[1:], H).shift[0])


def test_batches_of_studies_equal_single_ones():
    random = np.random.default_rng(7)
    y = np.stack([losses(random, [0.1, -0.05]) for _ in range(4)])
    together = choose(y, H)
    for index, one in enumerate(y):
        alone = choose(one, H)
        assert together.shift[index] == pytest.approx(alone.shift)
        assert together.share[index] == pytest.approx(alone.share)


def test_run_variance_is_that_of_differences():
    random = np.random.default_rng(8)
    spread = [run_variance(*losses(random, [0.0, 0.0], noise=0.01)) for _ in range(400)]
    assert float(np.mean(spread)) == pytest.approx(2 * 0.01**2, rel=0.1)  # what seeds share cancels


def test_one_tuning_seed_has_no_share_but_a_vertex():
    chosen = choose(losses(np.random.default_rng(9), [0.1, -0.05], seeds=1, noise=0.0), H)
    assert chosen.shift == pytest.approx([0.1, -0.05])
    assert chosen.share == pytest.approx([(0.5 * 0.9 * H**2) ** 2 / 80] * 2)
