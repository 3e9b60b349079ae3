"""The command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from shell import Outcome

from loratlas.cli import run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """``cli("map", "demo:llama-mini")``: run a command here, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("LORATLAS_DEBUG", raising=False)

    def call(*words: Any) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call
