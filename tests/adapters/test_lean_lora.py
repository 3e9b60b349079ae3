"""The lean layer computes PEFT's numbers: outputs and every gradient, and leaves alone what it does not cover."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora.layer import Linear
from tests.training.small import adapted

import loratlas
from loratlas.adapters.layers import lean_lora as kernels
from loratlas.adapters.layers.gelu import fuse
from loratlas.adapters.layers.lean_lora import LeanLinear, lean


def both(model, ids, *, change=lambda model: None):
    """(logits, gradients) by PEFT and by the lean layers, with the same random numbers."""
    listed = []
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
        listed.append(
            (logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
    return listed


def given(x, p):
    """A mask that follows from its input, so that PEFT's layers and ours draw the same."""
    return (x.double().abs() * 9973) % 1 >= p


def given_places(x, p):
    """The same as dropped places."""
    return (~given(x, p)).flatten().nonzero()[:, 0].int()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("dropout", "drawn"), [(0.0, given), (0.3, given), (0.3, given_places)])
def test_float64(kind, dropout, drawn, monkeypatch):
    monkeypatch.setattr(kernels, "draw", drawn)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x * given(x, self.p) / (1 - self.p))
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


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradcheck(dropout, monkeypatch):
    """Two sites of unlike widths and ranks that read one input."""
    keep = torch.rand(5, 4) >= dropout
    monkeypatch.setattr(kernels, "draw", lambda x, p: keep)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, W, V, bias = draw(5, 4), draw(4, 3).detach(), draw(4, 6).detach(), draw(3).detach()

    def run(x, A, B, C, D):
        first = kernels._Site(W=W, bias=bias, A=A, B=B, scale=0.7, dropout=dropout)
        second = kernels._Site(W=V, bias=None, A=C, B=D, scale=1.3, dropout=dropout)
        return kernels._run(x, [first, second])

    assert torch.autograd.gradcheck(run, (x, draw(2, 4), draw(3, 2), draw(1, 4), draw(6, 1)))


def test_sites_of_one_input_are_one_product(monkeypatch):
    sizes = []
    run = kernels._run
    monkeypatch.setattr(kernels, "_run", lambda x, sites: (sizes.append(len(sites)), run(x, sites))[1])
    model = adapted("llama")
    with lean(model):
        model(torch.randint(3, 96, (2, 9)))
    assert sizes == [3, 1, 2, 1] * model.config.num_hidden_layers


def test_layers_that_read_other_tensors_than_told_compute_alone():
    layers = [m for m in adapted().modules() if type(m) is Linear][:2]
    x, other = torch.randn(1, 3, layers[0].in_features), torch.randn(1, 3, layers[0].in_features)
    wanted = [layers[0](x), layers[1](other)]
    with lean(torch.nn.ModuleList(layers)):
        layers[0]._group = layers[1]._group = kernels._Group(layers)
        for _ in range(2):
            listed = [layers[0](x), layers[1](other)]
            torch.testing.assert_close(listed, wanted)
        x.add_(1.0)  # the same tensor, with other numbers
        changed = layers[0](x)
    torch.testing.assert_close(changed, layers[0](x))


def test_one_mask_serves_the_sites_of_an_input_and_follows_the_random_state():
    model = adapted("llama", lora_dropout=0.5).train()
    ids = torch.randint(3, 96, (2, 9))
    with lean(model):
        torch.manual_seed(1)
        first = model(ids).logits
        second = model(ids).logits
        torch.manual_seed(1)
        again = model(ids).logits
    assert torch.equal(first, again)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.3])
def test_recomputation_gives_the_same_gradients(dropout):
    """Gradient checkpointing runs the layers again in the backward pass, with the same masks."""
    model = adapted("llama", dtype="float64", lora_dropout=dropout).double().train()
    ids = torch.randint(3, 96, (2, 17))
    (_, plain_gradients), _ = both(model, ids)
    by_name = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model.zero_grad()
        with lean(model):
            model(ids).logits.sin().sum().backward()
        by_name[checkpointing] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert by_name[True].keys() == plain_gradients.keys()
    for name, value in by_name[False].items():
        torch.testing.assert_close(by_name[True][name], value, rtol=1e-10, atol=1e-12)


def test_dropout_compiles_without_a_break():
    model = adapted("llama", lora_dropout=0.1).train()
    ids = torch.randint(3, 96, (2, 17))
    with lean(model):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        first, second = compiled(ids).logits, compiled(ids).logits
        second.sin().sum().backward()
    assert not torch.allclose(first, second, atol=1e-4)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_compiled_model_gives_the_same_gradients():
    model = adapted("llama", dtype="float64").double().train()
    ids = torch.randint(3, 96, (2, 17))
    (_, gradients), _ = both(model, ids)
    model.zero_grad()
    with lean(model):
        torch.compile(model, backend="aot_eager", fullgraph=True)(ids).logits.sin().sum().backward()
    for name, value in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, value, rtol=1e-9, atol=1e-11)


def test_float32_factors_over_a_bfloat16_base_lift_no_activation():
    model = adapted(dtype="bfloat16")
    layer = next(m for m in model.modules() if type(m) is Linear)
    layer.float()
    layer.base_layer.bfloat16()
    x = torch.randn(1, 7, layer.in_features, requires_grad=True).bfloat16()
    exact = layer.double()(x.double())
    layer.float()
    layer.base_layer.bfloat16()
    with lean(layer):
        result = layer(x)
        result.sum().backward()
    result, exact = result.detach(), exact.detach()
    assert result.dtype == torch.bfloat16
    assert layer.lora_A["default"].weight.grad.dtype == torch.float32
    assert float((result.double() - exact).norm() / exact.norm()) < 0.02


def test_faster_and_back_is_the_model_it_was(tmp_path):
    from peft import PeftModel
    from tests.tiny import tiny_model

    model = adapted("llama").eval()
    ids = torch.randint(3, 96, (1, 9))
    with torch.no_grad():
        wanted = model(ids).logits
        assert loratlas.faster(model) is model
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-5, atol=1e-5)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=1e-5, atol=1e-5)
        with lean(model) as swapped:  # nested: stays as it is
            assert swapped > 0
        assert any(type(m) is LeanLinear for m in model.modules())
        assert loratlas.slower(model) is model
        assert not any(type(m) is LeanLinear or "_group" in vars(m) for m in model.modules())
        assert torch.equal(model(ids).logits, wanted)
        merged = loratlas.faster(model).merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_no_gradient_below_the_lowest_adapted_layer():
    layer = next(m for m in adapted().modules() if type(m) is Linear)
    x = torch.randn(1, 3, layer.in_features)
    with lean(layer):
        layer(x).sum().backward()
    assert x.grad is None
    assert layer.lora_A["default"].weight.grad is not None


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_what_is_not_covered_goes_through_peft_and_is_said_once(options, recwarn):
    model = adapted("gpt2", **options).double()
    # The base's activation is one kernel on both sides, for that rounds otherwise; the adapters are PEFT's own.
    (logits, gradients), (fast_logits, fast) = both(model, torch.randint(3, 96, (2, 9)), change=fuse)
    assert torch.equal(logits, fast_logits)
    assert all(torch.equal(fast[name], value) for name, value in gradients.items())
    with lean(model):
        pass
    said = [str(w.message) for w in recwarn if "PEFT's own forward" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("12 of 12 adapted layers")


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
