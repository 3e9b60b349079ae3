"""Row layouts of fused projections, proven on real numbers: attention recomputed from the rows a layout names."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from loratlas.anatomy.config_sizes import Sizes, sizes
from loratlas.anatomy.read import read

# Case → (layout, factor of the bias by distance; 0 is none). Falcon scales its bias together with the scores,
# by one over the root of the head's width of 12; bloom and mpt do not.
FUSED = {
    "gpt2": ("contiguous:q,k,v", 0.0),
    "gpt_bigcode": ("contiguous:q,k,v", 0.0),
    "gpt_bigcode-multihead": ("per_head:q,k,v", 0.0),
    "gpt_neox": ("per_head:q,k,v", 0.0),
    "phi3": ("contiguous:q,k,v", 0.0),
    "falcon": ("contiguous:q,k,v", 0.0),
    "falcon-multihead": ("per_head:q,k,v", 12**-0.5),
    "falcon-groups": ("per_group:q,k,v", 0.0),
    "bloom": ("per_head:q,k,v", 1.0),
    "mpt": ("contiguous:q,k,v", 1.0),
}


def _split(fused: torch.Tensor, layout: str, numbers: Sizes) -> dict[str, torch.Tensor]:
    """Columns [T, rows] → q [T, heads·D], k and v [T, kv_heads·D], as the layout says."""
    style, _, order = layout.partition(":")
    repeats = {"contiguous": 1, "per_head": numbers.heads, "per_group": numbers.kv_heads}[style]
    heads = {"q": numbers.heads, "k": numbers.kv_heads, "v": numbers.kv_heads}
    widths = {part: many * numbers.head_dim for part, many in heads.items()}
    unit = fused.view(fused.shape[0], repeats, -1).split(
        [widths[p] // repeats for p in order.split(",")], dim=-1
    )
    return {part: piece.flatten(1) for part, piece in zip(order.split(","), unit, strict=True)}


def _attend(parts: dict[str, torch.Tensor], numbers: Sizes, *, alibi: float) -> torch.Tensor:
    """Causal softmax attention over heads, as a textbook writes it."""
    length = parts["q"].shape[0]
    heads = {part: value.view(length, -1, numbers.head_dim).transpose(0, 1) for part, value in parts.items()}
    k, v = (heads[part].repeat_interleave(numbers.heads // heads[part].shape[0], 0) for part in "kv")
    scores = heads["q"] @ k.transpose(1, 2) / math.sqrt(numbers.head_dim)
    if alibi:
        slopes = torch.tensor([2 ** (-8 * (h + 1) / numbers.heads) for h in range(numbers.heads)])
        scores = scores + alibi * slopes[:, None, None] * torch.arange(length)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("case", FUSED)
def test_attention_recomputed_from_the_named_rows_is_the_models_own(case, small):
    layout, alibi = FUSED[case]
    config = small(case)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    anatomy = read(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    qkv = next(site for site in anatomy if site.role == "attn.qkv" and site.layer == 1)
    o = next(site for site in anatomy if site.role == "attn.o" and site.layer == 1)
    assert qkv.layout == layout
    seen: dict[str, torch.Tensor] = {}
    model.get_submodule(qkv.module).register_forward_hook(lambda _m, _a, out: seen.update(qkv=out[0]))
    model.get_submodule(o.module).register_forward_pre_hook(lambda _m, args: seen.update(o=args[0][0]))
    extra = {}
    if case in ("gpt_neox", "phi3", "falcon", "falcon-groups"):
        # Rotation by position 0 everywhere is the identity; the mask keeps it from being read as packing.
        extra = {"position_ids": torch.zeros(1, 5, dtype=torch.long)}
    with torch.no_grad():
        model(torch.arange(3, 8)[None], attention_mask=torch.ones(1, 5), use_cache=False, **extra)
    numbers = sizes(config)
    parts = _split(seen["qkv"], layout, numbers)
    mine = _attend(parts, numbers, alibi=alibi)
    torch.testing.assert_close(mine, seen["o"].view_as(mine), rtol=1e-4, atol=1e-5)
    # The test can fail: the same with keys and queries exchanged is another attention.
    if numbers.kv_heads == numbers.heads:
        swapped = {"q": parts["k"], "k": parts["q"], "v": parts["v"]}
        assert not torch.allclose(_attend(swapped, numbers, alibi=alibi), mine, atol=1e-3)


def test_fused_gate_and_up_of_phi3_in_their_order(small):
    config = small("phi3")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    site = next(site for site in read(config) if site.role == "ffn.gate_up")
    assert site.layout == "contiguous:gate,up"
    mlp = model.get_submodule(site.module.rpartition(".")[0])
    x = torch.randn(4, 48)
    gate, up = model.get_submodule(site.module)(x).chunk(2, dim=-1)
    wanted = mlp.down_proj(torch.nn.functional.silu(gate) * up)
    torch.testing.assert_close(mlp(x), wanted)


def test_codegen_deals_its_rows_out_in_four_chunks():
    from transformers import CodeGenConfig

    anatomy = read(CodeGenConfig(n_layer=1, n_embd=64, n_head=8, rotary_dim=4, vocab_size=50))
    assert anatomy.site("transformer.h.0.attn.qkv_proj").layout == "per_chunk_4:q,v,k"
