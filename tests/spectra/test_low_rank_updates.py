"""Updates read from files are those that PEFT adds to the base, and their spectra those of the whole matrices."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.adapters.test_adapter_files import trained
from tests.adapters.test_architectures import randomise
from tests.adapters.test_stacks import config, live

from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.read_adapter import read_adapter
from loratlas.anatomy.read import read
from loratlas.errors import ModelError
from loratlas.placement.plan import place
from loratlas.spectra.low_rank_updates import effective_rank, updates_of
from loratlas.spectra.show_adapter import AdapterSpectrum, SiteSpectrum, spectrum


def deltas(model) -> dict[str, torch.Tensor]:
    """What PEFT adds to each matrix, by module or by parameter."""
    return {name: layer.get_delta_weight("default").detach() for name, layer in adapted(model).items()}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "phi3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_norms_and_effective_ranks_are_those_of_the_whole_matrices(tmp_path, model_type, rslora):
    text = "attention@top/2:3 + feedforward:2" + (" + embed:2" if model_type == "llama" else "")
    plan, model = trained(model_type, text, rslora=rslora)
    save_adapter(model, tmp_path / "a", plan_json=plan.to_json())
    spectra = spectrum(read_adapter(tmp_path / "a"))
    wanted = deltas(model)
    assert len(spectra.sites) == len(wanted) == len(plan.rows)
    for site, row in zip(spectra.sites, plan.rows, strict=True):
        assert (site.path, site.rank, site.role) == (row.site.path, row.rank, row.site.role)
        values = torch.linalg.svdvals(wanted[row.site.module].double())
        assert site.norm == pytest.approx(float((values**2).sum().sqrt()), rel=1e-6)
        assert site.effective_rank == pytest.approx(effective_rank(values[: row.rank]), rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", ["mixtral", "jetmoe"])
def test_stacks_of_experts_are_read_expert_by_expert(tmp_path, model_type):
    given = config(model_type, num_hidden_layers=2)
    # Ranks that differ between the parameters of one module, so that mistaking one for the other shows.
    roles = {"mixtral": "moe.gate_up:2 + moe.down:3 + q:2", "jetmoe": "moe:2 + q:3"}
    plan = place(read(given), roles[model_type])
    model = plan.attach(live(given), seed=1)
    randomise(model)
    save_adapter(model, tmp_path / "a", plan_json=plan.to_json())
    by_name = {site.path: site for site in spectrum(read_adapter(tmp_path / "a")).sites}
    wanted = deltas(model)
    assert set(by_name) == {row.site.path for row in plan.rows}
    for row in plan.rows:
        delta = wanted.get(row.site.path, wanted.get(row.site.module))
        assert by_name[row.site.path].norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert by_name[row.site.path].rank == row.rank
        assert by_name[row.site.path].experts == row.site.experts


def test_without_a_plan_and_without_a_base_the_leaf_is_the_role(tmp_path):
    _, model = trained("gpt2", "attn.qkv:3")
    save_adapter(model, tmp_path / "a")
    spectra = spectrum(read_adapter(tmp_path / "a"))
    assert [(site.role, site.layer) for site in spectra.sites] == [("c_attn", layer) for layer in range(3)]
    assert any("--base MODEL" in remark for remark in spectra.remarks)


def test_a_factor_without_its_partner_is_refused(tmp_path):
    _, model = trained("gpt2", "attn.qkv:3")
    save_adapter(model, tmp_path / "a")
    (tmp_path / "a" / "loratlas.json").unlink()
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if ".lora_B." in name))
    save_file(tensors, file)
    with pytest.raises(ModelError, match="without B"):
        updates_of(read_adapter(tmp_path / "a"))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    _, model = trained("gpt2", "attn.qkv:3")
    save_adapter(model, tmp_path / "a")
    (tmp_path / "a" / "loratlas.json").unlink()
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ModelError, match="NaN"):
        spectrum(read_adapter(tmp_path / "a"))


def test_shares_prints_and_figure(tmp_path):
    plan, model = trained("llama", "all:2")
    save_adapter(model, tmp_path / "a", plan_json=plan.to_json())
    norms = {row.site.path: 2.0 for row in plan.rows}
    spectra = spectrum(read_adapter(tmp_path / "a"), base_norms=norms)
    assert all(site.share == pytest.approx(site.norm / 2) for site in spectra.sites)
    assert max(map(len, str(spectra).splitlines())) <= 80
    assert "ffn.down" in str(spectra)
    figure = spectra.plot()
    assert len(figure.data) == 3
    assert list(figure.data[0].y) == list(spectra.by_role())
    assert figure.data[0].z[0][0] == spectra.by_role()[figure.data[0].y[0]][0].norm
    written = json.loads(json.dumps(spectra.to_json()))
    assert {"path", "rank", "norm", "effective_rank"} <= set(written["sites"][0])


def test_every_role_of_a_deep_model_stands_on_one_line():
    roles = ("attn.q", "attn.gate", "ffn.down")
    sites = tuple(
        SiteSpectrum(
            path=f"{role}.{layer}", role=role, layer=layer, rank=8 + layer % 5, norm=0.08012 + 0.01312 * (layer % 3),
            effective_rank=1.234 + layer % 7, share=0.0021734 * (1 + layer % 4), parameters=1, experts=None,
        )
        for role in roles
        for layer in range(32)
    )  # fmt: skip
    drawn = str(AdapterSpectrum(adapter="run", base="base", sites=sites)).splitlines()
    rule = next(index for index, line in enumerate(drawn) if line.startswith("──"))
    assert [line.split()[0] for line in drawn[rule + 1 : rule + 4]] == list(roles)
    assert not drawn[rule + 4]
    assert max(map(len, drawn)) <= 80
