"""Policies by hand: small cases whose answer follows from the formula."""

from __future__ import annotations

import math

import pytest

from loratlas.anatomy.sites import Site
from loratlas.dynamic.moves import Decided, Scored, improved
from loratlas.dynamic.policies.base import ScorePolicy, departure
from loratlas.dynamic.policies.head import Descent, Energy, Weighted
from loratlas.dynamic.policies.known_policies import POLICIES, policy_named
from loratlas.dynamic.policies.published import (
    AdaLoraRule,
    ElaLoraRule,
    FlexLoraRule,
    IguLoraRule,
    entropy,
)
from loratlas.dynamic.run_evidence import Evidence, Measured, kappa, pooled, standardised
from loratlas.dynamic.within_budget import within_budget
from loratlas.errors import SettingsError


def site(name, layer=0, role="attn.q", shape=(8, 8)):
    return Site(
        path=f"{layer}.{name}.weight",
        module=f"{layer}.{name}",
        layer=layer,
        scope="decoder",
        role=role,
        shape=shape,
        kind="linear",
    )


ROLES = ("attn.q", "attn.v", "ffn.up", "ffn.down")
SITES = tuple(site(role[-1] + role[0], layer, role) for layer in range(4) for role in ROLES)
PATHS = [s.path for s in SITES]


def both(values, noise=None):
    """A statistic whose halves agree, or do not."""
    first = dict(zip(PATHS, values, strict=True))
    second = first if noise is None else dict(zip(PATHS, noise, strict=True))
    whole = {path: (first[path] + second[path]) / 2 for path in PATHS}
    return Measured(whole=whole, first=first, second=second)


def evidence(ranks=2, **given):
    return Evidence(step=10, sites=SITES, ranks=dict.fromkeys(PATHS, ranks), **given)


@pytest.mark.parametrize("policy", [Energy(), Descent(), Weighted()])
def test_halves_that_disagree_move_nothing(policy):
    forwards = [1.0 * 2**i for i in range(16)]
    noise = both(forwards, forwards[::-1])
    known = evidence(measured={"energy": noise, "descent": noise})
    decided = policy.decide(known, allowed=known.used, most=16)
    assert decided.ranks == known.ranks


def test_scores_count_by_how_far_halves_agree():
    """The same departures move ranks where halves are said to agree, and none where they are not."""

    class Given(ScorePolicy):
        name = "given"

        def __init__(self, agreement):
            self.agreement = agreement

        def departures(self, evidence):
            return both([float(i) for i in range(16)]), self.agreement

    known = evidence()
    assert Given(1.0).decide(known, allowed=known.used, most=16).ranks != known.ranks
    assert Given(0.0).decide(known, allowed=known.used, most=16).ranks == known.ranks


@pytest.mark.parametrize("policy", [Energy(), Descent(), Weighted()])
def test_halves_that_agree_move_ranks_to_where_there_is_more(policy):
    values = both([1.0 * 2**i for i in range(16)])
    known = evidence(measured={"energy": values, "descent": values})
    decided = policy.decide(known, allowed=known.used, most=16)
    assert decided.ranks[PATHS[-1]] > 2 > decided.ranks[PATHS[0]]
    used = sum(known.prices[path] * rank for path, rank in decided.ranks.items())
    assert used <= known.used
    changed = {path for path in PATHS if decided.ranks[path] != 2}
    assert set(decided.reasons) == set(decided.gains) == changed
    few = policy.decide(known, allowed=known.used, most=2)
    assert sum(few.ranks[path] != 2 for path in PATHS) == 2


def test_a_statistic_counts_by_how_far_its_halves_agree():
    """Energies repeat, descents do not: the weighted mean follows energies alone."""
    up = both([1.0 * 2**i for i in range(16)])
    noise = both([1.0 * 2**i for i in range(16)][::-1], [1.0 * 2**i for i in range(16)])
    known = evidence(measured={"energy": up, "descent": noise})
    assert (
        Weighted().decide(known, allowed=known.used, most=16).ranks
        == Weighted().decide(evidence(measured={"energy": up}), allowed=known.used, most=16).ranks
    )
    assert kappa(0.6) == pytest.approx(1.5)


