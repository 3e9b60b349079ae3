"""Laws of the terms on random tables: they add up, each is its own formula, and their bounds hold."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.errors import DataError, SettingsError
from loratlas.loss_audit import gaps as module
from loratlas.loss_audit.audit import definitions, gaps, identify, nearest, residual
from loratlas.loss_audit.catalogue import catalogue, token_mean
from loratlas.loss_audit.definitions import Definition, LossEvidence, log_value, sums, value, weights
from loratlas.loss_audit.gaps import ORDER, decompose, jensen_term
from loratlas.loss_audit.text_units import Texts
from loratlas.loss_audit.token_table import ELSEWHERE, PARTS, LossTable, align

EXAMPLES = 6


def table(random, *, drop=0.2, scale=3.0):
    """Tokens of six examples, some missing, every example with two answer tokens at least."""
    rows = []
    for example in range(EXAMPLES):
        for position in range(1, int(random.integers(6, 20))):
            if position > 4 and random.random() < drop:
                continue
            # Part and position go together, so that a token is of one part in every table.
            rows.append((example, position, (0, 0, 2, 1, 3, 4)[position % 6] if position > 2 else 0))
    e, p, part = (np.array(c) for c in zip(*rows, strict=True))
    return LossTable(
        example=e,
        position=p,
        part=part.astype(np.int8),
        tokens=np.ones(len(e), dtype=np.int64),
        nll=random.gamma(2.0, scale / 2, len(e)),
        uniform=random.gamma(6.0, 1.0, len(e)),
    )


definition = st.builds(
    lambda table, covers, times, aggregate, smoothing, regulariser, cap, unit: Definition(
        name="d",
        table=table,
        covers=("answer", *covers),
        times=times,
        aggregate=aggregate[0],
        batch_size=aggregate[1],
        smoothing=smoothing,
        regulariser=regulariser,
        cap=cap,
        unit=unit,
    ),
    table=st.sampled_from(["reference", "other"]),
    covers=st.lists(st.sampled_from(PARTS[1:]), unique=True),
    times=st.sampled_from([(), ((0, 2),), ((1, 0), (2, 3)), ((5, 0),)]),
    aggregate=st.sampled_from(
        [
            ("token", None),
            ("example", None),
            ("log_mean_exp", None),
            ("median", None),
            ("batch", 1),
            ("batch", 4),
        ]
    ),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    regulariser=st.sampled_from([0.0, 0.7]),
    cap=st.sampled_from([None, 2.0, 20.0]),
    unit=st.sampled_from(
        ["nats", "bits", "digits", "sum", "bits_per_byte", "bits_per_character", "nats_per_word"]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), definition, definition)
def test_the_terms_between_any_two_definitions_add_up(seed, first, second):
    random = np.random.default_rng(seed)
    texts = Texts.of(["some words " * (k + 2) for k in range(EXAMPLES)])
    evidence = LossEvidence(tables={"reference": table(random), "other": table(random)}, texts=texts)
    gap = decompose(first, second, evidence)
    assert gap.nats == pytest.approx(log_value(second, evidence) - log_value(first, evidence))
    assert abs(gap.residual) <= 1e-6
    assert [ORDER.index(t.kind) for t in gap.terms] == sorted(ORDER.index(t.kind) for t in gap.terms)
    back = decompose(second, first, evidence)
    assert back.nats == pytest.approx(-gap.nats, abs=1e-9)
    assert abs(back.residual) <= 1e-6


@pytest.mark.parametrize("name", ["example_term", "batch_term", "median_term"])
def test_no_term_hides_in_another(name, monkeypatch):
    """Each is its own formula: spoil one, and the residual is what was spoilt."""
    evidence = LossEvidence(tables={"reference": table(np.random.default_rng(0))})
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: right(*a) + 1e-3)
    aggregate = {"example_term": "example", "batch_term": "batch", "median_term": "median"}[name]
    d = Definition(name="d", aggregate=aggregate, batch_size=4 if aggregate == "batch" else None)
    assert abs(decompose(token_mean(), d, evidence).residual) == pytest.approx(1e-3)


def test_coverage_is_the_share_times_the_difference():
    """π_p (L_p − L_a), by hand."""
    random = np.random.default_rng(1)
    built = table(random)
    evidence = LossEvidence(tables={"reference": built})
    answer, prompt = built.covered(("answer", "end")), built.covered(("prompt",))
    share = prompt.sum() / (answer | prompt).sum()
    wanted = share * (built.nll[prompt].mean() - built.nll[answer].mean())
    (term,) = decompose(
        token_mean(), Definition(name="p", covers=("answer", "end", "prompt")), evidence
    ).terms
    assert term.nats == pytest.approx(wanted)
    assert term.kind == "coverage"


def test_condition_is_the_weighted_difference():
    random = np.random.default_rng(2)
    one = table(random)
    other = replace(one, nll=one.nll + random.normal(size=len(one)))
    evidence = LossEvidence(tables={"reference": one, "other": other})
    (term,) = decompose(token_mean(), Definition(name="o", table="other"), evidence).terms
    counted = one.covered(("answer", "end"))
    assert term.nats == pytest.approx((other.nll - one.nll)[counted].mean())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 25), min_size=1, max_size=60))
def test_jensens_gap_lies_between_nothing_and_an_eighth_of_the_squared_range(means):
    """Hoeffding's lemma; both ends are reached within rounding."""
    means = np.array(means)
    gap, estimate = jensen_term(means)
    assert -1e-12 <= gap <= (means.max() - means.min()) ** 2 / 8 + 1e-12
    assert estimate >= 0
    direct = math.log(np.mean(np.exp(means - means.max()))) + means.max() - means.mean()
    assert gap == pytest.approx(direct, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 3, 5, 100]))
