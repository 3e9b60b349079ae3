"""What the tests of loading share."""

from __future__ import annotations

import pytest
from tests.anatomy.anatomy_cases import build


@pytest.fixture
def small():
    """``small("llama", num_hidden_layers=5)``: the small config of a case, changed."""
    return build
