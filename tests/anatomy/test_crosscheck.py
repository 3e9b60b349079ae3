"""Three readers side by side: what each finds, and what becomes of a matrix they do not agree on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests import zoo
from tests.renaming import renamed_decisions
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama

from loratlas.anatomy.compare.crosscheck import prove
from loratlas.anatomy.compare.decide_roles import decide
from loratlas.anatomy.compare.reader_opinions import MatrixOpinions
from loratlas.anatomy.config_sizes import sizes
from loratlas.anatomy.probe import token_mixing
from loratlas.anatomy.probe.probe_reader import instance, probe
from loratlas.anatomy.role_table import MIXES, POINTWISE
from loratlas.anatomy.structure import matrices
from loratlas.anatomy.tiny_config import shrunk, small
from loratlas.models.meta import meta_model


def verdicts(model_type: str, **changes) -> dict[str, str]:
    model = instance(small(model_type, **changes))
    return probe(model, matrices(model))


@pytest.mark.parametrize(
    ("model_type", "mixing", "single"),
    [
        # A causal attention beside a feed-forward, each in a module of its own.
        ("llama", ["self_attn.q_proj", "self_attn.o_proj"], ["mlp.gate_proj", "mlp.down_proj"]),
        # The output projection stands outside the core; the feed-forward in two modules of the block.
        ("bert", ["attention.self.key", "attention.output.dense"], ["intermediate.dense", "0.output.dense"]),
        # The attention adds its result to the stream itself; the feed-forward is owned by the layer.
        ("albert", ["attention.query", "attention.dense"], ["ffn", "ffn_output"]),
        # The feed-forward is owned by the block, beside the attention.
        ("opt", ["self_attn.k_proj", "self_attn.out_proj"], ["fc1", "fc2"]),
        # Attention and feed-forward are lists of their own: a block is one of them.
        ("xlm", ["q_lin", "out_lin"], ["lin1", "lin2"]),
        # Encoder states come in by keyword.
        ("t5", ["EncDecAttention.k", "SelfAttention.o"], ["DenseReluDense.wi", "DenseReluDense.wo"]),
        # Experts see flattened tokens, sorted by expert.
        ("mixtral", ["self_attn.v_proj"], ["mlp.gate", "mlp.experts"]),
        ("mamba", ["mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"], []),
        # A convolution in front of a recurrence, which alone leads on.
        ("recurrent_gemma", ["temporal_block.linear_x", "temporal_block.linear_out"], ["mlp_block.up_proj"]),
        # Blocks are called by their forward, which no hook sees.
        ("squeezebert", ["post_attention.conv1d"], ["intermediate.conv1d"]),
        # A convolution is all that mixes.
        ("lfm2_moe", ["conv.in_proj", "conv.out_proj"], ["feed_forward.w1"]),
    ],
)
def test_a_changed_token_reaches_others_through_what_mixes_and_through_nothing_else(
    model_type, mixing, single
):
    judged = verdicts(model_type)
    for leaves, verdict in ((mixing, MIXES), (single, POINTWISE)):
        for leaf in leaves:
            said = {v for path, v in judged.items() if f".{leaf}." in path and ".0." in path}
            assert said == {verdict}, leaf


def test_a_capacity_that_later_tokens_fill_is_no_mixing():
    judged = verdicts("switch_transformers", expert_capacity=4)
    assert {v for path, v in judged.items() if ".mlp." in path} == {POINTWISE}


def test_a_matrix_that_took_no_part_is_not_judged(monkeypatch):
    every = token_mixing.inputs
    monkeypatch.setattr(token_mixing, "inputs", lambda *given, **named: every(*given, **named)[-1:])
    judged = verdicts("whisper")  # a decoder without states to attend to
    assert not any(".encoder_attn." in path for path in judged)
    assert {v for path, v in judged.items() if ".fc1." in path} == {POINTWISE}


def test_what_readers_do_not_agree_on_is_unresolved_with_all_opinions(monkeypatch):
    honest = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        modeling_llama.LlamaMLP,
        "forward",
        lambda self, x: honest(self, x) + honest(self, x).mean(1, keepdim=True),
    )
    config = small("llama")
    proof = prove(config)
    disputed = {one.path for one in proof.open}
    assert disputed == {path for path, v in _mlp(config).items()}
    assert {item.path for item in proof.anatomy.unresolved} == disputed
    assert all("probe: mixes tokens" in item.opinions for item in proof.anatomy.unresolved)
    assert all("names: ffn." in " ".join(item.opinions) for item in proof.anatomy.unresolved)


def test_a_disputed_matrix_stays_in_its_tower(monkeypatch):
    honest = modeling_bert.BertIntermediate.forward
    monkeypatch.setattr(
        modeling_bert.BertIntermediate,
        "forward",
        lambda self, x: honest(self, x) + honest(self, x).mean(1, keepdim=True),
    )
    unresolved = prove(small("bert")).anatomy.unresolved
    assert {item.path.split(".layer.0.")[-1] for item in unresolved} >= {"intermediate.dense.weight"}
    assert {item.scope for item in unresolved} == {"encoder"}


def _mlp(config) -> dict[str, torch.Tensor]:
    named = meta_model(config).named_parameters()
    return {name: value for name, value in named if ".mlp." in name and value.ndim == 2}


def test_a_full_size_config_is_tried_small_with_one_block_of_every_kind():
    from transformers import JambaConfig

    proof = prove(JambaConfig())
    assert proof.anatomy.layers == 32
    assert proof.silent == ""
    assert proof.agreement("probe") == (224, 224)
    tiny = shrunk(JambaConfig(), layers=5)
    assert (tiny.num_hidden_layers, tiny.hidden_size, tiny.attn_layer_offset) == (5, 64, 4)


def test_a_table_settles_and_is_named():
    proof = zoo.proof("jetmoe")
    assert {one.table for one in proof.disputes} > {""} or all(one.table for one in proof.disputes)
    assert proof.open == ()
    assert any(one.agrees("probe") is False for one in proof.disputes)


def test_silence_is_no_agreement():
    one = MatrixOpinions(path="w", role="embed", names=None, trace="embed", probe="pointwise")
    assert (one.agrees("names"), one.agrees("trace"), one.agrees("probe")) == (None, True, None)
    two = MatrixOpinions(path="w", role=None, names="attn.q", trace="ffn.up")
    assert two.disputed


def test_with_every_name_random_the_trace_still_reads_nine_matrices_of_ten():
    same = every = 0
    for model_type in zoo.types():
        if model_type in zoo.NEVER:
            continue
        model = meta_model(zoo.small(model_type))
        listed = matrices(model)
        decisions = decide(model, listed, sizes(model.config))
        roles = {path: decision.role for path, decision in decisions.items()}
        for kept, all_ in renamed_decisions(model, roles, partial(instance, zoo.small(model_type))).values():
            same += kept
            every += all_
    assert every > 10_000
    assert same >= 0.9 * every