def test_weights_of_two_statistics_by_hand():
    """x = σ (κ_E z_E + κ_D z_D)/(κ_E + κ_D), with κ and σ worked out."""
    known = evidence(measured={"energy": both([math.exp(i) for i in range(16)])})
    result = Weighted().departures(known)
    assert result is not None
    combined, tau = result
    z = standardised({path: float(i) for i, path in enumerate(PATHS)})
    assert tau == pytest.approx(1)
    assert combined.whole == pytest.approx(z)  # σ is 4.6, and 1 at most


def test_departures_are_measured_from_what_parameters_would_give():
    known = evidence(ranks=4)
    price = SITES[0].lora_parameters(1)
    assert departure({PATHS[0]: price * 2.0, PATHS[1]: price * 20.0}, known) == pytest.approx(
        {PATHS[0]: 0.0, PATHS[1]: math.log(10)}
    )
    lost = departure({PATHS[0]: -1.0, PATHS[1]: price * 2.0}, known)
    assert lost[PATHS[0]] == pytest.approx(math.log(1 / 20))


def test_a_site_is_drawn_towards_its_role_and_depth():
    """A cross of two roles and two layers: additive values stay as they are, an interaction shrinks by ρ."""
    corner = tuple(site(r, layer, f"attn.{r}") for layer in (0, 1) for r in ("q", "v"))
    additive = {corner[0].path: 0.0, corner[1].path: 1.0, corner[2].path: 2.0, corner[3].path: 3.0}
    assert pooled(additive, corner, 0.0) == pytest.approx(additive)
    crossed = {corner[0].path: 1.0, corner[1].path: -1.0, corner[2].path: -1.0, corner[3].path: 1.0}
    assert pooled(crossed, corner, 0.25) == pytest.approx({p: v / 4 for p, v in crossed.items()})


def test_an_exchange_has_to_gain_more_than_its_noise():
    a, b = site("a"), site("b")

    def scored(noise):
        whole = {a.path: 4.0, b.path: 1.0}
        return Scored(
            whole=whole,
            first={a.path: 4.0 + noise, b.path: 1.0},
            second={a.path: 4.0 - noise, b.path: 1.0},
        )

    ranks = {a.path: 1, b.path: 1}
    # gain = 4 (√2 − 1) − 1 = 0.657; its noise 0.414 for each unit of the score's
    for noise, moved in ((1.0, True), (1.5, True), (1.7, False), (3.0, False)):
        result = improved((a, b), ranks, scored(noise), allowed=32, most=9, ceiling=8)
        assert (result.ranks == {a.path: 2, b.path: 0}) is moved


def test_less_is_allowed_than_there_is():
    a, b = site("a"), site("b")
    alike = {a.path: 1.0, b.path: 3.0}
    result = improved(
        (a, b),
        {a.path: 2, b.path: 2},
        Scored(whole=alike, first=alike, second=alike),
        allowed=32,
        most=0,
        ceiling=8,
    )
    assert result.ranks == {a.path: 0, b.path: 2}


TWO = (site("a"), site("b"))
A, B = (s.path for s in TWO)


def two(**given):
    return Evidence(step=5, sites=TWO, ranks={A: 2, B: 2}, **given)


@pytest.mark.parametrize(("rule", "name"), [(AdaLoraRule(), "sensitivity"), (IguLoraRule(), "certainty")])
def test_the_least_important_directions_go(rule, name):
    """Four directions of 16 parameters, 48 allowed: the one of score 1 goes."""
    known = two(directions={name: {A: [5.0, 1.0], B: [2.0, 3.0]}})
    assert rule.decide(known, allowed=48, most=0).ranks == {A: 1, B: 2}
    assert rule.decide(known, allowed=32, most=0).ranks == {A: 1, B: 1}
    assert rule.decide(known, allowed=64, most=0).ranks == {A: 2, B: 2}


