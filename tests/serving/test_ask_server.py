"""A server on this machine that really evaluates a model: with the adapter, without it, or at a wrong scale."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from loratlas.adapters.peft_targets import adapted
from loratlas.adapters.stored.adapter_files import save_adapter
from loratlas.adapters.stored.load_adapter import load_adapter
from loratlas.api.check_adapter import check
from loratlas.data.encode import load_tokenizer
from loratlas.demo import base_path
from loratlas.errors import RequestError
from loratlas.models.load import load_model
from loratlas.placement.plan import place
from loratlas.serving.ask_server import open_server

BASE = str(base_path("demo:llama-mini"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter of the embedded base that changes it visibly."""
    model = place(BASE, "q,v,ffn.down:2").attach(load_model(BASE, dtype="float32"), seed=1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return save_adapter(model, tmp_path_factory.mktemp("served") / "a")


@pytest.fixture(scope="module")
def served(folder):
    model = load_adapter(load_model(BASE, dtype="float32"), folder)
    layers = list(adapted(model).values())
    return model, layers, [layer.scaling["default"] for layer in layers], load_tokenizer(BASE)


@contextmanager
def server(served, *, scale=1.0, style="names", broken=False):
    """An OpenAI-compatible server; ``scale`` is what it multiplies the adapter's own scale by."""
    model, layers, own, tokenizer = served

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def reply(self, value, code=200):
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/v1/models":
                names = ["base", "mine"] if style == "names" else ["base"]
                self.reply({"data": [{"id": name} for name in names]})
            elif self.path == "/lora-adapters" and style == "llama.cpp":
                self.reply([{"id": 0, "path": "mine.gguf", "scale": 1.0}])
            else:
                self.reply({"error": "nothing here"}, 404)

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if broken:
                self.reply({"choices": [{"text": "no logprobs"}]})
                return
            wanted = asked["lora"][0]["scale"] if style == "llama.cpp" else float(asked["model"] == "mine")
            for layer, value in zip(layers, own, strict=True):
                layer.scaling["default"] = wanted * scale * value
            ids = torch.tensor([tokenizer(asked["prompt"])["input_ids"]])
            with torch.no_grad():
                values = torch.log_softmax(model(input_ids=ids).logits[0, -1].float(), -1)
            top = [
                (tokenizer.decode([int(i)]), float(v))
                for v, i in zip(*values.topk(asked["logprobs"]), strict=True)
            ]
            if style == "llama.cpp":
                listed = {"content": [{"top_logprobs": [{"token": t, "logprob": v} for t, v in top]}]}
            else:
                listed = {"top_logprobs": [dict(top)]}
            self.reply({"choices": [{"text": top[0][0], "logprobs": listed}]})

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


@pytest.mark.parametrize("style", ["names", "llama.cpp"])
def test_an_adapter_that_is_served_right(served, folder, style):
    with server(served, style=style) as url:
        checked = check(folder, ["peft"], url=url)
    assert checked.served["applied"]
    assert checked.served["right"], checked.served
    assert checked.served["off"] < 1e-3
    assert checked.served["moved"] > 0.05
    assert checked.good


def test_a_server_that_serves_the_base_in_silence(served, folder):
    with server(served, scale=0.0) as url:
        checked = check(folder, ["peft"], url=f"{url}/v1")
    assert not checked.served["applied"]
    assert not checked.good
    assert "it serves the base" in checked.served["sentence"]
    assert checked.served["like_scale"] == 0.0


def test_a_server_that_scales_otherwise(served, folder):
    with server(served, scale=2.0) as url:
        checked = check(folder, ["peft"], url=url)
    assert checked.served["applied"]
    assert not checked.served["right"]
    assert checked.served["like_scale"] == 2.0
    assert "2 times the scale" in checked.served["sentence"]


def test_without_a_base_here_it_says_so(served, folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "a")
    (copy / "loratlas.json").unlink()
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "owner/nowhere"})
    )
    with server(served) as url:
        checked = check(copy, ["peft"], url=url)
    assert checked.served["right"]
    assert checked.served["off"] is None
    assert "was not compared" in checked.served["sentence"]


def test_servers_that_do_not_answer_or_say_too_little(served, folder):
    with server(served, broken=True) as url, pytest.raises(RequestError, match="without log-probabilities"):
        check(folder, ["peft"], url=url)
    with server(served) as url:
        pass
    with pytest.raises(RequestError, match="no answer"):
        check(folder, ["peft"], url=url)
    with pytest.raises(RequestError, match="no address"):
        check(folder, ["peft"], url="localhost:8000")
    with server(served, style="one") as url:
        with pytest.raises(RequestError, match="served_adapter"):
            open_server(url)
        with pytest.raises(RequestError, match="the server has base"):
            open_server(url, model="mine", base_model="base")
