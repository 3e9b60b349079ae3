"""What each engine makes of a written adapter, as its sources say, rebuilt here without any code of the package.

Every reader returns changes of the base's parameters by transformers' names, [d_out, d_in] (embeddings [tokens, width],
stacks of experts [experts, d_out, d_in]), scale and all.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

Changes = dict[str, torch.Tensor]


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in tensors)
    return config, {
        name.removeprefix("base_model.model."): tensor.float() for name, tensor in tensors.items()
    }


def _join_experts(changes: Changes, base: Any) -> Changes:
    """Experts one by one → the stacks that transformers has."""
    single = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
    words = {
        "w1": "gate",
        "gate_proj": "gate",
        "w3": "up",
        "up_proj": "up",
        "w2": "down",
        "down_proj": "down",
    }
    stacks: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    joined: Changes = {}
    for name, change in changes.items():
        match = single.fullmatch(name)
        if match is None:
            joined[name] = change
            continue
        module = match[1].replace(".block_sparse_moe.", ".mlp.")
        stacks.setdefault(module, {}).setdefault(words[match[3]], {})[int(match[2])] = change
    for module, kinds in stacks.items():
        count = base.get_submodule(module).down_proj.shape[0]
        stacked = {kind: torch.stack([by[e] for e in range(count)]) for kind, by in kinds.items()}
        if "gate" in stacked:
            joined[f"{module}.gate_up_proj"] = torch.cat([stacked["gate"], stacked["up"]], dim=1)
        if "down" in stacked:
            joined[f"{module}.down_proj"] = stacked["down"]
    return joined


def _pairs(tensors: dict[str, torch.Tensor]):
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            yield name.removesuffix(".lora_A.weight"), A, tensors[name.replace("lora_A", "lora_B")]


def vllm(folder: Path, base: Any) -> Changes:
    """Both patterns by regular expressions on the names in the file; heads called score or classifier."""
    config, tensors = _open(folder)
    assert not config.get("use_dora")
    assert not config.get("lora_bias")
    assert config.get("bias", "none") == "none"
    assert config["init_lora_weights"] in (True, False, "gaussian", "eva", "orthogonal", "mica")
    assert set(config.get("modules_to_save") or ()) <= {"score", "classifier"}

    def scaling(module: str) -> float:
        def match(patterns: dict[str, Any], default: Any) -> Any:
            return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)

        rank = match(config["rank_pattern"], config["r"])
        alpha = match(config["alpha_pattern"], config["lora_alpha"])
        return alpha / (math.sqrt(rank) if config["use_rslora"] else rank)

    changes: Changes = {}
    for module, A, B in _pairs(tensors):
        assert A.shape[0] <= 512
        assert not module.endswith((".experts", ".base_layer"))
        changes[f"{module}.weight"] = scaling(module) * (B @ A)
    for name, A in tensors.items():
        if name.endswith("lora_embedding_A"):
            module = name.removesuffix(".lora_embedding_A")
            assert module.rpartition(".")[2] in ("embed_tokens", "lm_head")
            B = tensors[name.replace("_A", "_B")]
            changes[f"{module}.weight"] = (scaling(module) * (B @ A)).t()
    heads = {n: t for n, t in tensors.items() if n.split(".")[-2] in ("score", "classifier")}
    for name, tensor in heads.items():
        changes[name] = tensor - base.state_dict()[name].float()
    rest = [n for n in tensors if "lora_" not in n and n not in heads and "base_layer" not in n]
    assert not rest, rest
    return _join_experts(changes, base)


def sglang(folder: Path, base: Any) -> Changes:
    """One scale, one rank; q, k and v are stacked with each other, gate with up."""
    config, tensors = _open(folder)
    assert isinstance(config["target_modules"], list)
    assert not config.get("use_dora")
    scale = config["lora_alpha"] / config["r"]
    changes: Changes = {}
    modules = {module for module, _, _ in _pairs(tensors)}
    for module, A, B in _pairs(tensors):
        assert A.shape[0] == config["r"] == B.shape[1]
        parent, _, leaf = module.rpartition(".")
        assert re.search(r"layers\.\d+\.", module) or leaf == "lm_head"
        group = next(
            (
                g
                for g in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
                if leaf in g
            ),
            (),
        )
        assert all(f"{parent}.{other}" in modules for other in group), module
        changes[f"{module}.weight"] = scale * (B @ A)
    for name, A in tensors.items():
        if name.endswith("embed_tokens.lora_embedding_A"):
            assert A.shape[0] == config["r"]
            B = tensors[name.replace("_A", "_B")]
            changes[name.replace("lora_embedding_A", "weight")] = (scale * (B @ A)).t()
    return _join_experts(changes, base)


def _stacked(folder: Path, base: Any, kinds: list[str]) -> Changes:
    """All layers or none of a kind; r is replaced by the padded rank once a first kind was loaded."""
    config, tensors = _open(folder)
    pairs = {module: (A, B) for module, A, B in _pairs(tensors)}
    rank, layers = config["r"], base.config.num_hidden_layers
    changes: Changes = {}
    for kind in kinds:
        names = [kind.format(layer) for layer in range(layers if "{}" in kind else 1)]
        if not all(name in pairs for name in names):
            continue
        scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
        padded = {
            max(8, -(-pairs[n][0].shape[0] // 16) * 16 if pairs[n][0].shape[0] > 8 else 8) for n in names
        }
        assert len(padded) == 1
        rank = padded.pop()
        assert rank <= 128
        for name in names:
            A, B = pairs[name]
            changes[f"{name}.weight"] = scale * (B @ A)
    return changes


_LLAMA = [
    *(f"model.layers.{{}}.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"model.layers.{{}}.mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")),
]


def tgi(folder: Path, base: Any) -> Changes:
    """As LoRAX, without GPT-2."""
    assert base.config.model_type in ("llama", "mixtral")
    kinds = _LLAMA if base.config.model_type == "llama" else _LLAMA[:4]
    return _stacked(folder, base, [*kinds])


def lorax(folder: Path, base: Any) -> Changes:
    """Names as its models list them."""
    if base.config.model_type == "gpt2":
        leaves = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        return _stacked(folder, base, [f"transformer.h.{{}}.{leaf}" for leaf in leaves])
    if base.config.model_type == "mixtral":
        return _stacked(folder, base, _LLAMA[:4])
    assert base.config.model_type == "llama"
    return _stacked(folder, base, [*_LLAMA, "lm_head"])


def tensorrt(folder: Path, base: Any) -> Changes:
    """α over each tensor's own rank; q, k and v in one layer together or not at all."""
    config, tensors = _open(folder)
    names = {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "w1",
        "w2",
        "w3",
    }
    assert not config.get("use_dora")
    modules = {module for module, _, _ in _pairs(tensors)}
    changes: Changes = {}
    for module, A, B in _pairs(tensors):
        parent, _, leaf = module.rpartition(".")
        assert leaf in names, module
        assert A.shape[0] <= 64
        if leaf in ("q_proj", "k_proj", "v_proj"):
            assert all(f"{parent}.{other}" in modules for other in ("q_proj", "k_proj", "v_proj"))
        rank = math.sqrt(A.shape[0]) if config["use_rslora"] else A.shape[0]
        changes[f"{module}.weight"] = config["lora_alpha"] / rank * (B @ A)
    assert all("lora_" in name for name in tensors)
    return _join_experts(changes, base)


