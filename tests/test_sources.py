"""MODEL and DATA are understood alike wherever they are written or passed."""

from __future__ import annotations

import json

import pytest

import loratlas
from loratlas.data.load_rows import load_rows
from loratlas.demo import base_path
from loratlas.errors import DataError, ModelError, RequestError
from loratlas.models.real_bases import REAL_BASES, bases_folder, real_path
from loratlas.sources import judged_split, model_source, open_model, open_rows

RECORDS = [{"prompt": f"count {n}", "completion": str(n)} for n in range(4)]


def test_read_takes_the_names_of_the_command_line_and_live_models():
    by_name = loratlas.read("demo:llama-mini")
    assert by_name.model == "demo:llama-mini"
    for model in (base_path(), str(base_path()), open_model("demo:llama-mini")):
        assert [site.path for site in loratlas.read(model)] == [site.path for site in by_name]
    with pytest.raises(ModelError, match="demo:llama-mini"):
        loratlas.read("demo:llama")


def test_a_loaded_model_is_opened_as_it_is():
    model = open_model("demo:llama-mini")
    assert open_model(model) is model


def test_the_same_rows_from_whatever_holds_them(tmp_path):
    import datasets
    import pyarrow as pa

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    wanted = load_rows(path)
    table = datasets.Dataset.from_list(RECORDS)
    sources = {
        "a path": path,
        "a name": str(path),
        "dicts": RECORDS,
        "a tuple": tuple(RECORDS),
        "a generator": (record for record in RECORDS),
        "a data set": table,
        "its splits": datasets.DatasetDict({"test": table.select([0]), "train": table}),
        "a stream": table.to_iterable_dataset(),
        "a table": pa.Table.from_pylist(RECORDS),
        "rows": wanted,
    }
    for name, source in sources.items():
        rows = open_rows(source)
        assert rows.rows == wanted.rows, name
        assert rows.digest == wanted.digest, name
        assert rows.form == "prompt"


def test_a_data_set_that_was_filtered_and_shuffled_is_read_as_it_is_now():
    import datasets

    table = datasets.Dataset.from_list(RECORDS).shuffle(seed=1).select([3, 1]).rename_column("prompt", "ask")
    rows = open_rows(table, mapping={"prompt": "ask"}, limit=1)
    assert rows.rows[0].turns[0].content == table[0]["ask"]
    assert len(rows) == 1


@pytest.mark.parametrize("source", [3, {"prompt": "a"}, b"rows.jsonl", None])
def test_what_holds_no_rows_is_refused(source):
    with pytest.raises(DataError, match="neither a name nor a table nor a list"):
        open_rows(source)
    with pytest.raises(DataError, match="row 2 is a str, not an object"):
        open_rows([{"text": "a"}, "b"])


def test_folders_and_variables_are_looked_up(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORDS[0]))
    assert len(open_rows("a.jsonl", folder=tmp_path)) == 1
    monkeypatch.setenv("LORATLAS_TEST_ROWS", str(tmp_path))
    assert len(open_rows("${LORATLAS_TEST_ROWS}/a.jsonl")) == 1
    assert judged_split("demo:rules") == "eval"
    assert judged_split(RECORDS) is None


def test_a_real_base_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LORATLAS_REAL_BASES", str(tmp_path))
    with pytest.raises(ModelError, match="make real-bases"):
        model_source("real:smollm2-135m")
    with pytest.raises(ModelError, match="Instead: real:smollm2-135m"):
        model_source("real:smollm2")
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "config.json").write_text("{}")
    assert model_source("real:smollm2-135m") == str(tmp_path / "smollm2-135m")
    monkeypatch.delenv("LORATLAS_REAL_BASES")
    assert bases_folder().name == "bases"


def fetched(name: str):
    try:
        return real_path(name)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm_answers():
    """The base that was fetched is the one that was meant: it knows a capital, by its own template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fetched("smollm2-135m"))
    model = open_model("real:smollm2-135m").eval()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
    assert written[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", sorted(REAL_BASES))
def test_real_bases_are_read(name):
    anatomy = loratlas.read(str(fetched(name)))
    assert {"smollm2-135m": 30, "gemma3-270m": 18}[name] == 1 + max(site.layer or 0 for site in anatomy)


def test_embedded_rows_have_no_columns_to_map():
    with pytest.raises(DataError, match="without columns"):
        open_rows("demo:rules", mapping={"prompt": "question"})


@pytest.mark.parametrize("name", ["a\0b", "half \ud83d", "q" * 300, "a/" * 5_000])
def test_what_no_file_can_be_called(name, tmp_path):
    """As an adapter names its base: a sentence instead of the operating system's exception."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    with pytest.raises(RequestError, match="a path or a Hub id"):
        model_source(str(tmp_path))
    with pytest.raises(RequestError, match="a path or a Hub id"):
        open_rows(name)
