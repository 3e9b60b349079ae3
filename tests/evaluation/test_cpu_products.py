"""Products of bfloat16 matrices in float32: what the emulation gives, faster."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model
from tests.training.small import adapted, encoded

from loratlas.evaluation import cpu_products as arithmetic
from loratlas.evaluation.cpu_products import Direct, Widened, fast_products
from loratlas.evaluation.score import score

F = torch.nn.functional


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b, c: F.linear(a, b, c),
        lambda a, b, c: a @ b.t(),
        lambda a, b, c: torch.addmm(c, a, b.t()),
        lambda a, b, c: torch.bmm(a[None], b.t()[None])[0],
        lambda a, b, c: c.repeat(len(a), 1).addmm_(a, b.t(), alpha=0.5),
    ],
)
def test_products_are_those_of_float64_rounded_once(product):
    a, b, c = (torch.randn(*shape).bfloat16() for shape in ((30, 70), (20, 70), (20,)))
    wanted = product(a.double(), b.double(), c.double())
    with Widened():
        result = product(a, b, c)
    assert result.dtype == torch.bfloat16
    assert bool(((result.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-4).all())


def test_other_numbers_are_left_alone():
    a = torch.randn(5, 5)
    with Widened():
        assert (a @ a).dtype == torch.float32
        assert torch.equal(a @ a, a @ a)
        assert (a.half() @ a.half()).dtype == torch.float16


def test_used_only_where_the_instructions_are_missing(monkeypatch):
    seen = []
    right = Widened.__enter__
    monkeypatch.setattr(Widened, "__enter__", lambda self: (seen.append(1), right(self))[1])
    for native, dtype, times in (
        ("bfloat16", "bfloat16", 0),
        ("float32", "float32", 0),
        ("float32", "bfloat16", 1),
    ):
        seen.clear()
        monkeypatch.setattr(arithmetic, "native_dtype", lambda native=native: native)
        with fast_products(tiny_model("llama").to(getattr(torch, dtype))):
            pass
        assert len(seen) == times


def test_losses_agree_with_the_emulated_ones(monkeypatch):
    model, data = adapted(dtype="bfloat16"), encoded(12)
    listed = []
    for native in ("bfloat16", "float32"):
        monkeypatch.setattr(arithmetic, "native_dtype", lambda native=native: native)
        listed.append(score(model, data, packed=True))
    np.testing.assert_allclose(listed[0].nll / listed[0].n, listed[1].nll / listed[1].n, rtol=2e-2)
    assert listed[0].token_mean_nll == pytest.approx(listed[1].token_mean_nll, rel=2e-3)


DIRECT = [
    lambda x, w, b: F.linear(x, w),
    lambda x, w, b: F.linear(x[None], w, b)[0],
    lambda x, w, b: x @ w.t(),
    lambda x, w, b: torch.addmm(b, x, w.t()),
]


@pytest.mark.parametrize("product", DIRECT)
def test_direct_products_are_float32_products(product, monkeypatch):
    called = []
    right = arithmetic._linear
    monkeypatch.setattr(arithmetic, "_linear", lambda *a: (called.append(1), right(*a))[1])
    x, w, b = torch.randn(70, 50), torch.randn(40, 50), torch.randn(40)
    with torch.no_grad(), Direct():
        result = product(x, w, b)
    assert called
    wanted = product(x.double(), w.double(), b.double())
    assert float((result.double() - wanted).abs().max()) < 1e-4


def test_what_is_not_taken_directly(monkeypatch):
    monkeypatch.setattr(arithmetic, "_linear", lambda *a: pytest.fail("taken directly"))
    x, w = torch.randn(70, 50), torch.randn(40, 50)
    with Direct():
        (x @ w.t().requires_grad_()).sum().backward()
        with torch.no_grad():
            _ = (
                x[:3] @ w.t(),
                x.bfloat16() @ w.t().bfloat16(),
                x @ torch.randn(50, 40),
                x.double() @ w.t().double(),
            )


@pytest.mark.parametrize("low_rank", [False, True])
def test_losses_agree_however_products_are_taken(low_rank, monkeypatch):
    model, data = (adapted() if low_rank else tiny_model("llama")), encoded(12)
    seen, found = [], []
    right = arithmetic._linear
    monkeypatch.setattr(arithmetic, "_linear", lambda *a: (seen.append(1), right(*a))[1])
    for slow in (True, False):
        monkeypatch.setattr(arithmetic, "mkl_is_slow", lambda slow=slow: slow)
        found.append(score(model, data, packed=True))
        if slow:
            assert len(seen) >= 14, "every matrix of two layers"
    np.testing.assert_allclose(found[0].nll / found[0].n, found[1].nll / found[1].n, rtol=1e-6)