def llama_cpp(folder: Path, base: Any) -> Changes:
    """One alpha over each tensor's rank; rows of llama's q and k lie in pairs."""
    import gguf

    reader = gguf.GGUFReader(folder / "adapter.gguf")
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    arch_name = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch_name)
    table = gguf.get_tensor_name_map(arch, base.config.num_hidden_layers)
    tensors = {t.name: torch.from_numpy(np.array(t.data)).float() for t in reader.tensors}
    own = {table.get_name(n): n for n, _ in base.named_modules() if table.get_name(n)}
    config = base.config
    stacks: dict[str, dict[str, torch.Tensor]] = {}
    changes: Changes = {}
    for name, A in tensors.items():
        if not name.endswith(".lora_a"):
            continue
        B = tensors[name.replace(".lora_a", ".lora_b")]
        scale = alpha / B.shape[-1] if alpha else 1.0
        stem = name.removesuffix(".weight.lora_a")
        if stem == "token_embd":
            changes[f"{own[stem]}.weight"] = (scale * (B @ A.t())).t()
            continue
        change = scale * (B @ A)
        if stem.endswith("_exps"):
            layer = re.search(r"\d+", stem)
            assert layer is not None
            kind = stem.rpartition(".")[2].split("_")[1]
            stacks.setdefault(f"model.layers.{layer[0]}.mlp.experts", {})[kind] = change
            continue
        heads = {"attn_q": config.num_attention_heads, "attn_k": getattr(config, "num_key_value_heads", 0)}
        count = heads.get(stem.rpartition(".")[2])
        if arch_name == "llama" and count:
            width = change.shape[0] // count
            # In the file, row 2i of a head is row i of its first half, row 2i + 1 row i of the second.
            order = [
                h * width + (i // 2) + (i % 2) * (width // 2) for h in range(count) for i in range(width)
            ]
            back = torch.empty_like(change)
            back[order] = change
            change = back
        changes[f"{own[stem]}.weight"] = change
    for module, kinds in stacks.items():
        if "gate" in kinds:
            changes[f"{module}.gate_up_proj"] = torch.cat([kinds["gate"], kinds["up"]], dim=1)
        if "down" in kinds:
            changes[f"{module}.down_proj"] = kinds["down"]
    return changes


def ollama(folder: Path, base: Any) -> Changes:
    """llama.cpp's rule, behind a Modelfile that names the file."""
    assert "ADAPTER ./adapter.gguf" in (folder / "Modelfile").read_text()
    return llama_cpp(folder, base)


def mlx(folder: Path, base: Any) -> Changes:
    """One scale and one rank; x A B; DoRA divides by the norms of the merged rows."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "adapters.safetensors").items()}
    scale, rank = config["lora_parameters"]["scale"], config["lora_parameters"]["rank"]
    stacks: dict[str, dict[str, torch.Tensor]] = {}
    changes: Changes = {}
    for name, A in tensors.items():
        if not name.endswith(".lora_a"):
            continue
        stem = name.removesuffix(".lora_a")
        assert stem in config["lora_parameters"]["keys"]
        B = tensors[f"{stem}.lora_b"]
        if ".switch_mlp." in stem:
            assert A.shape[1] == rank
            module, _, leaf = stem.rpartition(".")
            module = module.replace(".block_sparse_moe.switch_mlp", ".mlp.experts")
            stacks.setdefault(module, {})[leaf] = scale * (B @ A)
            continue
        assert A.shape[1] == rank
        if stem.endswith("embed_tokens"):
            changes[f"{stem}.weight"] = scale * (A @ B)
            continue
        change = scale * (A @ B).t()
        if config["fine_tune_type"] == "dora":
            own = base.get_submodule(stem).weight.detach().float()
            merged = own + change
            change = (tensors[f"{stem}.m"] / merged.norm(dim=1))[:, None] * merged - own
        changes[f"{stem}.weight"] = change
    for module, kinds in stacks.items():
        if "gate_proj" in kinds:
            changes[f"{module}.gate_up_proj"] = torch.cat([kinds["gate_proj"], kinds["up_proj"]], dim=1)
        if "down_proj" in kinds:
            changes[f"{module}.down_proj"] = kinds["down_proj"]
    return changes


READERS = {
    "vllm": vllm,
    "sglang": sglang,
    "tgi": tgi,
    "lorax": lorax,
    "tensorrt-llm": tensorrt,
    "llama.cpp": llama_cpp,
    "ollama": ollama,
    "mlx": mlx,
}

READ_AT = {
    "tgi": ("3.3", "server/text_generation_server/adapters/lora.py"),
    "lorax": ("0.12", "server/lorax_server/adapters/lora.py"),
    "tensorrt-llm": ("1.2", "tensorrt_llm/lora_manager.py"),
    "ollama": ("0.22", "convert/convert_llama_adapter.go"),
    "mlx": ("0.32", "mlx_lm/tuner/utils.py"),
}
"""Of engines that are known by their sources alone: the release whose rule is rebuilt above, and where it stands."""
