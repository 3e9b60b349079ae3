"""Losses of single tokens against torch's own, whatever the number of rows at a time, and through whole models."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import TYPES, tiny_model

from loratlas.data.batches.batching import collate
from loratlas.data.batches.packing import forward
from loratlas.data.examples import Example
from loratlas.evaluation import cross_entropy
from loratlas.evaluation import token_losses as losses
from loratlas.evaluation.cross_entropy import ROWS, Shape, nll, nll_of_states
from loratlas.evaluation.token_losses import token_losses

SHAPES = [Shape(), Shape(scale=0.25), Shape(softcap=3.0), Shape(scale=2.0, softcap=3.0)]


@pytest.fixture
def few_rows(monkeypatch):
    """As few rows at a time as there can be, so that small inputs take several turns."""
    monkeypatch.setattr(cross_entropy, "NUMBERS", {"cpu": 1})


@pytest.mark.parametrize("n", [1, ROWS, 2 * ROWS + 7])
def test_losses_and_gradient_of_logits_equal_torch(n, few_rows):
    logits = (torch.randn(n, 50, dtype=torch.float64) * 5).requires_grad_()
    targets, weights = torch.randint(0, 50, (n,)), torch.randn(n, dtype=torch.float64)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), logits)
    loss = nll(logits, targets)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad((loss * weights).sum(), logits)[0], gradient, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_losses_and_gradient_of_states_equal_torch(shape, biased, few_rows):
    n, d, vocabulary = 2 * ROWS + 7, 12, 50
    states = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, d, dtype=torch.float64)
    bias = torch.randn(vocabulary, dtype=torch.float64) if biased else None
    targets, weights = torch.randint(0, vocabulary, (n,)), torch.randn(n, dtype=torch.float64)
    logits = torch.nn.functional.linear(states, weight, bias) * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), states)
    result = nll_of_states(states, weight, bias, targets, shape)
    torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad((result * weights).sum(), states)[0], gradient, rtol=1e-10, atol=1e-12
    )
    assert torch.autograd.gradcheck(
        lambda x: nll_of_states(x, weight, bias, targets[:3], shape), states[:3].detach().requires_grad_()
    )


def test_loss_of_bfloat16_logits_is_taken_in_float32():
    logits = (torch.randn(300, 1000) * 3).bfloat16().requires_grad_()
    targets = torch.randint(0, 1000, (300,))
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item()
    loss = nll(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.sum().item() == pytest.approx(exact, rel=1e-6)
    (found,) = torch.autograd.grad(loss.sum(), logits)
    assert found.dtype == torch.bfloat16
    wanted = logits.detach().double().softmax(1)
    wanted[torch.arange(300), targets] -= 1
    assert float((found.double() - wanted).norm() / wanted.norm()) < 4e-3


def batch():
    generator = torch.Generator().manual_seed(0)
    examples = [
        Example(
            input_ids=torch.randint(5, 90, (n,), generator=generator).int().numpy(),
            labelled=(torch.arange(n) >= n // 3).numpy(),
            row=row,
        )
        for row, n in enumerate([7, 12, 5])
    ]
    return collate(examples, packed=False)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi", "gemma2", "cohere", "granite"])
def test_a_models_losses_never_form_all_logits_and_equal_them(model_type, monkeypatch):
    """Softcaps and scales are found from the config and proven on the model; the whole logits are the judge."""
    monkeypatch.setitem(TYPES, "granite", {**TYPES["llama"], "logits_scaling": 4.0})
    model = tiny_model(model_type)
    wanted = torch.nn.functional.cross_entropy(forward(model, batch()), batch().answers, reduction="none")
    monkeypatch.setattr(losses, "nll", None)  # the way of whole logits is closed
    monkeypatch.setattr(losses, "forward", None)
    torch.testing.assert_close(token_losses(model, batch()), wanted, rtol=1e-5, atol=1e-5)


def test_a_model_that_does_something_unknown_to_its_logits_gets_whole_logits():
    model = tiny_model("llama")
    before = model.forward

    def strange(*arguments, **options):
        output = before(*arguments, **options)
        output.logits = output.logits.sinh()
        return output

    model.forward = strange
    wanted = torch.nn.functional.cross_entropy(forward(model, batch()), batch().answers, reduction="none")
    torch.testing.assert_close(token_losses(model, batch()), wanted, rtol=1e-5, atol=1e-5)


def test_an_adapted_or_trained_output_embedding_gets_its_gradient():
    model = tiny_model("llama")
    head = model.get_output_embeddings()
    head.weight.requires_grad_(True)
    token_losses(model, batch()).sum().backward()
    assert float(head.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_whose_probability_rounds_to_nothing_has_a_finite_loss(dtype):
    """Logits 300 apart: e^-300 is 0 in float32, and the loss is 300 all the same."""
    weight = torch.eye(4, dtype=dtype)
    states = torch.tensor([[300.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 2])
    result = nll_of_states(states, weight, None, targets)
    wanted = torch.nn.functional.cross_entropy(states.float(), targets, reduction="none")
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(result.sum(), states)
    assert gradient[0].tolist() == [1.0, -1.0, 0.0, 0.0]
