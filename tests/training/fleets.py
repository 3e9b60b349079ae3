"""Runs that are trained in a fleet, and the same runs alone."""

from __future__ import annotations

from typing import Any

import torch
from tests.training.small import weights

from loratlas.adapters.attach import attach
from loratlas.adapters.trained_heads import detach_adapters
from loratlas.training.fleet.train_fleet import Fleet, Member
from loratlas.training.loop import fit


def losses(result: Any) -> torch.Tensor:
    """Of all steps."""
    return torch.tensor([point.nll for point in result.curve], dtype=torch.float64)


def alone(base: Any, data: Any, member: Member, *, packed: bool = True) -> tuple[Any, dict[str, Any]]:
    """(result, trained weights) of the run by itself."""
    settings = member.settings
    model = attach(member.rows, base, seed=settings.seed, dropout=settings.dropout)
    result = fit(model, data, settings, packed=packed)
    kept = weights(model)
    detach_adapters(model)
    return result, kept


def equals_its_runs_alone(base: Any, data: Any, members: list[Member], *, packed: bool) -> Fleet:
    """Train a fleet, and hold every run against the run alone (law 4); the base must be as it was."""
    before = {name: value.clone() for name, value in base.state_dict().items()}
    fleet, passes = Fleet(base, data, members, packed=packed), set()
    results = fleet.fit(on_step=lambda index, event: passes.add(fleet.passes.passes))
    asked = [member.settings for member in members]
    parts = sum(-(-own.batch_size // (own.micro_batch or own.batch_size)) for own in asked)
    assert min(passes) < parts  # some of them do share a pass
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for number, (member, result) in enumerate(zip(members, results, strict=True)):
        reference, kept = alone(base, data, member, packed=packed)
        torch.testing.assert_close(losses(result), losses(reference), rtol=1e-5, atol=0)
        assert (result.tokens, result.labelled_tokens) == (reference.tokens, reference.labelled_tokens)
        left = weights(model := fleet.peft_model(number))
        detach_adapters(model)
        assert left.keys() == kept.keys()
        for name, value in left.items():
            torch.testing.assert_close(value, kept[name], rtol=1e-3, atol=2e-5)
    return fleet
