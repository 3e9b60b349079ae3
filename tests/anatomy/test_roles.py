"""The role of every matrix of every supported type, against expectations written down by hand."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
from anatomy_cases import CASES, nameless

from loratlas.anatomy import structure
from loratlas.anatomy.names import leaf_words
from loratlas.anatomy.read import read
from loratlas.anatomy.trace import observe
from loratlas.models.meta import meta_model

# Case → parameter of the first block, or outside the blocks → role, with the shape (d_out, d_in).
_LLAMA = {
    "model.embed_tokens.weight": ("embed", (101, 48)),
    "model.layers.0.self_attn.q_proj.weight": ("attn.q", (72, 48)),
    "model.layers.0.self_attn.k_proj.weight": ("attn.k", (24, 48)),
    "model.layers.0.self_attn.v_proj.weight": ("attn.v", (24, 48)),
    "model.layers.0.self_attn.o_proj.weight": ("attn.o", (48, 72)),
    "model.layers.0.mlp.gate_proj.weight": ("ffn.gate", (80, 48)),
    "model.layers.0.mlp.up_proj.weight": ("ffn.up", (80, 48)),
    "model.layers.0.mlp.down_proj.weight": ("ffn.down", (48, 80)),
    "lm_head.weight": ("head.lm", (101, 48)),
}
_NARROW = _LLAMA | {
    "model.layers.0.self_attn.q_proj.weight": ("attn.q", (48, 48)),
    "model.layers.0.self_attn.k_proj.weight": ("attn.k", (16, 48)),
    "model.layers.0.self_attn.v_proj.weight": ("attn.v", (16, 48)),
    "model.layers.0.self_attn.o_proj.weight": ("attn.o", (48, 48)),
}
_UNGATED = {key: value for key, value in _NARROW.items() if ".mlp." not in key}
_PHI = {key: value for key, value in _UNGATED.items() if "o_proj" not in key} | {
    "model.layers.0.self_attn.dense.weight": ("attn.o", (48, 48)),
    "model.layers.0.mlp.fc1.weight": ("ffn.up", (80, 48)),
    "model.layers.0.mlp.fc2.weight": ("ffn.down", (48, 80)),
}
_STARCODER2 = _UNGATED | {
    "model.layers.0.mlp.c_fc.weight": ("ffn.up", (80, 48)),
    "model.layers.0.mlp.c_proj.weight": ("ffn.down", (48, 80)),
}
_GPT2 = {
    "transformer.wte.weight": ("embed", (101, 48)),
    "transformer.wpe.weight": ("embed", (64, 48)),
    "transformer.h.0.attn.c_attn.weight": ("attn.qkv", (144, 48)),
    "transformer.h.0.attn.c_proj.weight": ("attn.o", (48, 48)),
    "transformer.h.0.mlp.c_fc.weight": ("ffn.up", (192, 48)),
    "transformer.h.0.mlp.c_proj.weight": ("ffn.down", (48, 192)),
    "lm_head.weight": ("head.lm", (101, 48)),
}


def _fused(block: str, attention: str, feedforward: str, rows: int, inner: int, names: str) -> dict:
    qkv, o, up, down = names.split()
    return {
        f"{block}.0.{attention}.{qkv}.weight": ("attn.qkv", (rows, 48)),
        f"{block}.0.{attention}.{o}.weight": ("attn.o", (48, 48)),
        f"{block}.0.{feedforward}.{up}.weight": ("ffn.up", (inner, 48)),
        f"{block}.0.{feedforward}.{down}.weight": ("ffn.down", (48, inner)),
        "lm_head.weight": ("head.lm", (101, 48)),
    }


_MEGATRON = "query_key_value dense dense_h_to_4h dense_4h_to_h"
_WORDS = {"transformer.word_embeddings.weight": ("embed", (101, 48))}
_SEPARATE = {"q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "out_proj": "attn.o"}

EXPECTED: dict[str, dict[str, tuple[str, tuple[int, int]]]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2 | {"transformer.h.0.attn.c_attn.weight": ("attn.qkv", (72, 48))},
    "gpt_bigcode-multihead": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    **dict.fromkeys(("qwen2", "stablelm", "stablelm-parallel", "olmo"), _NARROW),
    # Cohere normalises each head with weights of its own: two dimensions, but no linear map.
    "cohere": _NARROW
    | {
        "model.layers.0.self_attn.q_norm.weight": ("vector", (6, 8)),
        "model.layers.0.self_attn.k_norm.weight": ("vector", (2, 8)),
    },
    "phi": _PHI,
    "phi3": {
        "model.embed_tokens.weight": ("embed", (101, 48)),
        "model.layers.0.self_attn.qkv_proj.weight": ("attn.qkv", (80, 48)),
        "model.layers.0.self_attn.o_proj.weight": ("attn.o", (48, 48)),
        "model.layers.0.mlp.gate_up_proj.weight": ("ffn.gate_up", (160, 48)),
        "model.layers.0.mlp.down_proj.weight": ("ffn.down", (48, 80)),
        "lm_head.weight": ("head.lm", (101, 48)),
    },
    "starcoder2": _STARCODER2,
    "opt": {
        "model.decoder.embed_tokens.weight": ("embed", (101, 24)),
        "model.decoder.embed_positions.weight": ("embed", (66, 48)),
        "model.decoder.project_out.weight": ("proj", (24, 48)),
        "model.decoder.project_in.weight": ("proj", (48, 24)),
        **{
            f"model.decoder.layers.0.self_attn.{name}.weight": (role, (48, 48))
            for name, role in _SEPARATE.items()
        },
        "model.decoder.layers.0.fc1.weight": ("ffn.up", (80, 48)),
        "model.decoder.layers.0.fc2.weight": ("ffn.down", (48, 80)),
        "lm_head.weight": ("head.lm", (101, 24)),
    },
    "gpt_neox": {"gpt_neox.embed_in.weight": ("embed", (101, 48))}
    | _fused("gpt_neox.layers", "attention", "mlp", 144, 80, _MEGATRON),
    "gptj": {
        "transformer.wte.weight": ("embed", (101, 48)),
        **{f"transformer.h.0.attn.{name}.weight": (role, (48, 48)) for name, role in _SEPARATE.items()},
        "transformer.h.0.mlp.fc_in.weight": ("ffn.up", (192, 48)),
        "transformer.h.0.mlp.fc_out.weight": ("ffn.down", (48, 192)),
        "lm_head.weight": ("head.lm", (101, 48)),
    },
    "gpt_neo": {
        "transformer.wte.weight": ("embed", (101, 48)),
        "transformer.wpe.weight": ("embed", (64, 48)),
        **{
            f"transformer.h.0.attn.attention.{name}.weight": (role, (48, 48))
            for name, role in _SEPARATE.items()
        },
        "transformer.h.0.mlp.c_fc.weight": ("ffn.up", (80, 48)),
        "transformer.h.0.mlp.c_proj.weight": ("ffn.down", (48, 80)),
        "lm_head.weight": ("head.lm", (101, 48)),
    },
    "falcon": _WORDS | _fused("transformer.h", "self_attention", "mlp", 72, 192, _MEGATRON),
    "falcon-multihead": _WORDS | _fused("transformer.h", "self_attention", "mlp", 144, 192, _MEGATRON),
    "falcon-groups": _WORDS | _fused("transformer.h", "self_attention", "mlp", 80, 192, _MEGATRON),
    "bloom": _WORDS | _fused("transformer.h", "self_attention", "mlp", 144, 192, _MEGATRON),
    "mpt": {"transformer.wte.weight": ("embed", (101, 48))}
    | _fused("transformer.blocks", "attn", "ffn", 144, 192, "Wqkv out_proj up_proj down_proj"),
}


def test_every_case_has_an_expectation():
    assert set(EXPECTED) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_roles_and_shapes_are_those_written_down(case, small):
    anatomy = read(small(case))
    seen = {site.path: (site.role, site.shape) for site in anatomy if site.layer in (0, None)}
    assert seen == EXPECTED[case]
    assert anatomy.unresolved == ()


@pytest.mark.parametrize("case", CASES)
def test_every_block_reads_like_the_first(case, small):
    anatomy = read(small(case))
    by_layer: dict[int | None, list] = {}
    for site in anatomy:
        by_layer.setdefault(site.layer, []).append((site.role, site.shape, site.layout))
    assert sorted(layer for layer in by_layer if layer is not None) == list(range(anatomy.layers))
    assert all(by_layer[layer] == by_layer[0] for layer in range(anatomy.layers))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_of_two_dimensions_is_listed_once_in_model_order(case, small):
    config = small(case)
    anatomy = read(config)
    model = meta_model(config)
    every = [name for name, value in model.named_parameters(remove_duplicate=False) if value.ndim >= 2]
    assert [site.path for site in anatomy] == every
    assert anatomy.parameters == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_same_roles_come_out_when_all_names_are_hidden(case, small, monkeypatch):
    wanted = [(site.path, site.role, site.layout) for site in read(small(case))]
    monkeypatch.setattr(structure, "matrices", nameless)
    assert [(site.path, site.role, site.layout) for site in read(small(case))] == wanted


@contextmanager
def _renamed(**classes: str):
    """Give classes of the Llama code other names for a while."""
    from transformers.models.llama import modeling_llama

    changed = [(getattr(modeling_llama, old), old, new) for old, new in classes.items()]
    try:
        for cls, _, new in changed:
            cls.__name__ = new
        yield
    finally:
        for cls, old, _ in changed:
            cls.__name__ = old


def test_a_feedforward_that_is_called_expert_is_not_guessed(small):
    with _renamed(LlamaMLP="LlamaExperts"):
        anatomy = read(small("llama"))
    assert {site.role for site in anatomy if site.layer == 0} == {"attn.q", "attn.k", "attn.v", "attn.o"}
    item = next(item for item in anatomy.unresolved if item.path.endswith("0.mlp.up_proj.weight"))
    assert "moe" in item.reason
    assert "trace: ffn.up" in item.opinions


def test_the_name_of_the_model_has_no_vote(small):
    names_ = ("LlamaMLP", "LlamaAttention", "LlamaForCausalLM", "LlamaModel", "LlamaDecoderLayer")
    with _renamed(**{name: name.replace("Llama", "SharedExpertMamba") for name in names_}):
        assert read(small("llama")).unresolved == ()


def _tower(small, **sizes: int):
    """A Gemma 3 with a vision tower of one layer, which no pass on token ids reaches."""
    from transformers import Gemma3Config, SiglipVisionConfig

    vision = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40}
    tower = SiglipVisionConfig(**vision, image_size=28, patch_size=14)
    return Gemma3Config(text_config=small("gemma3_text").to_dict(), vision_config=tower.to_dict(), **sizes)


def test_what_did_not_run_is_read_by_names_that_shapes_bear_out(small):
    anatomy = read(_tower(small))
    assert anatomy.unresolved == ()
    seen = {site.path.split("layers.0.")[-1]: site.role for site in anatomy if site.scope == "vision"}
    assert seen["self_attn.out_proj.weight"] == "attn.o"
    assert seen["mlp.fc1.weight"] == "ffn.up"


def test_what_stands_beside_the_blocks_of_a_tower_belongs_to_it():
    from tests import zoo

    scopes = {site.path: site.scope for site in read(zoo.small("granite_speech")).sites}
    assert scopes["model.encoder.input_linear.weight"] == "audio"  # the map into an encoder of sounds
    assert scopes["model.language_model.embed_tokens.weight"] == "decoder"
    assert scopes["lm_head.weight"] == "decoder"


def test_a_projector_that_is_one_matrix_is_a_connector():
    from tests import zoo

    scopes = {site.path: site.scope for site in read(zoo.small("nemo_speechlm")).sites}
    assert scopes["model.multi_modal_projector.weight"] == "connector"


def test_a_shape_that_contradicts_leaves_its_feedforward_unresolved_and_the_rest_alone(small, monkeypatch):
    original = structure.matrices

    def longer(model):
        return [
            replace(m, shape=(m.shape[0] + 1, m.shape[1])) if "encoder.layers.0.mlp.fc1" in m.path else m
            for m in original(model)
        ]

    monkeypatch.setattr(structure, "matrices", longer)
    # What a tower does would speak for itself; here nobody runs it.
    monkeypatch.setattr(observe, "silent_towers", lambda *_: [])
    unresolved = read(_tower(small)).unresolved
    assert {item.path.split("layers.0.")[1] for item in unresolved} == {"mlp.fc1.weight", "mlp.fc2.weight"}
    assert all("only its name says" in item.reason for item in unresolved)


def test_a_leaf_that_is_called_otherwise_is_not_guessed(small, monkeypatch):
    original = leaf_words.attention
    monkeypatch.setattr(leaf_words, "attention", lambda m, said: "k" if "q" in said else original(m, said))
    anatomy = read(small("llama"))
    assert {item.path for item in anatomy.unresolved} == {
        f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)
    }
    assert {item.reason for item in anatomy.unresolved} == {"behaves as attn.q but is named after attn.k"}
    assert anatomy.unresolved[0].opinions == ("names: attn.k", "trace: attn.q")


def test_a_model_that_does_not_run_is_read_by_names_and_shapes():
    from transformers import FalconConfig

    # 71 heads do not divide into 8 groups: the forward pass fails, the matrices are as they are.
    config = FalconConfig(num_hidden_layers=2, new_decoder_architecture=True, num_kv_heads=8)
    anatomy = read(config)
    qkv = anatomy.site("transformer.h.0.self_attention.query_key_value")
    assert (qkv.role, qkv.shape, qkv.layout) == ("attn.qkv", ((2 * 8 + 71) * 64, 71 * 64), None)
    assert anatomy.unresolved == ()


@pytest.mark.parametrize(
    ("case", "shared"),
    [
        ("llama", False),
        ("gpt2", False),
        ("gpt_neox", False),
        ("stablelm", False),
        ("stablelm-parallel", True),
        ("phi", True),
        ("gptj", True),
        ("cohere", True),
        ("falcon", True),
        ("falcon-multihead", False),
        ("falcon-groups", False),
    ],
)
def test_input_groups_are_the_tensors_that_are_read(case, shared, small):
    sites = [site for site in read(small(case)) if site.layer == 1]
    first = {site.part: site.input_group for site in sites if site.part}
    queries = {first.get("q"), first.get("k"), first.get("v"), first.get("qkv")} - {None}
    gates = {first.get("gate"), first.get("up")} - {None}
    assert len(queries) == len(gates) == 1
    assert (queries == gates) is shared
    assert len({first["o"], first["down"]} | queries) == 3


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("stablelm", {"qk_layernorm": True}),
        ("phi", {"qk_layernorm": True}),
        ("opt", {"word_embed_proj_dim": 48}),
        ("opt", {"do_layer_norm_before": False, "ffn_dim": 48}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "n_inner": 48}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}),
        ("llama", {"intermediate_size": 48, "head_dim": 8, "num_key_value_heads": 6}),  # all matrices square
        ("llama", {"num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 24}),
        ("llama", {"attn_implementation": "eager"}),
        ("gemma3_text", {"sliding_window": 2}),
        ("falcon", {"bias": True, "alibi": True}),
        ("bloom", {"n_head": 1}),
        ("olmo", {"clip_qkv": None}),
    ],
)
def test_settings_that_change_the_code_path_change_no_role(case, changes, small):
    anatomy = read(small(case, **changes))
    assert anatomy.unresolved == ()
    wanted = {path: role for path, (role, _) in EXPECTED[case].items() if role != "proj"}
    seen = {site.path: site.role for site in anatomy if site.layer in (0, None) and site.role != "proj"}
    assert seen == wanted


def test_cross_attention_is_seen_where_an_encoder_could_be_attended_to(small):
    anatomy = read(small("gpt2", add_cross_attention=True))
    seen = {
        ".".join(site.path.split(".")[4:]): (site.role, site.layout)
        for site in anatomy
        if ".0.crossattention" in site.path
    }
    assert seen == {
        "c_attn.weight": ("xattn.kv", "contiguous:k,v"),
        "q_attn.weight": ("xattn.q", None),
        "c_proj.weight": ("xattn.o", None),
    }


def test_a_gate_without_nonlinearity_is_no_gate(small):
    anatomy = read(small("llama", hidden_act="linear"))
    assert all(".mlp." in item.path for item in anatomy.unresolved)
    assert len(anatomy.unresolved) == 3 * 3


def test_conv1d_is_given_as_a_linear_map(small):
    up = read(small("gpt2")).site("transformer.h.0.mlp.c_fc")
    assert (up.kind, up.shape, "transposed" in up.flags) == ("conv1d", (192, 48), True)


def test_tied_head_is_listed_and_counted_once(small):
    tied = read(small("llama", tie_word_embeddings=True))
    free = read(small("llama", tie_word_embeddings=False))
    head = tied.site("lm_head")
    assert (head.role, head.tied_to, head.flags) == ("head.lm", "model.embed_tokens.weight", {"tied"})
    assert free.site("lm_head").tied_to is None
    assert free.parameters - tied.parameters == 101 * 48
    assert "lm_head.weight" not in {site.path for site in tied.adaptable}


@pytest.mark.parametrize(
    ("model_type", "table"),
    [
        ("deberta", "encoder.rel_embeddings.weight"),
        ("deberta-v2", "encoder.rel_embeddings.weight"),
        ("mpnet", "encoder.relative_attention_bias.weight"),
        ("layoutlmv3", "encoder.rel_pos_bias.weight"),
        ("cpmant", "position_bias.relative_attention_bias"),
    ],
)
def test_tables_of_relative_positions_are_part_of_attention(model_type, table):
    from tests import zoo

    roles = {site.path: site.role for site in read(zoo.small(model_type))}
    assert {role for path, role in roles.items() if path.endswith(table)} == {"attn.relbias"}
    assert "embed" in roles.values()


def test_learned_positions_of_opt_carry_no_adapter(small):
    anatomy = read(small("opt"))
    assert not anatomy.site("model.decoder.embed_positions").adaptable
    assert anatomy.site("model.decoder.embed_tokens").adaptable
