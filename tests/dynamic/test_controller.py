"""A run that places its adapters itself: what moves, what stays, and that it goes on bit for bit."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tests.tiny import tiny_anatomy, tiny_model
from tests.training.small import adapted, encoded, weights

from loratlas.dynamic.controller import PlacementController
from loratlas.dynamic.decision_schedule import DecisionSchedule
from loratlas.dynamic.policies.known_policies import POLICIES, policy_named
from loratlas.errors import Interrupted, OutputError, SettingsError
from loratlas.training.loop import fit
from loratlas.training.settings import Settings

STEPS = 12
SITES = [
    site for site in tiny_anatomy("llama").sites if site.role.startswith(("attn.", "ffn.")) and site.adaptable
]
USED = sum(site.lora_parameters(4) for site in SITES)


def settings(**changes):
    base = {
        "steps": STEPS,
        "lr": 2e-2,
        "batch_size": 4,
        "dtype": "float32",
        "save_every": 100,
        "compile": "off",
    }
    return Settings(**{**base, **changes})


def hook(name="energy", **changes):
    schedule = changes.pop("schedule", DecisionSchedule(head=4, every=3))
    return PlacementController(SITES, policy_named(name), budget=USED, schedule=schedule, **changes)


def run(model, controller, **options):
    wanted = options.pop("settings", settings())
    return fit(model, encoded(20), wanted, hooks=[controller], packed=True, **options)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_keeps_its_budget_and_leaves_an_ordinary_adapter(name, tmp_path):
    model, controller = adapted(), hook(name)
    result = run(model, controller)
    assert result.steps == STEPS
    assert [decision.step for decision in controller.decisions] == [4]  # until half of the run
    ranks = controller.ranks(model)
    spent = sum(site.lora_parameters(ranks[site.path]) for site in SITES)
    assert spent == sum(p.numel() for p in model.parameters() if p.requires_grad) <= USED
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(other(input_ids=tokens).logits, model.eval()(input_ids=tokens).logits)


def test_moves_are_recorded_with_reason_price_and_loss():
    model, controller = adapted(), hook("random")
    run(model, controller)
    moves = controller.moves
    assert moves
    assert {move.step for move in moves} == {4}
    for move in moves:
        site = next(site for site in SITES if site.path == move.path)
        assert move.price == (move.after - move.before) * site.lora_parameters(1)
        assert move.reason == "drawn at random"
        assert move.before == 4
        assert controller.ranks(model)[move.path] == move.after
        assert move.loss_before > 0
        assert move.loss_after > 0
    assert sum(move.price for move in moves) <= 0


def test_a_run_without_moves_is_the_run_without_a_controller():
    """Watching changes nothing: to the bit the same weights."""
    watched, plain = adapted(), adapted()
    run(watched, hook("none"))
    fit(plain, encoded(20), settings(), packed=True)
    kept = weights(watched)
    assert all(torch.equal(value, kept[name]) for name, value in weights(plain).items())


@pytest.mark.parametrize("name", ["weighted", "gradient", "elalora", "random"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_anywhere_and_resumed_is_never_killed(tmp_path, name, dtype):
    schedule = DecisionSchedule(head=4, every=3, until=0.9)
    wanted = settings(dtype=dtype)
    whole, reference = adapted(dtype=dtype), hook(name, schedule=schedule)
    expected = run(whole, reference, settings=wanted)
    assert [decision.step for decision in reference.decisions] == [4, 7, 10]
    for stop in (1, 3, 4, 5, 8, 10, 11):
        out = tmp_path / str(stop)

        def interrupt(event, stop=stop):
            if event.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted):
            run(
                adapted(dtype=dtype),
                hook(name, schedule=schedule),
                settings=wanted,
                out=out,
                on_step=interrupt,
            )
        resumed, controller = adapted(dtype=dtype), hook(name, schedule=schedule)
        result = run(resumed, controller, settings=wanted, out=out, resume=True)
        assert [point.nll for point in result.curve] == [point.nll for point in expected.curve]
        assert controller.decisions == reference.decisions
        kept = weights(resumed)
        assert all(torch.equal(value, kept[name]) for name, value in weights(whole).items())


def test_another_policy_or_budget_is_another_run(tmp_path):
    run(adapted(), hook("energy"), out=tmp_path)
    with pytest.raises(OutputError, match=r"hooks\.placement\.policy was 'energy', now 'descent'"):
        run(adapted(), hook("descent"), out=tmp_path, resume=True)
    schedule = DecisionSchedule(head=4, every=3)
    controller = PlacementController(SITES, policy_named("energy"), budget=USED - 1, schedule=schedule)
    with pytest.raises(OutputError, match=r"hooks\.placement\.budget"):
        run(adapted(), controller, out=tmp_path, resume=True)


def test_a_budget_falls_from_decision_to_decision():
    schedule = DecisionSchedule(head=4, every=2, until=0.9, peak=1.5)
    target = USED * 2 // 3
    controller = PlacementController(SITES, policy_named("adalora"), budget=target, schedule=schedule)
    run(adapted(), controller)
    used = [decision.parameters for decision in controller.decisions]
    assert used == sorted(used, reverse=True)
    for number, parameters in enumerate(used, 1):
        assert parameters <= schedule.allowed(target, number, len(used))
    assert used[-1] > 0.9 * target


LEAST = sum(site.lora_parameters(1) for site in SITES)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_ends_within_a_budget_below_what_it_began_with(name, every):
    """Also below rank 1 everywhere, and also where the policy by itself moves nothing."""
    budget = LEAST * 3 // 4
    schedule = DecisionSchedule(head=4, every=every, until=0.9, peak=1.5)
    controller = PlacementController(SITES, policy_named(name), budget=budget, schedule=schedule)
    model = adapted(rank=1)
    run(model, controller)
    due = schedule.steps(STEPS)
    assert len(controller.decisions) == len(due) == (1 if every is None else 4)
    for number, decision in enumerate(controller.decisions, 1):
        assert decision.parameters <= schedule.allowed(budget, number, len(due))
        assert all(move.reason for move in decision.moves)
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert left == controller.decisions[-1].parameters <= budget


def test_halves_that_disagree_do_not_keep_what_the_budget_does_not_leave(monkeypatch):
    monkeypatch.setattr("loratlas.dynamic.policies.head.kappa", lambda tau: 0.0)
    controller = PlacementController(
        SITES, policy_named("weighted"), budget=USED // 2, schedule=DecisionSchedule(head=4)
    )
    run(adapted(), controller)
    (decision,) = controller.decisions
    assert decision.note == "no signal; the budget takes ranks"
    assert 0.9 * USED / 2 < decision.parameters <= USED // 2
    assert {move.reason for move in decision.moves} == {"the budget"}


def test_at_most_so_many_sites_change():
    controller = hook("energy", most=2)
    run(adapted(), controller)
    assert len(controller.moves) <= 2


def test_a_head_longer_than_the_run():
    with pytest.raises(SettingsError, match="a run of 12 steps"):
        hook(schedule=DecisionSchedule(head=12)).check(STEPS)
    with pytest.raises(SettingsError, match="too few"):
        hook(schedule=DecisionSchedule(head=2)).check(STEPS)


def test_attention_is_refused_where_none_can_be_seen():
    """An attention that is written out does not go through what can be watched."""
    model = adapted()
    model.get_base_model().config._attn_implementation = "eager"
    with pytest.raises(SettingsError, match="no attention pattern can be seen"):
        fit(model, encoded(20), settings(), hooks=[hook("attention")], packed=False)


@pytest.mark.parametrize("name", ["energy", "gradient"])
def test_rate_and_placement_are_decided_in_one_head_as_if_the_rate_had_been_given(name, tmp_path):
    wanted, later = settings(steps=60, lr="auto"), DecisionSchedule(head=6)
    model, controller = adapted(), hook(name, schedule=later)
    result = run(model, controller, settings=wanted)
    assert result.rates is not None
    assert len(result.rates.tried) > 1
    given, plain = adapted(), hook(name, schedule=later)
    run(given, plain, settings=settings(steps=60, lr=result.lr))
    assert controller.decisions == plain.decisions
    assert bool(controller.moves) == (name == "energy")  # six steps say too little of gradients
    weight = weights(model)
    assert all(torch.equal(value, weight[key]) for key, value in weights(given).items())

    taken = []

    def interrupt(rate, event):
        taken.append(event.step)
        if len(taken) == 6:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(adapted(), hook(name, schedule=later), settings=wanted, out=tmp_path, on_trial=interrupt)
    resumed, other = adapted(), hook(name, schedule=later)
    run(resumed, other, settings=wanted, out=tmp_path, resume=True)
    assert other.decisions == plain.decisions
    assert all(torch.equal(value, weight[key]) for key, value in weights(resumed).items())


def test_a_placement_that_is_decided_before_the_rate_is_refused():
    with pytest.raises(SettingsError, match="head=5"):
        run(adapted(), hook(schedule=DecisionSchedule(head=4)), settings=settings(steps=60, lr="auto"))
