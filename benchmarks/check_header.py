"""How long and how much memory `check` takes on the header of an adapter for a base of 70 billion parameters.

The adapter is a sparse file: a header with every tensor of rank 16 on all linear layers of Llama-3-70B, and zeros
that no block of the disk holds. What is measured is the whole command in a process of its own.

    python benchmarks/check_header.py [OUT.json]
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, HIDDEN, KEYS, INNER, RANK, RUNS = 80, 8192, 1024, 28672, 16, 5
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip


def write_adapter(folder: Path) -> int:
    """Write the folder; bytes of its weights."""
    header, at = {}, 0
    for layer in range(LAYERS):
        for name, (d_out, d_in) in SHAPES.items():
            for letter, shape in (("A", (RANK, d_in)), ("B", (d_out, RANK))):
                size = 2 * shape[0] * shape[1]
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{letter}.weight"
                header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
                at += size
    text = json.dumps(header).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    names = sorted({name.rpartition(".")[2] for name in SHAPES})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "target_modules": names,
              "base_model_name_or_path": "meta-llama/Meta-Llama-3-70B"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    base = {"model_type": "llama", "num_hidden_layers": LAYERS, "num_attention_heads": 64, "hidden_size": HIDDEN,
            "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(base))
    return at


def main() -> None:
    seconds, processor = [], []
    with tempfile.TemporaryDirectory(prefix="loratlas-") as scratch:
        folder = Path(scratch)
        size = write_adapter(folder)
        command = [
            sys.executable,
            "-m",
            "loratlas",
            "check",
            str(folder),
            "--base",
            str(folder / "config.json"),
            "--json",
        ]
        for _ in range(RUNS):
            before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(time.perf_counter() - begun)
            processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        verdicts = {name: each["verdict"] for name, each in json.loads(done.stdout)["engines"].items()}
    by_name = {
        "what": "loratlas check of an adapter of rank 16 on all linear layers of a 70B Llama, a process each",
        "tensors": 2 * LAYERS * len(SHAPES),
        "adapter_bytes": size,
        "runs": RUNS,
        "load_average": os.getloadavg()[0],
        "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        "processor_seconds": {"median": statistics.median(processor), "min": min(processor)},
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "verdicts": verdicts,
    }
    text = json.dumps(by_name, indent=1) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
