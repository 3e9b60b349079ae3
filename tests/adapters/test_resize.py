"""Ranks changed in a live model: what stays, what goes, and what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.tiny import tiny_anatomy, tiny_model
from tests.training.small import adapted, encoded, weights

from loratlas.adapters.adam_moments import Moments, lengthened, rotated
from loratlas.adapters.layers.lean_lora import LeanLinear, faster, slower
from loratlas.adapters.peft_targets import adapted as layers_of
from loratlas.adapters.rank_change import closest, new_directions
from loratlas.adapters.resize import ranks_of, resize
from loratlas.errors import AttachError
from loratlas.placement.plan import place
from loratlas.training.loop import fit
from loratlas.training.master_weights import MasterWeights
from loratlas.training.optimizer import Optimizer
from loratlas.training.run_hooks import RunHook
from loratlas.training.settings import Settings

TOKENS = torch.arange(3, 35)[None]
V, O, DOWN = (  # noqa: E741
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def loss(model):
    return torch.nn.functional.cross_entropy(logits_with_graph(model)[0, :-1], TOKENS[0, 1:])


def logits_with_graph(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def reloaded(model, folder, kind):
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return PeftModel.from_pretrained(tiny_model(kind), folder)


def test_a_site_without_an_adapter_gets_one_and_gives_it_up_again(tmp_path):
    model = adapted()
    before = logits(model)
    base = model.get_base_model().model.layers[0].self_attn.o_proj.base_layer
    first = resize(model, {O: 0})
    assert type(model.get_base_model().model.layers[0].self_attn.o_proj) is torch.nn.Linear
    assert model.get_base_model().model.layers[0].self_attn.o_proj is base
    assert not any("layers.0.self_attn.o_proj.lora" in name for name, _ in model.named_parameters())
    assert (first.changes[0].before, first.changes[0].after, first.changes[0].lost) == (4, 0, 1.0)
    gone = logits(model)
    assert not torch.allclose(gone, before)
    assert torch.equal(logits(reloaded(model, tmp_path / "without", "llama")), gone)
    second = resize(model, {O: 3})
    assert torch.equal(logits(model), gone)  # B is 0
    layer = layers_of(model)[O.removesuffix(".weight")]
    assert (layer.r, layer.scaling, layer.lora_A["default"].weight.shape[0]) == (
        {"default": 3},
        {"default": 2.0},
        3,
    )
    assert {old is None for old, _ in second.replaced.values()} == {True}
    assert all(new.requires_grad for _, new in second.replaced.values())
    loss(model).backward()
    assert layer.lora_B["default"].weight.grad.any()
    assert torch.equal(logits(reloaded(model, tmp_path / "with", "llama")), gone)


def test_directions_of_the_gradient_come_first_and_only_those_that_are_new():
    A = torch.eye(2, 6)
    proposed = torch.stack([torch.eye(6)[0], torch.eye(6)[1] + torch.eye(6)[4], torch.eye(6)[5]])
    rows = new_directions(A, 3, d_in=6, seed=1, proposed=proposed)
    size = 3**-0.5
    torch.testing.assert_close(rows[:2], torch.stack([torch.eye(6)[4], torch.eye(6)[5]]) * size)
    assert rows[2].abs().max() <= 6**-0.5
    assert torch.equal(rows, new_directions(A, 3, d_in=6, seed=1, proposed=proposed))
    assert not torch.equal(rows[2], new_directions(A, 3, d_in=6, seed=2, proposed=proposed)[2])
    model = adapted()
    direction = torch.randn(1, 48, generator=torch.Generator().manual_seed(0))
    resize(model, {V: 5}, directions={V: direction})
    grown = layers_of(model)[V.removesuffix(".weight")].lora_A["default"].weight.detach()
    assert (grown[:4] @ grown[4]).abs().max() < 1e-6
    old = torch.linalg.qr(grown[:4].t())[0]
    rest = direction[0] - old @ (old.t() @ direction[0])
    assert torch.nn.functional.cosine_similarity(rest, grown[4], dim=0) > 1 - 1e-5


def test_gradients_at_the_closest_adapter_are_the_turned_ones():
    """Where nothing is lost, the function is the same one: its gradient in the new basis is what the moments are."""
    model = adapted()
    layer = layers_of(model)[V.removesuffix(".weight")]
    with torch.no_grad():  # a product of rank 2 in four directions
        mix = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
        layer.lora_A["default"].weight.copy_(mix @ layer.lora_A["default"].weight[:2])
    loss(model).backward()
    names = [f"base_model.model.{V.removesuffix('.weight')}.lora_{f}.default.weight" for f in "AB"]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if name in names}
    given = {n: Moments(first=g, second=g * g) for n, g in gradients.items()}
    before = logits(model)
    resized = resize(model, {V: 2}, moments=given)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    assert resized.changes[0].lost < 1e-9
    model.zero_grad()
    loss(model).backward()
    now = {name: p.grad for name, p in model.named_parameters() if name in names}
    torch.testing.assert_close(resized.moments[names[1]].first, now[names[1]], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(resized.moments[names[0]].first, now[names[0]], rtol=1e-4, atol=1e-7)
    assert all(bool((m.second >= 0).all()) for m in resized.moments.values())


def test_the_second_moment_of_uncorrelated_directions_is_that_of_their_mixture():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 3.0, 0.2])
    draws = torch.randn(40_000, 3, generator=generator) * spread
    R = torch.randn(2, 3, generator=generator)
    kept = Moments(first=draws.mean(0)[:, None], second=draws.square().mean(0)[:, None])
    turned = rotated(kept, R, dim=0, steps=7)
    mixed = draws @ R.t()
    torch.testing.assert_close(turned.first[:, 0], mixed.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(turned.second[:, 0], mixed.square().mean(0), rtol=0.03, atol=0)


def test_directions_of_unlike_ages_are_mixed_without_their_bias():
    """Constant gradients: the corrected mean of any age is the gradient itself, also after they are mixed."""
    g, ages = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [9.0]])
    kept = Moments(first=(1 - 0.9**ages) * g, second=(1 - 0.999**ages) * g * g, age=ages)
    R = torch.tensor([[0.6, 0.8]])
    turned = rotated(kept, R, dim=0, steps=9)
    assert turned.age is not None
    assert float(turned.age) == pytest.approx(0.36 * 2 + 0.64 * 9)
    assert float(turned.first / (1 - 0.9**turned.age)) == pytest.approx(0.6 + 1.6)
    assert float(turned.second / (1 - 0.999**turned.age)) == pytest.approx(0.36 + 0.64 * 4, rel=1e-4)
    longer = lengthened(turned, (3, 1), dim=0, steps=9)
    assert longer is not None
    assert longer.age is not None
    assert longer.age[:, 0].tolist() == pytest.approx([float(turned.age), 0, 0])
    assert longer.first[1:].abs().sum() == 0


def test_every_number_has_the_bias_correction_of_its_age():
    """One optimizer over old and young rows steps as two optimizers do, each with its own count."""
    settings = Settings(steps=9, lr=1e-2, dtype="float32", warmup=0.0, weight_decay=0.1, schedule="constant")

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A = torch.nn.Parameter(torch.ones(3, 4))

        def get_input_embeddings(self):
            return self

    model = Two()
    masters = MasterWeights(model)
    optimizer = Optimizer(masters, settings, steps=9)
    old, young = (torch.nn.Parameter(torch.ones(n, 4)) for n in (2, 1))
    alone = [
        torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1) for p in (old, young)
    ]
    for step in range(9):
        if step == 5:
            kept = optimizer.moments()["lora_A"]
            age = torch.tensor([[5.0], [5.0], [0.0]])
            first, second = kept.first.clone(), kept.second.clone()
            first[2], second[2] = 0, 0
            optimizer.rebuild({"lora_A": Moments(first=first, second=second, age=age)}, 5)
            state = optimizer.state()
            optimizer = Optimizer(masters, settings, steps=9)
            optimizer.load(state, 5)  # as a resumed run does
            alone[1] = torch.optim.AdamW([young], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
        g = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        masters.groups[0].gradients[0].copy_(g)
        optimizer.update(step, 0.0)
        old.grad, young.grad = g[:2].clone(), g[2:].clone()
        for each in alone:
            each.step()
        torch.testing.assert_close(masters.groups[0].views[0], torch.cat([old, young]), rtol=1e-6, atol=1e-7)
    assert optimizer.moments()["lora_A"].age[:, 0].tolist() == [9, 9, 4]


def test_a_direction_that_never_learned_is_dropped_without_a_loss():
    A, B = torch.randn(3, 8), torch.randn(5, 3)
    B[:, 1] = 0
    result = closest(A, B, 2)
    assert result.lost < 1e-12
    torch.testing.assert_close(result.B @ result.A, B @ A, rtol=1e-4, atol=1e-5)
    empty = closest(A, torch.zeros(5, 3), 2)
    assert not empty.B.any()
    assert empty.A.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_lean_layers_stay_lean_and_in_step(tmp_path):
    model, plain = (adapted() for _ in range(2))
    faster(model)
    for each in (model, plain):
        resize(each, {O: 0, "model.layers.1.self_attn.q_proj": 0, DOWN: 2})
        resize(each, {"model.layers.1.self_attn.q_proj": 6})
    assert {type(layer) for layer in layers_of(model).values()} == {LeanLinear}
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)
    group = layers_of(model)["model.layers.1.self_attn.q_proj"]._group
    assert len(group.layers) == 3
    assert not group.separate
    slower(model)
    assert torch.equal(logits(model), logits(plain))


def test_the_projects_own_adapter_of_a_resized_model(tmp_path):
    from loratlas.adapters.stored.adapter_files import save_adapter
    from loratlas.adapters.stored.load_adapter import load_adapter

    base = tiny_model("llama")
    model = place(tiny_anatomy("llama"), "attention:4 + ffn.down:2").attach(base, seed=1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    resize(model, {V: 1, DOWN: 0, "model.layers.0.mlp.up_proj.weight": 3, O: 7})
    want = logits(model)
    save_adapter(model, tmp_path / "a")
    assert torch.equal(logits(load_adapter(tiny_model("llama"), tmp_path / "a")), want)


def test_alpha_follows_so_that_the_scale_is_the_same_number():
    for rslora in (False, True):
        config = LoraConfig(r=3, lora_alpha=7, target_modules=["v_proj", "o_proj"], use_rslora=rslora)
        model = get_peft_model(tiny_model("llama"), config)
        scale = layers_of(model)[V.removesuffix(".weight")].scaling["default"]
        resize(model, {V: 11, O: 5})
        for path, rank in ((V, 11), (O, 5)):
            layer = layers_of(model)[path.removesuffix(".weight")]
            assert layer.scaling["default"] == scale
            root = rank**0.5 if rslora else rank
            assert layer.lora_alpha["default"] / root == scale


class Moves(RunHook):
    """Changes ranks after some steps, and does the same again where a run goes on."""

    name = "moves"

    def __init__(self, moves):
        self.moves, self.done = moves, []

    def after_step(self, run, event):
        if event.step in self.moves:
            self.done.append(event.step)
            self.move(run, self.moves[event.step], event.step)

    def move(self, run, ranks, step):
        run.change_parameters(
            lambda: resize(run.model, ranks, moments=run.optimizer.moments(), steps=step).moments
        )

    def state(self):
        return {}, {"done": self.done}

    def load_state(self, run, tensors, values):
        self.done = values["done"]
        for step in self.done:
            self.move(run, self.moves[step], step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_whose_ranks_change_goes_on_bit_for_bit(tmp_path, dtype):
    moves = {3: {O: 0, V: 6, DOWN: 2}, 6: {O: 2, V: 3, "model.layers.0.mlp.up_proj.weight": 0}}
    settings = Settings(
        steps=9, lr=1e-2, batch_size=4, dtype=dtype, save_every=100, warmup=0.0, loraplus=2.0, compile="off"
    )
    whole = adapted(dtype=dtype)
    reference = fit(whole, encoded(20), settings, hooks=[Moves(moves)], packed=True)
    for stop in (2, 3, 4, 6, 7):
        out = tmp_path / str(stop)

        def interrupt(event, stop=stop):
            if event.step == stop:
                raise KeyboardInterrupt

        from loratlas.errors import Interrupted

        with pytest.raises(Interrupted):
            fit(
                adapted(dtype=dtype),
                encoded(20),
                settings,
                hooks=[Moves(moves)],
                out=out,
                on_step=interrupt,
                packed=True,
            )
        resumed = adapted(dtype=dtype)
        result = fit(resumed, encoded(20), settings, hooks=[Moves(moves)], out=out, resume=True, packed=True)
        assert [p.nll for p in result.curve] == [p.nll for p in reference.curve]
        kept = weights(resumed)
        assert all(torch.equal(value, kept[name]) for name, value in weights(whole).items())
        assert ranks_of(resumed) == ranks_of(whole)


def test_memory_of_what_was_dropped_is_freed():
    """Half the budget gone: adapter, gradient and optimizer take at most 55 % of what they took."""
    sizes = {}

    class Weigh(Moves):
        name = "weigh"

        def on_gradient(self, run):
            held = [*run.masters.lasting(), *run.optimizer.state().values(), *run._previous]
            held += [p for p in run.model.parameters() if p.requires_grad]
            sizes[run.counters.done] = sum(
                {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values()
            )

    model = adapted(rank=8)
    moves = {3: dict.fromkeys(layers_of(model), 4)}
    settings = Settings(steps=6, lr=1e-2, batch_size=4, dtype="float32", warmup=0.0)
    fit(model, encoded(20), settings, hooks=[Weigh(moves)], packed=True)
    assert sizes[5] <= 0.55 * sizes[2]


REFUSED = [
    (lambda: tiny_model("llama"), {V: 2}, "no PeftModel"),
    (adapted, {"model.layers.1.self_attn.v_prj.weight": 2}, "no site of that name"),
    (adapted, {V: -1}, "not a count"),
    (adapted, {V: 17}, "rank is 16 at most"),
    (adapted, {V: 2, V.removesuffix(".weight"): 3}, "one site under two names"),
    (adapted, {"model.embed_tokens.weight": 2}, "no linear map"),
    (lambda: adapted(use_dora=True), {V: 2}, "more than two factors"),
    (lambda: merged(adapted()), {V: 2}, "merged into the base"),
    (lambda: second(adapted()), {V: 2}, "the adapters default, other"),
    (lambda: place(tiny_anatomy("llama"), "q:2").attach(tiny_model("llama"), init="olora"), {V: 2}, "OLoRA"),
]


def merged(model):
    model.merge_adapter()
    return model


def second(model):
    model.add_adapter("other", LoraConfig(target_modules=["v_proj"]))
    return model


@pytest.mark.parametrize(("make", "ranks", "says"), REFUSED)
def test_what_cannot_change_is_refused_before_anything_does(make, ranks, says):
    model = make()
    before = ranks_of(model)
    with pytest.raises(AttachError, match=says):
        resize(model, ranks)
    assert ranks_of(model) == before


def test_one_site_has_to_stay():
    model = adapted()
    with pytest.raises(AttachError, match="needs one"):
        resize(model, dict.fromkeys(layers_of(model), 0))
    assert len(layers_of(model)) == 21


def test_a_name_in_an_error_works_when_it_is_typed():
    model = adapted()
    with pytest.raises(AttachError) as caught:
        resize(model, {"model.layers.1.self_attn.v_prj.weight": 2})
    resize(model, {caught.value.instead.split(" or ")[0]: 2})
