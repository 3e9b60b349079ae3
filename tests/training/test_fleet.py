"""What a fleet does beyond law 4: a diverged run leaves the others alone, runs resume, and a run leaves as files."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model
from tests.training.small import encoded, weights

from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.adapters.trained_heads import detach_adapters
from loratlas.errors import Interrupted, SettingsError
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member, why_not_in_fleet
from loratlas.training.settings import Settings


def member(base, text, *, lr=5e-3, seed=0, out=None, **more):
    options = {"steps": 12, "batch_size": 3, "dtype": "float32", "save_every": 4, **more}
    return Member(rows=place(base, text).rows, settings=Settings(lr=lr, seed=seed, **options), out=out)


def losses(result):
    return torch.tensor([point.nll for point in result.curve])


def test_a_run_that_diverges_is_dropped_and_the_others_go_on():
    base, data = tiny_model("llama"), encoded(20)
    good = [member(base, "all:4"), member(base, "q,v:2", seed=1)]
    wild = member(base, "all:2", lr=1e30, clip=None)
    reference = Fleet(base, data, good).fit()
    first, diverged, second = Fleet(base, data, [good[0], wild, good[1]]).fit()
    assert diverged.diverged
    assert diverged.steps < 12
    for one, other in zip((first, second), reference, strict=True):
        assert not one.diverged
        torch.testing.assert_close(losses(one), losses(other), rtol=1e-5, atol=0)


@pytest.mark.parametrize("stop", [3, 7])
def test_interrupted_and_resumed(tmp_path, stop):
    base, data = tiny_model("llama"), encoded(20)

    def members(folder):
        out = [folder / name if folder else None for name in ("one", "two")]
        return [
            member(base, "all:4", out=out[0], dropout=0.1),
            member(base, "q,v:2", seed=1, steps=9, out=out[1]),
        ]

    def interrupt(place, event):
        if place == 0 and event.step == stop:
            raise KeyboardInterrupt

    whole = Fleet(base, data, members(None))
    reference = whole.fit()
    with pytest.raises(Interrupted, match="with resume"):
        Fleet(base, data, members(tmp_path)).fit(on_step=interrupt)
    resumed = Fleet(base, data, members(tmp_path))
    seen = []
    results = resumed.fit(resume=True, on_step=lambda place, event: seen.append((place, event.step)))
    assert (0, stop) not in seen
    for one, other in zip(results, reference, strict=True):
        torch.testing.assert_close(losses(one), losses(other), rtol=1e-5, atol=0)


def test_a_run_leaves_as_adapter_files(tmp_path):
    base, data = tiny_model("gpt2"), encoded(20)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    fleet = Fleet(base, data, [member(base, "all:4"), member(base, "ffn.up:3", seed=1)])
    fleet.fit()
    ids = torch.arange(3, 20)[None]
    for number in (0, 1):
        model = fleet.peft_model(number)
        wanted, kept = model(ids).logits.detach(), weights(model)
        assert kept
        save_adapter(model, tmp_path / str(number))
        detach_adapters(model)
        again = load_adapter(base, tmp_path / str(number))
        torch.testing.assert_close(again(ids).logits.detach(), wanted, rtol=0, atol=1e-6)
        detach_adapters(again)
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(type(m).__module__ != "loratlas.training.fleet.adapter_bank" for m in base.modules())
    assert all("forward" not in vars(m) for m in base.modules())


def test_what_cannot_be_in_a_fleet_is_refused_in_words():
    base, data = tiny_model("llama"), encoded(20)
    assert why_not_in_fleet(base, member(base, "all:4")) is None
    for more, words in (
        ({"init": "pissa"}, "changes the base"),
        ({"checkpointing": True, "dropout": 0.1}, "dropout masks"),
        ({"early_stop": 2}, "evaluated"),
        ({"report_to": ("tensorboard",)}, "tracker"),
    ):
        with pytest.raises(SettingsError, match=words):
            Fleet(base, data, [member(base, "all:4", **more)])
    Fleet(base, data, [member(base, "all:4")], packed=False)
