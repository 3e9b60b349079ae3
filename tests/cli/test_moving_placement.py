"""`train --placement auto`: moves in the JSON, in the folder and on the terminal, exact resume, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import loratlas
from loratlas.api.listener import Silent
from loratlas.api.moving_placement import controller
from loratlas.dynamic.moving_plan import Moving, start
from loratlas.errors import Interrupted
from loratlas.models.config import load_config
from loratlas.sources import base_config, read
from loratlas.training.run import RunState

MODEL, DATA = "demo:llama-mini", "demo:facts-300"
AUTO = (
    "train", MODEL, DATA, "--placement", "auto", "--budget", "like=all:2", "--steps", "10", "--lr", "0.02", "--head",
    "4", "--batch-size", "4", "--max-length", "48", "--limit", "64", "--dtype", "float32", "--compile", "off",
)  # fmt: skip


def test_moves_are_recorded_and_a_stopped_run_goes_on_to_the_same_adapter(cli, tmp_path: Path, monkeypatch):
    out, stopped_out = tmp_path / "whole", tmp_path / "stopped"
    outcome = cli(*AUTO, "--signal", "random", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    numbers = outcome.json
    assert [decision["step"] for decision in numbers["decisions"]] == [4]
    assert numbers["moves"]
    names = {"step", "path", "before", "after", "reason", "price", "loss_before", "loss_after"}
    assert names <= set(numbers["moves"][0])
    plan = json.loads((out / "plan.json").read_text())
    assert plan["trainable"] == numbers["trainable"] <= 77_824
    ranks = {site["path"]: site["rank"] for site in plan["sites"]}
    for move in numbers["moves"]:
        assert ranks.get(move["path"], 0) == move["after"]
    assert all(site["alpha"] == 2 * site["rank"] for site in plan["sites"])
    tensors = load_file(out / "adapter" / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == numbers["trainable"]
    assert "placement, step 4:" in " ".join(outcome.err.split())
    assert "no step is added" in " ".join(outcome.err.split())

    own = RunState.step

    def stopped(self):
        event = own(self)
        if self.counters.done == 6:
            raise KeyboardInterrupt
        return event

    words = (*AUTO, "--signal", "random", "--out", stopped_out)
    monkeypatch.setattr(RunState, "step", stopped)
    assert cli(*words).code == Interrupted.exit_code
    monkeypatch.setattr(RunState, "step", own)
    again = cli(*words, "--resume", "--json")
    assert again.code == 0, again.err
    assert again.json["moves"] == numbers["moves"]
    other = load_file(stopped_out / "adapter" / "adapter_model.safetensors")
    assert tensors.keys() == other.keys()
    assert all(torch.equal(tensors[name], other[name]) for name in tensors)
    refused = cli(*AUTO, "--signal", "energy", "--out", stopped_out, "--resume")
    assert refused.code == 2
    assert "hooks.placement.policy was 'random', now 'energy'" in refused.words

    drawn = cli("report", out, "--json")
    assert drawn.code == 0, drawn.err
    page = (out / "report.html").read_text()
    assert drawn.json["page"] == str(out / "report.html")
    assert all(f"{move['path']}: rank {move['before']}" in page for move in numbers["moves"])
    assert "<script src=" not in page  # it opens offline
    (out / "plan.json").unlink()
    assert "stayed where they were" in cli("report", out).words


def test_the_api_says_and_draws_the_same():
    run = loratlas.train(
        MODEL,
        DATA,
        placement="auto",
        budget="like=all:2",
        signal="random",
        head=4,
        steps=10,
        lr=0.02,
        batch_size=4,
        max_length=48,
        limit=64,
    )
    assert run.moves
    heat, marks = run.plot_placement().data
    assert len(heat.y) == len({*run.plan.ranks, *(move["path"] for move in run.moves)})
    assert list(marks.y) == [move["path"] for move in run.moves]
    assert "sites whose rank moved" in str(run)


def test_a_run_that_places_itself_decides_how_to_begin_unless_told(cli, tmp_path: Path):
    outcome = cli(*AUTO, "--out", tmp_path / "decided", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["start"]["init"] == "eva"
    assert outcome.json["settings"]["init"] == "auto"
    said = " ".join(outcome.err.split())
    known = ["adapters begin along their inputs", "adapters begun along their inputs", "placement, step 4:"]
    assert sorted(known, key=said.index) == known
    plain = cli(*AUTO, "--init", "true", "--out", tmp_path / "plain", "--json")
    assert plain.code == 0, plain.err
    assert plain.json["start"] is None
    assert plain.json["settings"]["init"] is True
    assert "adapters begin" not in plain.err
    assert "begun along their inputs" not in plain.err
    assert (
        "moves by weighted, adapters begun as PEFT begins them, were better in 1, worse in 0 of 12"
        in " ".join(plain.err.split())
    )


REFUSED = [
    (("--head", "10"), "a run of 10"),
    (("--head", "2"), "too few"),
    (("--head", "1"), "a head of 1 step "),
    (("--head", "500%"), "--head 500% found: a share that leaves nothing of the run"),
    (("--head", "100%"), "a share that leaves nothing of the run"),
    (("--head", "150%"), "--head 150% found: a share"),
    (("--head", "much"), "neither a share nor a count"),
    (("--decide", "often"), "not understood"),
    (("--signal", "magic"), "no such policy"),
    (("--by", "gradient"), "a column of a scan, and no scan"),
    (("--init", "olora"), "whose ranks cannot change"),
    (("--budget", "params=10"), "rank 1 at each site, which costs 38,912"),
    (("--budget", "params=10B"), "sites, as far as matrices allow, which take 9,175,040"),
    (
        ("--placement", "all:2", "--signal", "energy", "--budget", "params=1M"),
        "a placement that stays as it is",
    ),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_done_is_a_sentence_before_the_first_step(cli, words, said, tmp_path: Path):
    outcome = cli(*AUTO, *words, "--out", tmp_path / "run")
    assert outcome.code == 2, outcome.err
    assert said in outcome.words
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("budget", "full"), [("like=all:64", False), ("params=9175040", True)])
def test_where_all_sites_have_their_most_ranks_it_is_said_that_none_can_move(budget, full):
    moving, listener, anatomy = Moving.read(None, None, None), Silent(), read(MODEL)
    begun = start(moving, anatomy, budget=budget)
    assert set(begun.plan.ranks.values()) == ({64} if not full else {128, 256})
    hook = controller(moving, begun, load_config(base_config(MODEL)), steps=100, init=True, listener=listener)
    assert any("so that none can move" in note for note in listener.notes) is full
    assert hook.ceiling == (128 if not full else 256)


def test_a_budget_below_one_rank_everywhere_is_reached_by_the_decision(cli, tmp_path: Path):
    outcome = cli(
        *AUTO, "--budget", "params=30000", "--signal", "energy", "--out", tmp_path / "run", "--json"
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["trainable"] <= 30_000
    assert outcome.json["decisions"][0]["parameters"] == outcome.json["trainable"]
    assert "30,000 parameters are left at the end" in " ".join(outcome.err.split())
    (line,) = [line for line in outcome.err.splitlines() if "step 4:" in line]
    assert "loss" in line
    assert len(line) <= 80
