"""The lean layer computes PEFT's numbers: outputs and every gradient, and leaves alone what it does not cover."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora.layer import Linear
from tests.training.small import adapted

from loratlas.adapters.kernels import LeanLinear, lean


def both(model, ids, *, change=lambda model: None):
    """(logits, gradients) by PEFT and by the lean layers, with the same random numbers."""
    found = []
    change(model)
    for fast in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        if fast:
            with lean(model) as swapped:
                assert swapped > 0
                logits = model(ids).logits
                logits.sin().sum().backward()
        else:
            logits = model(ids).logits
            logits.sin().sum().backward()
        found.append(
            (logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_float64(kind, dropout):
    model = adapted(kind, dtype="float64", lora_dropout=dropout).double().train()
    (logits, gradients), (fast_logits, fast) = both(model, torch.randint(3, 96, (2, 17)))
    torch.testing.assert_close(fast_logits, logits, rtol=1e-10, atol=1e-12)
    assert fast.keys() == gradients.keys()
    assert len(fast) > 10
    for name, value in gradients.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-10, atol=1e-11)


def test_bfloat16_is_as_near_to_float64_as_peft():
    model = adapted(dtype="bfloat16").bfloat16()
    ids = torch.randint(3, 96, (2, 17))
    (_, peft), (_, fast) = both(model, ids)
    (_, exact), _ = both(model, ids, change=lambda m: m.double())

    def error(found):
        return max(
            float((found[n].double() - g).norm() / g.norm()) for n, g in exact.items() if float(g.norm()) > 0
        )

    assert error(fast) < 1.2 * error(peft) + 1e-3


def test_gradcheck():
    from loratlas.adapters.kernels import _LowRank

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, W, bias = draw(5, 4), draw(4, 3).detach(), draw(3).detach()
    A, B = draw(2, 4), draw(3, 2)
    assert torch.autograd.gradcheck(lambda x, A, B: _LowRank.apply(x, None, W, bias, A, B, 0.7), (x, A, B))
    assert torch.autograd.gradcheck(
        lambda x, dropped, A, B: _LowRank.apply(x, dropped, W, None, A, B, 0.7), (x, draw(5, 4), A, B)
    )


def test_no_gradient_below_the_lowest_adapted_layer():
    layer = next(m for m in adapted().modules() if type(m) is Linear)
    x = torch.randn(1, 3, layer.in_features)
    with lean(layer):
        layer(x).sum().backward()
    assert x.grad is None
    assert layer.lora_A["default"].weight.grad is not None


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_what_is_not_covered_goes_through_peft(options):
    model = adapted("gpt2", **options).double()
    (logits, gradients), (fast_logits, fast) = both(model, torch.randint(3, 96, (2, 9)))
    assert torch.equal(logits, fast_logits)
    assert all(torch.equal(fast[name], value) for name, value in gradients.items())


def test_states_of_a_layer_that_are_peft_s_own():
    model = adapted().eval()
    ids = torch.randint(3, 96, (1, 9))
    with torch.no_grad(), lean(model):
        with model.disable_adapter():
            base = model(ids).logits
        plain = model(ids).logits
        model.merge_adapter()
        merged = model(ids).logits
        model.unmerge_adapter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(ids).logits
    assert not torch.allclose(base, plain, atol=1e-3)
    torch.testing.assert_close(merged, plain, rtol=1e-4, atol=1e-5)
    assert 0 < float((rounded - plain).abs().max()) < 0.1


def test_hooks_of_the_base_are_called():
    model = adapted().eval()
    layer = next(m for m in model.modules() if type(m) is Linear)
    calls = []
    layer.base_layer.register_forward_hook(lambda *_: calls.append(None))
    with torch.no_grad(), lean(model):
        model(torch.randint(3, 96, (1, 9)))
    assert calls


def test_classes_are_put_back_even_after_an_error():
    model = adapted()

    def fail():
        with lean(model):
            assert any(type(m) is LeanLinear for m in model.modules())
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert not any(type(m) is LeanLinear for m in model.modules())
