"""What every signal keeps to: repeatable, unmoved by the order of sites, defined on one site, on zeros, on NaN."""

from __future__ import annotations

import math

import pytest
import torch
from tests.signals.brute import batches, examples, sites_of
from tests.tiny import tiny_model

from loratlas.data.batches.batching import collate
from loratlas.data.examples import Example
from loratlas.errors import DataError, ModelError, SettingsError
from loratlas.evaluation.token_losses import token_losses
from loratlas.signals.alignment import Alignment
from loratlas.signals.base import Signal
from loratlas.signals.gradient import Gradient
from loratlas.signals.measure_signals import Measurement, measure
from loratlas.signals.rank_correlation import tau, tau_of_top
from loratlas.signals.registry import SIGNALS, untrained

KINDS = [SIGNALS[name].load() for name in untrained()]
"""A new signal is one line of the table, and is tested here by itself."""


def read(signal: Signal, *, model=None, sites=None, given=None) -> Measurement:
    model = tiny_model("llama") if model is None else model
    sites = sites_of(model) if sites is None else sites
    return measure(model, sites, batches() if given is None else given, [signal], token_losses)


@pytest.mark.parametrize("kind", KINDS)
class TestContract:
    def test_says_what_it_is(self, kind):
        words = " ".join((kind.__doc__ or "").split())
        for word in ("Unit:", "Cost:", "Memory:", "Source:", "Adam"):
            assert word in words, word
        assert all(column.pays in ("high", "low") and column.unit for column in kind().columns)

    def test_repeatable(self, kind):
        first, again = read(kind(seed=3)), read(kind(seed=3))
        for name, reading in first.readings.items():
            assert reading.values == again.readings[name].values

    def test_unmoved_by_the_order_of_sites(self, kind):
        model = tiny_model("llama")
        sites = sites_of(model)
        first, turned = (read(kind(), model=model, sites=order) for order in (sites, sites[::-1]))
        for name, reading in first.readings.items():
            assert turned.readings[name].values == pytest.approx(dict(reading.values), rel=1e-5)

    def test_defined_on_one_site(self, kind):
        model = tiny_model("llama")
        sites = sites_of(model)
        one, whole = read(kind(), model=model, sites=sites[2:3]), read(kind(), model=model)
        for name, reading in one.readings.items():
            assert list(reading.values) == [sites[2].path]
            value = whole.readings[name].values[sites[2].path]
            assert reading.values[sites[2].path] == pytest.approx(value, rel=0.05)
            assert reading.repeats is None or math.isnan(reading.repeats)

    def test_zeros_are_no_signal(self, kind):
        model = tiny_model("llama")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        for reading in read(kind(), model=model).readings.values():
            assert reading.silent is not None
            assert all(math.isfinite(value) for value in reading.values.values())

    def test_nan_names_the_site(self, kind):
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.layers[1].mlp.gate_proj.weight[3, 2] = float("nan")
        with pytest.raises(ModelError, match=r"first at model\.layers\.1\.mlp\.gate_proj"):
            read(kind(), model=model)


def test_errors_shrink_with_more_rows():
    model = tiny_model("llama")
    few, many = (
        read(Alignment(), model=model, given=batches(n, size=n // 4)).readings["alignment"] for n in (8, 128)
    )
    assert set(few.errors) == set(few.values)
    assert sum(many.errors.values()) < sum(few.errors.values()) / 2


class Told(Signal):
    """Says what a function of its folds says."""

    name, needs, columns = "told", "forward", Alignment.columns

    def __init__(self, says):
        super().__init__()
        self.says = says

    def reset(self, model):
        pass

    def values(self, folds=(0, 1, 2, 3)):
        return {"alignment": {site.path: self.says(index, folds) for index, site in enumerate(self.sites)}}


def by_chance(index: int, folds) -> float:
    random = torch.Generator().manual_seed(100 * index + sum(3**fold for fold in folds))
    return float(torch.rand((), generator=random))


def only_the_top(index: int, folds) -> float:
    """Of 21 sites the last 6 stand the other way round in the other half: weighted τ 0.95, τ 0.86."""
    return float(index if index < 15 or 0 in folds else 35 - index)


@pytest.mark.parametrize(
    ("says", "settled", "passes"),
    [(lambda index, folds: float(index), True, 4), (by_chance, False, 8), (only_the_top, False, 8)],
)
def test_reading_ends_when_the_order_has_settled(says, settled: bool, passes: int):
    model, given = tiny_model("llama"), batches(16, size=2)
    measured = measure(model, sites_of(model), given, [Told(says)], token_losses, watched=["alignment"])
    assert (measured.settled, measured.passes) == (settled, passes)
    assert measure(model, sites_of(model), given, [Told(says)], token_losses).settled is None


def test_an_order_by_chance_is_no_signal():
    reading = read(Told(by_chance)).readings["alignment"]
    assert reading.silent is not None
    assert "does not repeat" in reading.silent


def test_rows_without_a_counted_token_are_refused():
    rows = [Example(input_ids=e.input_ids, labelled=e.labelled & False, row=0) for e in examples(4)]
    with pytest.raises(DataError, match="no counted token"):
        read(Gradient(), given=[collate(rows, packed=True)])


def test_inference_mode_is_refused_where_gradients_are_needed():
    model = tiny_model("llama")
    with torch.inference_mode():
        assert read(Alignment(), model=model).readings["alignment"].silent is None
        with pytest.raises(SettingsError, match="inference mode"):
            read(Gradient(), model=model)


def test_no_grad_around_a_scan_does_not_matter():
    model = tiny_model("llama")
    with torch.no_grad():
        inside = read(Gradient(), model=model).readings["gradient"].values
    assert inside == read(Gradient(), model=model).readings["gradient"].values


def test_tau_knows_ties_and_few_sites():
    assert tau({"a": 1, "b": 2}, {"a": 1, "b": 2}) != tau({"a": 1, "b": 2}, {"a": 1, "b": 2})  # NaN: too few
    assert math.isnan(tau({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3}))
    one = {str(i): float(i) for i in range(20)}
    bottom = {**one, "0": 1.0, "1": 0.0}
    top = {**one, "19": 18.0, "18": 19.0}
    assert tau(one, bottom) == tau(one, top)
    assert tau_of_top(one, bottom) > tau_of_top(one, top)