def test_weights_give_the_value(seed, size):
    evidence = LossEvidence(tables={"reference": table(np.random.default_rng(seed))})
    for d in (
        token_mean(),
        Definition(name="e", aggregate="example"),
        Definition(name="b", aggregate="batch", batch_size=size),
    ):
        result = sums(d, evidence)
        omega = weights(d, result)
        assert omega.sum() == pytest.approx(1)
        assert (omega * result.nll / result.n).sum() == pytest.approx(value(d, evidence))


def test_the_catalogue_is_named_and_unlike():
    random = np.random.default_rng(3)
    texts = Texts.of(["some words " * (k + 2) for k in range(EXAMPLES)])
    evidence = LossEvidence(
        tables={"reference": table(random, scale=30), "other": table(random)}, texts=texts
    )
    told = catalogue(
        evidence, batch_sizes=(1, 4), regularisers={"r": 0.1}, world_sizes=(4,), smoothing=(0.1, 0.2)
    )
    names = [d.name for d in told]
    assert len(names) == len(set(names))
    assert all(d.formula and d.used_by for d in told)
    assert {"prompt_included", "padding_included", "special_included", "end_excluded", "capped_20", "sampler_4",
            "smoothed_0.2", "r_included", "other", "batch_mean_4", "word_perplexity"} <= set(names)  # fmt: skip
    values = definitions(evidence, among=told)
    assert all(np.isfinite(v) for v in values.values())
    assert residual(evidence, among=told) <= 1e-6
    by = {(g["from"], g["to"]): 0.0 for g in gaps(evidence, among=told)}
    for g in gaps(evidence, among=told):
        by[g["from"], g["to"]] += g["nats"]
    for (first, second), nats in by.items():
        if second in values and first in values and not second.endswith("perplexity"):
            assert values[second] - values[first] == pytest.approx(nats, abs=1e-6), second


def test_identify_prefers_the_nearest_and_refuses_what_is_no_number():
    evidence = LossEvidence(tables={"reference": table(np.random.default_rng(4))})
    number = value(Definition(name="e", aggregate="example"), evidence)
    assert identify(number, evidence)[0].definition.name == "example_mean"
    # Printed with four decimals, a number is known to half a unit of the last one.
    assert identify(round(number, 4), evidence, tolerance=5e-5)[0].definition.name == "example_mean"
    assert next(iter(nearest(number + 1e-3, evidence))) == "example_mean"
    with pytest.raises(DataError, match="nothing that a finite loss gives"):
        identify(math.nan, evidence)


