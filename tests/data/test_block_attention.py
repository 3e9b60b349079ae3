"""The arithmetic of packed attention against the formula written out, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratlas.data.batches import block_attention as blocks
from loratlas.data.batches import packed_attention as attention
from loratlas.data.batches.packed_attention import Layout, carrying, packed_attention, register, use_layout


class Causal(torch.nn.Module):
    is_causal = True


def formula(q, k, v, lengths, scale, window=None, softcap=None):
    """Attention one segment, one head, one token at a time: q [1, H, T, D] over k, v [1, K, T, D]."""
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    out = torch.zeros(1, q.shape[2], heads, v.shape[3], dtype=torch.float64)
    starts = np.cumsum(lengths) - lengths
    for start, n in zip(starts, lengths, strict=True):
        for head in range(heads):
            for t in range(start, start + n):
                first = start if window is None else max(start, t - window + 1)
                scores = k[0, head // groups, first : t + 1].double() @ q[0, head, t].double() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[0, t, head] = scores.softmax(0) @ v[0, head // groups, first : t + 1].double()
    return out


def tensors(lengths, heads=4, kv_heads=2, channels=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randn(1, sum(lengths), n, channels, generator=generator).to(dtype).transpose(1, 2)

    return draw(heads), draw(kv_heads), draw(kv_heads)


def run(lengths, q, k, v, **options):
    with use_layout(Layout.of(lengths), []):
        return packed_attention(Causal(), q, k, v, None, **options)[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_a_layout_gathers_every_token_once_and_back(lengths):
    layout = Layout.of(lengths)
    total = sum(lengths)
    assert torch.equal(layout.gather[layout.scatter], torch.arange(total))
    assert sum(block.segments for block in layout.blocks) == len(lengths)
    assert len(layout.gather) == sum(block.segments * block.length for block in layout.blocks)
    assert sorted([*layout.padding.tolist(), *layout.scatter.tolist()]) == list(range(len(layout.gather)))
    start = 0
    for block in layout.blocks:
        end = start + block.segments * block.length
        padding = int(((layout.padding >= start) & (layout.padding < end)).sum())
        assert padding <= (1 - attention.SLACK) * (end - start)
        start = end


def test_padding_of_blocks_takes_part_in_no_gradient():
    """Against attention of every segment alone; the lengths make blocks with padding."""
    lengths = [10, 9, 8, 3]
    layout = Layout.of(lengths)
    assert len(layout.padding)
    q, k, v = (x.double().requires_grad_() for x in tensors(lengths))
    weights = torch.randn(1, sum(lengths), 4, 8, dtype=torch.float64)
    gradients = torch.autograd.grad((run(lengths, q, k, v) * weights).sum(), (q, k, v))
    start, total = 0, torch.zeros((), dtype=torch.float64)
    for n in lengths:
        part = [x[:, :, start : start + n] for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
        total = total + (out.transpose(1, 2) * weights[:, start : start + n]).sum()
        start += n
    for ours, theirs in zip(gradients, torch.autograd.grad(total, (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


CASES = [
    {},
    {"scaling": 0.4},
    {"sliding_window": 5},
    {"sliding_window": 1},
    {"sliding_window": 500},
    {"softcap": 2.0},
    {"softcap": 2.0, "sliding_window": 7},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_attention_is_the_formula(options, kv_heads):
    lengths = [3, 17, 1, 16, 9, 2, 1]
    q, k, v = tensors(lengths, kv_heads=kv_heads)
    expected = formula(
        q,
        k,
        v,
        lengths,
        options.get("scaling", 8**-0.5),
        options.get("sliding_window"),
        options.get("softcap"),
    )
    torch.testing.assert_close(run(lengths, q, k, v, **options).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", CASES[:5], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_short_products_are_the_formula_with_its_gradients(monkeypatch, options, kv_heads):
    # In float32 both ways must agree to rounding; the short way is then the same arithmetic in 16 bits.
    lengths = [3, 17, 1, 16, 9, 2, 1]
    inputs = [x.requires_grad_() for x in tensors(lengths, kv_heads=kv_heads)]
    weight = torch.randn(1, sum(lengths), 4, 8, generator=torch.Generator().manual_seed(9))
    results = []
    for short in (False, True):
        monkeypatch.setattr(attention, "is_short", lambda _q, short=short: short)
        out = run(lengths, *inputs, **options)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for plain, short in zip(*results, strict=True):
        torch.testing.assert_close(short, plain, rtol=1e-5, atol=1e-5)


def test_short_products_pass_a_numerical_gradient_check(monkeypatch):
    monkeypatch.setattr(attention, "is_short", lambda _q: True)
    lengths = [4, 1, 3]
    inputs = [
        x.requires_grad_() for x in tensors(lengths, heads=2, kv_heads=1, channels=3, dtype=torch.float64)
    ]
    assert torch.autograd.gradcheck(
        lambda q, k, v: run(lengths, q, k, v), inputs, eps=1e-3, atol=1e-3, rtol=1e-3, nondet_tol=0
    )


def test_sixteen_bits_on_a_cpu_take_the_short_way_up_to_its_limit():
    q = torch.zeros(1, blocks.SHORT, 2, 4, dtype=torch.bfloat16)
    assert blocks.is_short(q)
    assert not blocks.is_short(q.float())
    assert not blocks.is_short(torch.zeros(1, blocks.SHORT + 1, 2, 4, dtype=torch.bfloat16))


def test_attention_outside_its_batch_is_refused():
    q, k, v = tensors([3, 4])
    with pytest.raises(RuntimeError, match="outside of its batch"):
        packed_attention(Causal(), q, k, v, None)
    with pytest.raises(RuntimeError, match="outside of its batch"):
        run([3, 3], q, k, v)


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "cache"])
def test_what_cannot_be_honoured_is_refused(name):
    q, k, v = tensors([3, 4])
    with pytest.raises(RuntimeError, match=name):
        run([3, 4], q, k, v, **{name: torch.zeros(1)})
    with pytest.raises(RuntimeError, match="causal"):
        run([3, 4], q, k, v, is_causal=False)


def test_a_recomputed_layer_sees_the_layout_of_its_first_run():
    seen = []

    def layer():
        seen.append(attention._ACTIVE.state)

    later = []
    checkpoint = carrying(lambda function: later.append(function))
    first, second = Layout.of([2, 3]), Layout.of([4])
    with use_layout(first, []):
        checkpoint(layer)
    with use_layout(second, []):
        later[0]()
    later[0]()
    assert [state[0] for state in seen] == [first, first]
    assert carrying(checkpoint) is checkpoint


def test_contexts_nest_and_configs_get_their_own_implementation_back():
    class Config:
        _attn_implementation_internal = "sdpa"

    register()
    config = Config()
    with use_layout(Layout.of([1]), [config]):
        with pytest.raises(KeyError), use_layout(Layout.of([2]), [config]):
            raise KeyError
        assert config._attn_implementation_internal == attention.NAME
        assert attention._ACTIVE.state[0].tokens == 1
    assert config._attn_implementation_internal == "sdpa"
    assert attention._ACTIVE.state is None