def test_elalora_exchanges_the_weakest_directions():
    """The pool is the weakest direction of either site, 4.0 and 0.1: four of two go and come, so that nothing is left
    changed; of many sites the lowest four lose and the highest four gain."""
    known = two(directions={"sensitivity": {A: [5.0, 4.0], B: [0.1, 3.0]}})
    assert ElaLoraRule().decide(known, allowed=64, most=0).ranks == {A: 2, B: 2}
    many = tuple(site(f"s{n}") for n in range(10))
    paths = [s.path for s in many]
    scores = {path: [100.0, float(n)] for n, path in enumerate(paths)}
    known = Evidence(step=5, sites=many, ranks=dict.fromkeys(paths, 2), directions={"sensitivity": scores})
    decided = ElaLoraRule().decide(known, allowed=16 * 20, most=0)
    assert [decided.ranks[path] for path in paths] == [1, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    less = ElaLoraRule().decide(known, allowed=16 * 18, most=0)  # two ranks fewer are allowed
    assert [less.ranks[path] for path in paths] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_elalora_takes_two_of_a_site_and_leaves_its_last():
    many = tuple(site(f"s{n}") for n in range(3))
    a, b, c = (s.path for s in many)
    scores = {a: [0.1, 0.2, 0.3], b: [5.0, 6.0, 7.0], c: [0.01]}
    known = Evidence(step=5, sites=many, ranks={a: 3, b: 3, c: 1}, directions={"sensitivity": scores})
    # the pool: a's 0.1 and 0.2, b's 5 and 6, nothing of c; all four go and all four come back
    assert ElaLoraRule().decide(known, allowed=16 * 7, most=0).ranks == {a: 3, b: 3, c: 1}
    assert ElaLoraRule().decide(known, allowed=16 * 5, most=0).ranks == {a: 1, b: 3, c: 1}


def test_flexlora_goes_from_narrow_to_wide_spectra():
    assert entropy([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert entropy([1.0, 1.0, 0.0, 0.0]) == pytest.approx(0.5)  # ln 2 / ln 4
    many = tuple(site(f"s{n}") for n in range(10))
    paths = [s.path for s in many]
    spectra = {path: [1.0, 0.1 * n] for n, path in enumerate(paths)}
    ranks = dict.fromkeys(paths, 2) | {paths[0]: 1}
    spectra[paths[0]] = [1.0]
    known = Evidence(step=5, sites=many, ranks=ranks, spectra=spectra)
    decided = FlexLoraRule().decide(known, allowed=16 * 19, most=0)
    assert [decided.ranks[path] for path in paths] == [1, 1, 1, 1, 1, 2, 3, 3, 3, 3]
    alike = two(spectra={A: [1.0, 0.0], B: [2.0, 0.0]})
    assert FlexLoraRule().decide(alike, allowed=64, most=0).ranks == {A: 2, B: 2}


def test_the_budget_takes_the_directions_that_did_least_for_their_parameters():
    """σ²/c: 16, 1 and 25, 4 of 16 parameters each; a third direction of a has not begun yet and goes first."""
    known = two(spectra={A: [4.0, 1.0], B: [5.0, 2.0]})
    wanted = Decided(ranks={A: 3, B: 2}, reasons={A: "more"}, gains={A: 0.5})
    assert within_budget(wanted, known, 80) is wanted
    expected = {64: {A: 2, B: 2}, 48: {A: 1, B: 2}, 47: {A: 1, B: 1}, 32: {A: 1, B: 1}, 31: {A: 0, B: 1}}
    for allowed, ranks in expected.items():
        kept = within_budget(wanted, known, allowed)
        assert kept.ranks == ranks
        changed = {path for path in ranks if ranks[path] != 2}
        assert kept.reasons == dict.fromkeys(changed, "the budget")
        assert kept.gains == {}
    assert within_budget(wanted, known, 3).ranks == {A: 1, B: 0}  # PEFT needs one


def test_no_such_policy():
    with pytest.raises(SettingsError) as caught:
        policy_named("energie")
    assert caught.value.instead == " or ".join(POLICIES)
