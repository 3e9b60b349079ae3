"""`loratlas export --for ENGINE` from the command: folders, sizes, cuts, cards, refusals that leave nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conformance.adapter_cases import CASES, save_bases, save_case
from tests.serving.byte_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

from loratlas.api.export_run import export
from loratlas.cli import run
from loratlas.errors import ModelError, OutputError, RequestError, SettingsError
from loratlas.models.quiet import quiet
from loratlas.serving.cut_ranks import cut_to, lost_at, smallest_rank
from loratlas.serving.engine_export import write_for_engine
from loratlas.serving.updates import SiteUpdate

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def mixed(bases, tmp_path) -> Path:
    return save_case(BY_NAME["rank pattern"], bases["llama"], tmp_path / "mixed")


def test_for_sglang_by_the_command(mixed, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["export", str(mixed), "--for", "sglang", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["for"] == "sglang"
    assert said["check"] < 1e-4
    assert said["compared"] == "logits"
    assert said["padding_bytes"] > 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    assert type(config["lora_alpha"]) is int
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert "model.layers.0.self_attn.k_proj" in config["target_modules"]


def test_people_read_what_padding_costs_and_what_is_cheaper(mixed, tmp_path, capsys):
    assert run(["export", str(mixed), "--for", "vllm", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "bytes are zeros that vLLM wants" in said
    assert "--rank-tolerance 0." in said
    assert "vllm serve" in said
    assert "--max-lora-rank 8" in said


def test_the_suggested_cut_works(mixed, tmp_path):
    first = write_for_engine(mixed, tmp_path / "first", engine="vllm").shaped
    assert first.cheaper is not None
    share = float(first.cheaper.rpartition("--rank-tolerance ")[2].rstrip("."))
    second = write_for_engine(mixed, tmp_path / "second", engine="vllm", tolerance=share).shaped
    assert 0 < second.lost <= share
    assert second.bytes < first.bytes


def test_the_loss_of_a_cut_is_measured_on_rows(mixed, bases, tmp_path):
    from loratlas.api.export_run import losses_of_cut

    torch.manual_seed(0)
    written = write_for_engine(mixed, tmp_path / "out", engine="vllm", tolerance=0.9)
    assert written.shaped.lost > 0
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(bases["llama"])
    rows = [{"text": "abc"}]
    before, after = losses_of_cut(written, mixed, rows, tokenizer=tiny_tokenizer(base.config.vocab_size))
    assert before > 0
    assert before != after


def test_an_unknown_target_names_the_nearest(mixed, tmp_path):
    with pytest.raises(RequestError, match="target='vllm'"):
        export(mixed, tmp_path / "out", target="vlm")
    with pytest.raises(SettingsError, match="share"):
        export(mixed, tmp_path / "out", target="vllm", rank_tolerance=2)
    with pytest.raises(SettingsError, match="rank_tolerance"):
        export(mixed, tmp_path / "out", target="merged", rank_tolerance=0.1)
    with pytest.raises(SettingsError, match="data without rank_tolerance"):
        export(mixed, tmp_path / "out", target="vllm", data="rows.jsonl")
    with pytest.raises(ModelError, match=r"findings\.json"):
        export(mixed, tmp_path / "out", target="vllm", study=tmp_path)
    assert not (tmp_path / "out").exists()


def test_nothing_is_uploaded_without_a_token(mixed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(OutputError, match="no token"):
        export(mixed, tmp_path / "out", push_to="me/adapter")
    with pytest.raises(OutputError, match="OWNER/NAME"):
        export(mixed, tmp_path / "out", push_to="adapter")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base(mixed, bases, tmp_path):
    with pytest.raises(ModelError, match="no such matrix"):
        export(mixed, tmp_path / "out", target="vllm", base=str(bases["gpt2"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["vllm", "mlx", "ollama"])
def test_every_export_has_a_card(mixed, tmp_path, target):
    export(mixed, tmp_path / "out", target=target)
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert (
        f'base_model: "{json.loads((mixed / "adapter_config.json").read_text())["base_model_name_or_path"]}"'
        in front
    )
    assert "license" not in front
    assert "| `q_proj` | 2 |" in body
    assert ("| sglang | " in body) == (target == "vllm")


def test_a_card_of_a_run_says_what_it_was_trained_on(bases, tmp_path):
    from loratlas.serving.adapter_header import read_adapter_header
    from loratlas.serving.model_card import CardInput, card_text, licence_of, run_beside

    folder = save_case(BY_NAME["plain"], bases["llama"], tmp_path / "run" / "adapter")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    about = {"data": str(rows), "steps": 7, "train_nll": 1.5, "rows_digest": "f00d"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    assert licence_of(str(base)) == "apache-2.0"
    text = card_text(
        CardInput(
            target="peft",
            base=str(base),
            recipe="load it",
            header=read_adapter_header(folder),
            notes={"plan": {"placement": "q,v:4", "budget": "params=1M"}},
            run=run_beside(folder),
            findings=[{"sentence": "q,v:4 is equivalent to all:8."}],
        )
    )
    for part in (
        "license",
        "| steps | 7 |",
        "data SHA-256",
        "| digest of the encoded rows | `f00d` |",
        "`q,v:4`, budget params=1M",
        "- q,v:4 is equivalent",
        "for nothing else",
    ):
        assert part in text, part


def test_cutting_is_the_nearest_change_of_that_rank():
    generator = torch.Generator().manual_seed(0)
    site = SiteUpdate(
        module="m", A=torch.randn(6, 20, generator=generator), B=torch.randn(30, 6, generator=generator)
    )
    S = torch.linalg.svdvals(site.delta().double())
    for rank in (1, 3, 5):
        cut, lost = cut_to(site, rank)
        assert cut.rank == rank
        apart = (cut.delta() - site.delta()).double().norm()
        assert lost == pytest.approx(float(apart / site.delta().double().norm()), rel=1e-4)
        assert float(apart) == pytest.approx(float(S[rank:].square().sum().sqrt()), rel=1e-4)
        assert lost_at([site], rank) == pytest.approx(lost)
        assert smallest_rank([site], lost + 1e-9, lambda r: r)[0] == rank
    stack = SiteUpdate(
        module="m", parameter="p", kind="experts", A=site.A.expand(2, -1, -1), B=site.B.expand(2, -1, -1)
    )
    assert cut_to(stack, 3)[1] == pytest.approx(cut_to(site, 3)[1])
    zero = SiteUpdate(module="m", A=torch.zeros(4, 5), B=torch.zeros(6, 4))
    assert lost_at([zero], 1) == 0
