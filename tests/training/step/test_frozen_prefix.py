"""Frozen layers below the lowest adapter are computed once for every row, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import LAYERS, tiny_model
from tests.training.small import adapted, encoded, weights

from loratlas.errors import Interrupted
from loratlas.modeling import zero_dropout
from loratlas.placement.plan import place
from loratlas.training.fleet.train_fleet import Fleet, Member, detach_adapters
from loratlas.training.loop import fit
from loratlas.training.settings import Settings
from loratlas.training.step import compilation
from loratlas.training.step import frozen_prefix as prefix
from loratlas.training.step.frozen_prefix import layers_of

KINDS = ("gpt2", "llama", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", "opt", "gpt_neox", "olmo", "starcoder2",
         "cohere")  # fmt: skip


def settings(**changes):
    return Settings(
        **{
            "steps": 12,
            "lr": 1e-2,
            "batch_size": 4,
            "dtype": "float32",
            "save_every": 4,
            "compile": "off",
            **changes,
        }
    )


def top(kind="llama", text="all@last1:4", **options):
    model = tiny_model(kind)
    zero_dropout(model.config)
    dtype = options.pop("dtype", torch.float32)
    return place(model, text).attach(model.to(dtype), seed=0, **options)


def counted(model):
    """How often the lowest layer computes."""
    calls = []
    layer = layers_of(model).modules[0]
    inside = next(
        m for m in layer.modules() if isinstance(m, torch.nn.Linear) or "Conv1D" in type(m).__name__
    )
    inside.register_forward_hook(lambda *_: calls.append(None))
    return calls


def never(monkeypatch):
    monkeypatch.setattr(prefix, "SHARE", 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_layers_computed_every_time(kind, monkeypatch):
    data = encoded(9)
    # With B = 0 the first gradients of A are rounding alone, of which Adam makes whole steps.
    model = top(kind, init=False)
    calls = counted(model)
    result = fit(model, data, settings(), packed=True)
    assert result.kept_layers == LAYERS - 1
    assert len(calls) < 5  # the proof, and the rows; not twelve steps
    never(monkeypatch)
    other = top(kind, init=False)
    again = fit(other, data, settings(), packed=True)
    assert again.kept_layers == 0
    for one, two in zip(result.curve, again.curve, strict=True):
        assert one.nll == pytest.approx(two.nll, rel=1e-6)
    weight = weights(other)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, weight[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"checkpointing": True}, {"micro_batch": 1}, {"dropout": 0.1}, {"subset": 5}], ids=str
)
def test_settings_that_meet_kept_states(changes, monkeypatch):
    """Recomputed layers, micro-batches, masks of the adapters above, a subset of the rows."""
    data, dropout = encoded(9), changes.get("dropout", 0.0)
    result = fit(top(dropout=dropout), data, settings(**changes), packed=True)
    assert result.kept_layers == LAYERS - 1
    never(monkeypatch)
    again = fit(top(dropout=dropout), data, settings(**changes), packed=True)
    for one, two in zip(result.curve, again.curve, strict=True):
        assert one.nll == pytest.approx(two.nll, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory", [True, False])
def test_a_resumed_run_keeps_what_the_run_before_it_kept(tmp_path, monkeypatch, dtype, memory):
    """Bit for bit, whether memory allows it now or not."""
    data, wanted, kind = encoded(20), settings(dtype=dtype), getattr(torch, dtype)
    whole = top(dtype=kind)
    reference = fit(whole, data, wanted, packed=True)

    def interrupt(event):
        if event.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(top(dtype=kind), data, wanted, out=tmp_path, on_step=interrupt, packed=True)
    if not memory:
        never(monkeypatch)
    resumed = top(dtype=kind)
    result = fit(resumed, data, wanted, out=tmp_path, resume=True, packed=True)
    assert result.kept_layers == LAYERS - 1
    assert [point.nll for point in result.curve] == [point.nll for point in reference.curve]
    weight = weights(resumed)
    assert all(torch.equal(value, weight[name]) for name, value in weights(whole).items())


def test_a_fleet_shares_what_is_kept_by_depth(tmp_path):
    """Losses are those of the runs alone, also when the fleet was interrupted; the bottom run keeps nothing."""
    data, base = encoded(9), tiny_model("llama")
    texts = ("all@last1:4", "attention@last1:2", "all@last2:2", "all:2")

    def members(out):
        options = {"steps": 6, "save_every": 2}
        return [
            Member(
                rows=place(base, text).rows, settings=settings(seed=k, **options), out=out and out / str(k)
            )
            for k, text in enumerate(texts)
        ]

    def interrupt(place, event):
        if event.step == 3:
            raise KeyboardInterrupt

    results = Fleet(base, data, members(None)).fit()
    assert [result.kept_layers for result in results] == [2, 2, 1, 0]
    with pytest.raises(Interrupted):
        Fleet(base, data, members(tmp_path)).fit(on_step=interrupt)
    resumed = Fleet(base, data, members(tmp_path)).fit(resume=True)
    for member, result, again in zip(members(None), results, resumed, strict=True):
        model = place(base, texts[member.settings.seed]).attach(base, seed=member.settings.seed)
        alone = fit(model, data, member.settings, packed=True)
        detach_adapters(model)
        for one, two, three in zip(result.curve, alone.curve, again.curve, strict=True):
            assert one.nll == pytest.approx(two.nll, rel=1e-5)
            assert one.nll == pytest.approx(three.nll, rel=1e-5)


def test_nothing_is_kept_where_it_would_be_wrong_or_useless(monkeypatch):
    data = encoded(9)

    def kept(model, packed=True, **changes):
        return fit(model, data, settings(**{"steps": 4, **changes}), packed=packed).kept_layers

    assert kept(top(), steps=4) == LAYERS - 1
    assert kept(adapted()) == 0  # the lowest layer is adapted
    assert kept(top(), steps=2) == 0  # no row comes twice
    assert kept(top(), packed=False) == 0
    model = top()
    model.get_base_model().config.attention_dropout = 0.1
    assert kept(model) == 0
    model = top()
    model.get_input_embeddings().weight.requires_grad_(True)
    assert kept(model) == 0


def test_layers_that_look_past_their_neighbour_are_computed_every_time(monkeypatch):
    """A model whose top layer also reads what the lowest one read: the proof sees it."""
    model = top()
    lowest, *_, last = layers_of(model).modules
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.clear())
    lowest.input_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    def add(_, given, named):
        return (given[0] + sum(seen), *given[1:]), named

    last.register_forward_pre_hook(add, with_kwargs=True)
    assert fit(model, encoded(9), settings(steps=4), packed=True).kept_layers == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_layers_above_kept_states(monkeypatch):
    """Layers below hand on as they are, whatever was compiled; traced here, without the C++ compiler."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    data, text = encoded(9), "all@last2:4"
    result = fit(top(text=text), data, settings(steps=4, compile="on"), packed=True)
    assert (result.kept_layers, result.compiled) == (1, True)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 7  # four pieces, the first few twice
    reference = fit(top(text=text), data, settings(steps=4), packed=True)
    for one, two in zip(result.curve, reference.curve, strict=True):
        assert one.nll == pytest.approx(two.nll, rel=1e-5)


def test_forward_functions_are_put_back():
    model = top()
    fit(model, encoded(9), settings(steps=4), packed=True)
    assert not any("forward" in vars(layer) for layer in layers_of(model).modules)