def test_an_infinite_loss_is_named():
    found = table(np.random.default_rng(5))
    row = int(np.flatnonzero(found.covered(("answer",)))[7])
    for bad, word in ((np.inf, "log-probability −inf"), (np.nan, "no number")):
        nll = found.nll.copy()
        nll[row] = bad
        broken = LossEvidence(tables={"reference": replace(found, nll=nll)})
        where = f"token {found.position[row]} of example {found.example[row]} has .*{word}"
        with pytest.raises(DataError, match=where):
            definitions(broken)
        # A definition that leaves the example out has a value, and the rest of the table is untouched by it.
        without = Definition(name="w", times=((int(found.example[row]), 0),))
        assert np.isfinite(value(without, broken))


def test_no_answer_tokens():
    built = table(np.random.default_rng(6))
    silent = replace(built, part=np.where(built.example == 3, 2, 0).astype(np.int8))
    evidence = LossEvidence(tables={"reference": silent})
    assert np.isfinite(value(token_mean(), evidence))
    with pytest.raises(DataError, match="example 3 has no counted token"):
        value(Definition(name="e", aggregate="example"), evidence)
    with pytest.raises(DataError, match=r"no answer tokens in batch 3 \(examples 3 to 3\)"):
        value(Definition(name="b", aggregate="batch", batch_size=1), evidence)
    assert np.isfinite(value(Definition(name="b", aggregate="batch", batch_size=4), evidence))
    with pytest.raises(DataError, match="covers no token"):
        value(Definition(name="x", covers=("padding",)), evidence)


def test_requests_that_make_no_sense():
    evidence = LossEvidence(tables={"reference": table(np.random.default_rng(7))})
    with pytest.raises(DataError, match="no table 'gone'"):
        value(Definition(name="x", table="gone"), evidence)
    with pytest.raises(SettingsError, match="batch_size None"):
        Definition(name="x", aggregate="batch")
    with pytest.raises(SettingsError, match="0"):
        Definition(name="x", aggregate="batch", batch_size=0)
    with pytest.raises(DataError, match="no texts"):
        value(Definition(name="x", unit="bits_per_byte"), evidence)
    bare = evidence.tables["reference"]
    bare = LossTable(
        example=bare.example, position=bare.position, part=bare.part, tokens=bare.tokens, nll=bare.nll
    )
    with pytest.raises(DataError, match="no column 'uniform'"):
        value(Definition(name="x", smoothing=0.1), LossEvidence(tables={"reference": bare}))
    twice = LossTable(example=np.zeros(2, dtype=int), position=np.ones(2, dtype=int), part=np.zeros(2, dtype=np.int8),
                  tokens=np.ones(2, dtype=int), nll=np.ones(2))  # fmt: skip
    with pytest.raises(DataError, match="two rows for one token"):
        decompose(token_mean(), token_mean(), LossEvidence(tables={"reference": twice}))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(3, 6), min_size=1, max_size=12), st.lists(st.integers(3, 6), min_size=1, max_size=12)
)
def test_aligned_positions_are_unlike_and_name_the_same_tokens(mine, theirs):
    mine, theirs = np.array(mine), np.array(theirs)
    n = len(mine)
    whole = LossTable(example=np.zeros(n, dtype=np.int64), position=np.arange(n), part=np.zeros(n, dtype=np.int8),
                  tokens=np.ones(n, dtype=np.int64), nll=np.ones(n))  # fmt: skip
    moved = align(whole, [mine], [theirs]).position
    assert len(set(moved.tolist())) == n
    for own, other in zip(range(n), moved, strict=True):
        if other < ELSEWHERE:
            assert mine[own] == theirs[other]
    if np.array_equal(mine, theirs):
        np.testing.assert_array_equal(moved, np.arange(n))
