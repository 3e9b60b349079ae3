"""Study files: what they default to, what their digest covers, and what an error says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loratlas.errors import DataError, SpecError
from loratlas.sources import expand, locate, open_rows
from loratlas.study.spec.rates_and_seeds import grid, seeds
from loratlas.study.spec.spec_file import load_spec, parse_spec

MINIMAL = {
    "model": "demo:llama-mini",
    "data": {"train": "demo:facts-300"},
    "arms": {"full": "all:8", "attention": "attention", "feedforward": "feedforward"},
}


def spec(**more):
    return parse_spec({**MINIMAL, **more})


def refusal(values) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec(values if isinstance(values, str) else {**MINIMAL, **values})
    return caught.value


def test_defaults_are_the_protocol():
    read = spec()
    assert read.reference == "full"
    assert len(read.learning_rates) == 7
    assert all(1.5 < b / a < 1.7 for a, b in pairwise(read.learning_rates))
    assert (read.tuning.seeds, read.tuning.rows, read.protocol) == (3, 500, 2)
    assert (read.evaluation.seeds, read.evaluation.rows) == (5, 1000)
    assert (read.delta, read.base_dropout, read.data.loss) == (0.01, False, "answer")


def test_an_arm_is_a_text_or_its_settings():
    long = spec(arms={"full": {"placement": "all:8"}, "q": {"placement": "q", "dropout": 0.1}})
    assert long.arms["full"] == spec().arms["full"]
    assert long.arms["q"].dropout == 0.1


def test_writing_a_default_out_does_not_change_the_digest():
    assert spec(delta=0.01, arms={**MINIMAL["arms"], "full": {"placement": "all:8"}}).digest == spec().digest


@pytest.mark.parametrize("change", [{"delta": 0.02}, {"seed": 1}, {"steps": 201}, {"match": "params"}])
def test_whatever_decides_numbers_or_verdicts_is_in_the_digest(change):
    assert spec(**change).digest != spec().digest


def test_json_round_trip():
    assert parse_spec(spec(delta=0.02).to_json()).digest == spec(delta=0.02).digest


def test_floats_may_be_written_without_a_point():
    # YAML 1.1 reads 1e-3 as text; people write it all the same.
    text = "model: m\ndata: {train: a, eval: b}\narms: {full: all, q: q}\nlearning_rates: [1e-3, 3e-3]\n"
    assert parse_spec(text).learning_rates == (0.001, 0.003)


def test_yamls_own_words_mean_what_they_say():
    text = "model: m\ndata: {train: a, eval: b}\narms: {full: all, q: q}\npacking: off\nmatch: null\n"
    assert (parse_spec(text).packing, parse_spec(text).match) == ("off", "none")


@pytest.mark.parametrize(
    ("values", "given", "instead"),
    [
        ({"learning_rate": [1e-3]}, "learning_rate", "learning_rates"),
        ({"tuning": {"seed": 2}}, "tuning.seed", "tuning.seeds"),
        ({"data": {"train": "demo:rules", "evall": "x"}}, "data.evall", "data.eval"),
        (
            {"arms": {"full": "all", "q": {"placement": "q", "dropuot": 0.1}}},
            "arms.q.dropuot",
            "arms.q.dropout",
        ),
    ],
)
def test_unknown_keys_name_their_path_and_the_nearest_valid_one(values, given, instead):
    error = refusal(values)
    assert given in error.given
    assert "unknown key" in error.found
    assert error.instead == instead


@pytest.mark.parametrize(
    ("values", "given", "instead"),
    [
        ({"steps": 0}, "steps: 0", "1 or more"),
        ({"steps": "many"}, "steps: 'many'", "whole number"),
        ({"learning_rates": [float("nan")]}, "learning_rates.0: nan", "number"),
        ({"learning_rates": [-1e-3]}, "learning_rates.0: -0.001", "more than 0"),
        ({"learning_rates": [float("inf")]}, "learning_rates.0: inf", "finite"),
        ({"learning_rates": [3e-3, 1e-3]}, "learning_rates", "[0.001, 0.003]"),
        ({"learning_rates": [1e-4, 1e-3]}, "learning_rates", "factor of 3"),
        ({"match": "parameters"}, "match: 'parameters'", "'params'"),
        ({"reference": "ful"}, "reference: 'ful'", "reference: full"),
        ({"arms": {"one": "all"}}, "arms", "at least 2"),
        ({"arms": {"full": "all", "q": {"placement": "auto", "dora": True}}}, "arms.q.dora", "such as all:8"),
        ({"arms": {"full": "all", "q": {"placement": "scan", "dora": True}}}, "arms.q.dora", "such as all:8"),
        (
            {"arms": {"full": "all", "q": {"placement": "q", "dora": True}}, "match": "time"},
            "match: time",
            "params",
        ),
        ({"arms": {"q": "q", "v": "v"}}, "no reference", "reference:"),
        ({"arms": {"full": "all", "a/b": "q"}}, "arms.a/b", "plain name"),
        ({"tuning": {"rows": 100}}, "tuning.rows: 100", "500"),
        ({"tuning": {"seeds": 1}}, "tuning.seeds: 1", "2 or more"),
        ({"evaluation": {"seeds": 1}}, "evaluation.seeds: 1", "2 or more"),
        ({"data": {"train": "rows.jsonl"}}, "data.train", "data.eval"),
        ({"delta": -0.1}, "delta: -0.1", "more than 0"),
        ({"base_dropout": "perhaps"}, "base_dropout", "true or false"),
    ],
)
def test_values_out_of_range_say_what_to_write(values, given, instead):
    error = refusal(values)
    assert given in error.given
    assert instead in error.instead
    assert error.exit_code == 2


def test_more_arms_than_a_study_can_tell_from_one_another_are_refused():
    arms = {"full": "all:8", **{f"a{n}": "attention" for n in range(200)}}
    assert "201 arms" in refusal({"arms": arms}).given
    assert len(spec(arms=dict(list(arms.items())[:200])).arms) == 200


def test_a_demonstration_may_be_short():
    read = spec(demonstration=True, learning_rates=[1e-4, 1e-3], tuning={"seeds": 1, "rows": 50})
    assert read.tuning.rows == 50


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model: [", "broken YAML on line 1"),
        ("steps: 10\nmodel: m\nsteps: 20\n", "broken YAML on line 3"),
        ("steps: 1:1:1\n", "'1:1:1' is to YAML a number that is not to the base ten"),
        ("seed: 0100\n", "'0100' is to YAML a number"),
        ("delta: 1:30.5\n", "'1:30.5' is to YAML a number"),
        ("", "nothing"),
        ("- a\n- b\n", "a list"),
        ("model: m\n", "no data"),
        ("!!python/object/apply:os.getcwd []", "broken YAML"),
    ],
)
def test_broken_files_name_the_line(text, found):
    assert found in refusal(text).found


def test_files(tmp_path):
    path = tmp_path / "where.yaml"
    path.write_text("model: m\ndata: {train: rows.jsonl, eval: more.jsonl}\narms: {full: all, q: q}\n")
    result = load_spec(path)
    assert result.name == "where"
    assert result.folder == tmp_path
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "none.yaml")


def test_the_grid_grows_by_its_own_factor():
    read = spec(learning_rates=[1e-3, 1.5e-3, 2.25e-3])
    assert grid(read, below=0, above=0) == (0.001, 0.0015, 0.00225)
    assert grid(read, below=1, above=1) == (0.000666667, 0.001, 0.0015, 0.00225, 0.003375)


def test_a_wide_list_is_filled_between_its_ends():
    filled = grid(spec(learning_rates=[1e-3, 2e-3, 6e-3]), below=0, above=0)
    assert (filled[0], filled[-1], len(filled)) == (0.001, 0.006, 5)
    assert all(b / a < 1.61 for a, b in pairwise(filled))
    shown = spec(learning_rates=[1e-3, 2e-3, 6e-3], demonstration=True)
    assert grid(shown, below=0, above=0) == (0.001, 0.002, 0.006)


def test_the_first_edition_is_read_and_never_run():
    old = {name: value for name, value in spec(tuning={"seeds": 2}).to_json().items() if name != "protocol"}
    kept = parse_spec(old, kept=True)
    assert kept.protocol == 1
    assert kept.to_json() == old  # its digest is the one that its ledger has
    assert parse_spec(old).digest != kept.digest
    assert refusal({"protocol": 1}).instead.startswith("protocol: 2")


def test_seeds_are_disjoint_and_stable():
    tuning, evaluation = seeds(spec(seed=3, tuning={"seeds": 40}, evaluation={"seeds": 40}))
    assert len({*tuning, *evaluation}) == 80
    fewer_tuning, fewer = seeds(spec(seed=3))
    assert (fewer_tuning, fewer) == (tuning[:3], evaluation[:5])
    assert seeds(spec(seed=4))[1] != fewer


def test_environment_variables_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("LORATLAS_TEST_ROWS", str(tmp_path))
    assert expand("${LORATLAS_TEST_ROWS}/a") == f"{tmp_path}/a"
    monkeypatch.delenv("LORATLAS_TEST_ROWS")
    with pytest.raises(DataError, match="LORATLAS_TEST_ROWS is not set"):
        expand("${LORATLAS_TEST_ROWS}/a")


def test_relative_paths_start_at_the_files_folder(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert locate("rows.jsonl", folder=tmp_path) == str(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert locate("rows.jsonl", folder=tmp_path / "elsewhere") == "rows.jsonl"
    assert len(open_rows("rows.jsonl", folder=tmp_path)) == 1


def test_embedded_tasks_open_by_name():
    assert len(open_rows("demo:retrieval", split="eval", limit=3)) == 3
    assert open_rows("demo:facts-300").digest != open_rows("demo:facts-300", split="eval").digest


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases that stand for"),
        ("a: &a [*a]", "stands for itself"),
        ("[" * 50_000, "without an end"),
        ("x: " + "y" * 300_000, "more than 200,000 characters"),
        ("arms: {" + ", ".join(f"a{i}: q" for i in range(12_000)) + "}", "values"),
        ("a: 1\nb: \x1b[31m", "broken YAML"),
    ],
)
def test_no_file_makes_it_hang(text, said, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SpecError, match=said) as error:
        load_spec(tmp_path / "s.yaml")
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["\x1b[2J\x1b[31mred", "a\u202eb", "", "a/b", "x" * 101])
def test_names_that_a_terminal_would_obey_are_refused(name):
    named = {"name": name} if name else {"arms": {name: "q", "f": "all"}}  # an empty name is none
    for change in ({"arms": {**MINIMAL["arms"], name: "q"}}, named):
        with pytest.raises(SpecError) as error:
            parse_spec({**MINIMAL, **change})
        assert str(error.value).isprintable()
        assert "name" in error.value.found


def test_unknown_keys_reach_the_terminal_printable():
    with pytest.raises(SpecError) as error:
        parse_spec({**MINIMAL, "\x1b[31m": 1})
    assert str(error.value).isprintable()


def test_one_line_changes_what_the_file_says(tmp_path):
    path = tmp_path / "where.yaml"
    path.write_text("model: m\ndata: {train: rows.jsonl, eval: more.jsonl}\narms: {full: all, q: q}\n")
    result = load_spec(path, changes=["delta=0.02", "evaluation.seeds=8", "learning_rates=[1.0e-3, 2.0e-3]"])
    assert (result.delta, result.evaluation.seeds, result.learning_rates) == (0.02, 8, (0.001, 0.002))
    assert result.digest != load_spec(path).digest
    for wrong in ("delta", "=3", "model.x=3"):
        with pytest.raises(SpecError, match="Given: set"):
            load_spec(path, changes=[wrong])
    with pytest.raises(SpecError, match=r"evaluation\.seed "):
        load_spec(path, changes=["evaluation.seed=8"])
