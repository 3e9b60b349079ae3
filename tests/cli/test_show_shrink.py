"""`show` and `shrink` on a trained adapter: tables, JSON, verdicts, and inputs that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loratlas.api.shrink_adapter_folder import compared


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run over all linear layers."""
    import loratlas

    folder = tmp_path_factory.mktemp("shrink") / "run"
    loratlas.train(
        "demo:llama-mini", "demo:facts-300", placement="all:4", steps=6, lr=0.01, batch_size=8, out=folder
    )
    return folder


def test_show_lists_every_site_and_fits_the_terminal(cli, run_folder):
    outcome = cli("show", run_folder, "--json").json
    assert outcome["schema"] == "loratlas.show"
    plan = json.loads((run_folder / "adapter" / "loratlas.json").read_text())["plan"]
    assert [(s["path"], s["rank"]) for s in outcome["sites"]] == [
        (s["path"], s["rank"]) for s in plan["sites"]
    ]
    assert all(s["norm"] > 0 and 1 <= s["effective_rank"] <= 4.000001 for s in outcome["sites"])
    assert all(0 < s["share"] < 1 for s in outcome["sites"])
    table = cli("show", run_folder)
    assert table.code == 0
    drawn = table.out.split("‖BA‖: Frobenius")[0].splitlines()[1:]
    assert max(map(len, drawn)) <= 80
    assert "ffn.down" in table.out
    assert "% of ‖W‖" in table.out
    assert "% of ‖W‖" not in cli("show", run_folder, "--no-weights").out


def test_show_draws_a_page_of_its_own(cli, run_folder, tmp_path):
    done = cli("show", run_folder, "--no-weights", "--figure", tmp_path / "adapter.html")
    assert done.code == 0, done.err
    page = (tmp_path / "adapter.html").read_text(encoding="utf-8")
    assert "ffn.down" in page
    assert "effective rank" in page
    assert 'src="http' not in page
    refused = cli("show", run_folder, "--no-weights", "--figure", tmp_path / "adapter.png")
    assert refused.code == 2
    assert "adapter.html" in refused.words.replace(" ", "")
    assert not (tmp_path / "adapter.png").exists()


def test_show_with_another_base_is_refused(cli, run_folder):
    other = cli("show", run_folder, "--no-weights", "--base", str(Path("bases/gpt2-mini").resolve()))
    assert other.code == 2
    assert "nor any other of its sites" in other.words


def test_shrink_measures_and_judges(cli, run_folder, tmp_path):
    done = cli(
        "shrink", run_folder, "--budget", "params=40k", "--eval", "demo:facts-300", "--limit", "24",
        "--out", tmp_path / "small", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = done.json
    assert result["schema"] == "loratlas.shrink"
    assert result["after"]["parameters"] <= 40_000 < result["before"]["parameters"]
    assert 0 < result["kept"] <= result["bound"] <= 1
    loss = result["loss"]
    assert loss["difference"] == pytest.approx(loss["after"] - loss["before"], abs=1e-9)
    assert loss["verdict"] in ("equivalent", "worse", "better", "undetermined")
    again = cli(
        "eval", "demo:llama-mini", "demo:facts-300", "--adapter", tmp_path / "small", "--limit", "24", "--json"
    ).json  # fmt: skip
    assert again["token_mean_nll"] == pytest.approx(loss["after"], abs=1e-5)


def test_shrink_says_what_it_did(cli, run_folder, tmp_path):
    done = cli("shrink", run_folder, "--budget", "like=q,v:4", "--out", tmp_path / "small")
    assert done.code == 0, done.err
    assert "mean rank" in done.out
    assert "no adapter of this budget keeps more" in done.out


def test_shrink_with_more_than_enough_says_so(cli, run_folder, tmp_path):
    done = cli("shrink", run_folder, "--budget", "params=100%", "--out", tmp_path / "small")
    assert "nothing was cut off" in done.out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--budget", "time=1.2"), "not known of an adapter alone"),
        (("--budget", "params=3"), "one direction costs"),
        (("--budget", "much"), "no quantity"),
    ],
)
def test_a_budget_that_cannot_be_writes_nothing(cli, run_folder, tmp_path, words, found):
    done = cli("shrink", run_folder, *words, "--out", tmp_path / "small")
    assert done.code == 2
    assert found in done.words
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("show",), ("shrink", "--budget", "params=10k", "--out", "small")])
def test_no_adapter_there(cli, tmp_path, command):
    done = cli(command[0], tmp_path / "nothing", *command[1:])
    assert done.code == 2
    assert "no such directory" in done.words


def test_pickled_weights_are_never_opened(cli, run_folder, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text((run_folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04never opened")
    for words in (("show", folder), ("shrink", folder, "--budget", "params=9k", "--out", tmp_path / "x")):
        done = cli(*words)
        assert done.code == 2
        assert "a pickle" in done.words


def test_the_verdict_is_that_of_the_interval():
    rng = np.random.default_rng(0)
    n = rng.integers(5, 20, 400)
    old = n * 2.0 + rng.normal(0, 1, 400)
    same = compared((old, n, "token"), (old + 0.001 * n, n, "token"), delta=0.01)
    assert same["verdict"] == "equivalent"
    assert same["difference"] == pytest.approx(0.001)
    worse = compared((old, n, "token"), (old + n * rng.normal(0.1, 0.1, 400), n, "token"), delta=0.01)
    assert worse["verdict"] == "worse"
    assert worse["ci"][0] > 0.01
    noisy = compared((old, n, "token"), (old + n * rng.normal(0, 1, 400), n, "token"), delta=0.01)
    assert noisy["verdict"] == "undetermined"
    alone = compared((old[:1], n[:1], "token"), (old[:1], n[:1], "token"), delta=0.01)
    assert (alone["verdict"], alone["ci"]) == ("undetermined", [None, None])


def test_its_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        n = rng.integers(5, 20, 60)
        d = n * rng.normal(0.05, 0.3, 60)
        result = compared((np.zeros(60), n, "token"), (d, n, "token"), delta=0.01)
        covered += result["ci"][0] <= 0.05 <= result["ci"][1]
    assert 0.92 <= covered / 400 <= 0.98
