"""A type that transformers may add one day: unidentified matrices are listed, the rest is usable, no guess."""

from __future__ import annotations

import json

import pytest
import torch
from anatomy_cases import build
from torch import nn
from transformers import LlamaForCausalLM

from loratlas import place, read
from loratlas.errors import PlacementError


class Carousel(nn.Module):
    """Something between a feed-forward and nothing that is known: sorted channels of one map weigh another's."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.whirl = nn.Linear(hidden, hidden, bias=False)
        self.turn = nn.Linear(hidden, hidden, bias=False)
        self.spokes = nn.Parameter(torch.empty(3, hidden, hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = self.whirl(x).argsort(-1)
        return torch.einsum("bti,sij->btj", self.turn(x).gather(-1, order), self.spokes)


class FutureForCausalLM(LlamaForCausalLM):
    """A Llama whose feed-forward is such a thing."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Carousel(config.hidden_size)


@pytest.fixture
def future():
    with torch.device("meta"):
        return FutureForCausalLM(build("llama"))


def test_unidentified_matrices_are_listed_with_a_reason_and_the_rest_is_known(future):
    anatomy = read(future)
    unknown = {item.path.partition("layers.0.")[2] for item in anatomy.unresolved} - {""}
    assert unknown == {"mlp.whirl.weight", "mlp.turn.weight", "mlp.spokes"}
    assert all(item.reason for item in anatomy.unresolved)
    known = {site.role for site in anatomy if site.layer == 0}
    assert known == {"attn.q", "attn.k", "attn.v", "attn.o"}
    assert json.loads(json.dumps(anatomy.to_json()))["unresolved"][0]["reason"]
    assert type(anatomy).from_json(anatomy.to_json()) == anatomy


def test_a_role_that_an_unknown_matrix_may_have_is_refused_unless_that_is_allowed(future):
    anatomy = read(future)
    with pytest.raises(PlacementError, match=r"mlp\.spokes \(.*allow_unresolved"):
        place(anatomy, "attention:4")
    plan = place(anatomy, "attention:4", allow_unresolved=True)
    assert {row.site.role for row in plan.rows} == {"attn.q", "attn.k", "attn.v", "attn.o"}
    plan.to_peft(future)
    exact = place(anatomy, '"model.layers.0.self_attn.q_proj":4')
    assert [row.site.layer for row in exact.rows] == [0]
    with pytest.raises(PlacementError, match=r"unresolved"):
        place(anatomy, '"model.layers.0.mlp.turn":4', allow_unresolved=True)
    with pytest.raises(PlacementError, match=r"matches nothing"):
        place(anatomy, "feedforward:4", allow_unresolved=True)
