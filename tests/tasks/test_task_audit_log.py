"""Logs of encoder-decoders and of encoders are audited as what they are, or refused."""

from __future__ import annotations

import json

import pytest
from tests.tasks.conftest import pairs, sentences, write


def log_with(path, value):
    path.write_text(json.dumps({"log_history": [{"eval_loss": value, "step": 5}], "global_step": 5}))
    return path


@pytest.mark.parametrize("size", [12, 5])
def test_an_encoder_decoder_s_log(cli, bases, tmp_path, size):
    """What transformers' own Trainer prints: the mean of its batches' means over the targets' tokens."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    base, rows = bases("t5"), pairs(12)
    for number, row in enumerate(rows):  # targets of unlike lengths, so that definitions differ
        row["completion"] = " ".join(row["prompt"].split()[: 1 + number % 3])
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32).eval()
    sources = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    targets = [tokenizer(row["completion"])["input_ids"] for row in rows]

    def padded(lists, fill):
        longest = max(map(len, lists))
        return torch.tensor([ids + [fill] * (longest - len(ids)) for ids in lists])

    total = 0.0
    with torch.no_grad():
        for at in range(0, len(rows), size):
            ids, labels = padded(sources[at : at + size], 0), padded(targets[at : at + size], -100)
            total += float(model(input_ids=ids, attention_mask=ids != 0, labels=labels).loss) * len(ids)
    log = log_with(tmp_path / "trainer_state.json", total / len(rows))
    words = [
        "audit-log",
        log,
        write(tmp_path / "rows.jsonl", rows),
        "--model",
        base,
        "--batch-size",
        size,
        "--json",
    ]
    code, out, _ = cli(*words)
    data = json.loads(out)
    assert code == 0, data["logs"][0]["numbers"]
    assert data["task"]["name"] == "seq2seq"
    assert data["passes"] == ["the target of each row"]
    (number,) = data["logs"][0]["numbers"]
    assert number["verdict"] == "reproduced"
    assert number["matches"][0]["averaged"] == f"mean of batches of {size}"
    log_with(log, total / len(rows) * 1.01)
    code, out, _ = cli(*words)
    assert code == 1
    assert json.loads(out)["logs"][0]["numbers"][0]["verdict"] == "not reproduced"


def test_an_encoder_s_log_over_plain_text_is_refused(cli, bases, tmp_path):
    """What a masked language model lost depends on which tokens were masked, which no log says."""
    texts = [{"text": row["text"]} for row in sentences(6)]
    log = log_with(tmp_path / "trainer_state.json", 3.5)
    code, out, _ = cli(
        "audit-log", log, write(tmp_path / "rows.jsonl", texts), "--model", bases("bert"), "--json"
    )
    assert code == 2
    error = json.loads(out)["error"]
    assert "bert" in error["given"] + error["found"]
    assert "label" in error["found"] + error["instead"]
