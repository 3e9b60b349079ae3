"""What is dropped in front of adapters: as often as asked, independently, the same for the same random state."""

from __future__ import annotations

import pytest
import torch

from loratlas.adapters.layers.sparse_dropout import MOST, draw, drop_, dropped

N = 400_000


def kept(p, shape=(N // 40, 40)):
    """1.0 where a number stays."""
    return dropped(torch.ones(shape), draw(torch.ones(shape), p))


@pytest.mark.parametrize("p", [0.001, 0.05, 0.2, 0.5])
def test_numbers_are_dropped_independently_with_the_probability_asked_for(p):
    """Five standard errors; gaps are geometric, and neighbours and columns do not know of each other."""
    torch.manual_seed(0)
    out = 1 - kept(p)
    error = (p * (1 - p) / N) ** 0.5
    assert float(out.mean()) == pytest.approx(p, abs=5 * error)
    flat = out.flatten()
    for distance in (1, 2, 40):
        both = float((flat[:-distance] * flat[distance:]).mean())
        assert both == pytest.approx(p * p, abs=5 * p / N**0.5)
    assert float(out.mean(0).std()) == pytest.approx(error * 40**0.5, rel=0.6)
    assert float(out[0].mean()) < 1
    ends = torch.stack([1 - kept(p, (3,)) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(ends, torch.full((3,), p), atol=5 * (p / 4000) ** 0.5, rtol=0)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_the_random_state_decides(p):
    torch.manual_seed(3)
    first, second = kept(p), kept(p)
    torch.manual_seed(3)
    assert torch.equal(kept(p), first)
    assert not torch.equal(first, second)


def test_too_few_are_drawn_again(monkeypatch):
    """A draw that stops short is continued from where it stopped."""
    ones = torch.zeros(1)
    monkeypatch.setattr(
        torch, "rand", lambda n: ones.new_zeros(min(n, 7))
    )  # nothing stays between the dropped
    assert draw(torch.ones(5, 5), 0.1).tolist() == list(range(25))


def test_places_and_masks_say_the_same():
    torch.manual_seed(0)
    x = torch.randn(6, 10)
    places = draw(x, MOST)
    assert places.dtype == torch.int32
    mask = torch.ones(60, dtype=torch.bool).index_fill(0, places.long(), value=False).view(6, 10)
    assert torch.equal(dropped(x, places), dropped(x, mask))
    assert torch.equal(dropped(x.t().contiguous().t(), places), x * mask)
    assert dropped(x, None) is x
    before = x.clone()
    assert drop_(x, places) is x
    assert torch.equal(x, before * mask)
    assert draw(x, MOST + 0.01).dtype == torch.bool
